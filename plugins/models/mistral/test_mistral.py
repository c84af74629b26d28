"""Mistral and Mixtral checkpoints load whole and answer as plain transformers does; their experts have a role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import (
    answers_as_plain_transformers,
    loaded,
    numbers,
    outside_of_parts,
    planned,
    refuses_another_type,
)
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_mistral import Mistral

# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    (
        {
            "model_type": "mistral",
            "vocab_size": 32768,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
        7_248_023_552,
    ),
    (
        {
            "model_type": "mixtral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "tie_word_embeddings": False,
        },
        46_702_792_704,
    ),
]


@pytest.mark.parametrize("kind", Mistral.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    answers_as_plain_transformers(
        Mistral(), tiny_checkpoint(kind, tie_word_embeddings=tied, **Mistral.tiny.get(kind, {}))
    )


@pytest.mark.parametrize(("fields", "wanted"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], wanted: int, tmp_path: Path
) -> None:
    assert numbers(planned(Mistral(), fields, tmp_path)) == wanted


@pytest.mark.parametrize(("kind", "has_mlp"), [("mistral", True), ("mixtral", False)])
def test_every_weight_is_in_a_part_and_experts_are_apart_from_an_mlp(kind: str, has_mlp: bool) -> None:
    found = loaded(Mistral(), tiny_checkpoint(kind, **Mistral.tiny.get(kind, {})))
    assert outside_of_parts(found) == set()
    assert has_mlp == ("mlp.up" in found.parts) == ("experts" not in found.parts) == ("router" not in found.parts)


def test_the_experts_of_mixtral_train_and_merge(tmp_path: Path) -> None:
    from ftcore_freeze import Freeze
    from ftcore_pretrain import Pretrain
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    rows = tmp_path / "rows.txt"
    rows.write_text("The cat sat by the door.\n\nA small dog ran over the hill.\n", encoding="utf-8")
    folder = tiny_checkpoint("mixtral", **Mistral.tiny["mixtral"])
    done = ftcore.run(
        method=Freeze(parts=("experts",)), task=Pretrain(), model="mistral", checkpoint=folder, data=str(rows),
        output=tmp_path / "run", steps=2, lr=1e-2,
    )  # fmt: skip
    trained = load_file(done.output / "adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in trained} == {"gate_up_proj", "down_proj"}
    merged = AutoModelForCausalLM.from_pretrained(ftcore.merge(done.output, output=tmp_path / "merged"))
    state = merged.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(Mistral(), tiny_checkpoint("llama"), "mistral, mixtral")


@model_checks(Mistral())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
