"""Mistral and Mixtral checkpoints load whole and answer as plain transformers does; their experts have a role."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Run
from ftcore.settings import Settings
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
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(kind, tie_word_embeddings=tied, **Mistral.tiny.get(kind, {}))
    loaded, plain = ftcore.load("mistral", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize(("fields", "numbers"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], numbers: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    planned = Mistral().load_model(Run(Settings(checkpoint=str(tmp_path)), "plan", "causal-lm"), {})
    assert sum(parameter.numel() for parameter in planned.model.parameters()) == numbers


def test_every_weight_is_in_a_part_and_experts_are_apart_from_an_mlp() -> None:
    for kind, has_mlp in (("mistral", True), ("mixtral", False)):
        loaded = ftcore.load("mistral", checkpoint=tiny_checkpoint(kind, **Mistral.tiny.get(kind, {})))
        named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
        assert named == {name for name, module in loaded.model.named_modules() if module._parameters}
        assert (
            has_mlp == ("mlp.up" in loaded.parts) == ("experts" not in loaded.parts) == ("router" not in loaded.parts)
        )


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


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads mistral, mixtral"):
        ftcore.load("mistral", checkpoint=tiny_checkpoint("llama"))


@model_checks(Mistral())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
