"""GPT checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

import shutil
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
    same_tensors,
)
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_gpt import GPT

# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    ({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12}, 124_439_808),
    (
        {
            "model_type": "gpt_neo",
            "vocab_size": 50257,
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "attention_types": [[["global", "local"], 6]],
        },
        125_198_592,
    ),
    (
        {
            "model_type": "gptj",
            "vocab_size": 50400,
            "n_embd": 4096,
            "n_head": 16,
            "n_layer": 28,
            "rotary_dim": 64,
            "tie_word_embeddings": False,
        },
        6_050_882_784,
    ),
    (
        {
            "model_type": "gpt_neox",
            "vocab_size": 50304,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
        },
        70_426_624,
    ),
]


@pytest.mark.parametrize("kind", GPT.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    answers_as_plain_transformers(GPT(), tiny_checkpoint(kind, tie_word_embeddings=tied, **GPT.tiny.get(kind, {})))


@pytest.mark.parametrize(("fields", "wanted"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], wanted: int, tmp_path: Path
) -> None:
    assert numbers(planned(GPT(), fields, tmp_path)) == wanted


@pytest.mark.parametrize("kind", GPT.model_types)
def test_every_weight_is_in_a_part_and_the_type_tells_how_rows_are_batched(kind: str) -> None:
    found = loaded(GPT(), tiny_checkpoint(kind, **GPT.tiny.get(kind, {})))
    assert outside_of_parts(found) <= {"transformer.wpe"}
    assert bool(found.unpackable) == (kind in ("gpt_neo", "gptj"))


@pytest.mark.parametrize("kind", GPT.model_types)
def test_files_as_they_were_published_load_whole(kind: str, tmp_path: Path) -> None:
    """Old files hold masks beside weights; GPT-2's names lack the first word, and GPT-NeoX's head has another name."""
    from safetensors.torch import load_file, save_file

    native = tiny_checkpoint(kind, tie_word_embeddings=kind == "gpt2", **GPT.tiny.get(kind, {}))
    folder = Path(shutil.copytree(native, tmp_path / "published"))
    masks = {
        "gpt2": ["h.0.attn.bias"],
        "gpt_neo": ["transformer.h.0.attn.attention.bias", "transformer.h.2.attn.attention.masked_bias"],
        "gptj": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
        "gpt_neox": ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"],
    }
    tensors = {name: torch.ones(1, 1, 8, 8) for name in masks[kind]}
    for name, tensor in load_file(native / "model.safetensors").items():
        published = name.replace("lm_head", "embed_out") if kind == "gpt_neox" else name
        tensors[published.removeprefix("transformer.") if kind == "gpt2" else published] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert same_tensors(GPT(), native, folder)


def test_random_weights_are_asked_for_of_padded_types_too() -> None:
    folder = tiny_checkpoint("gptj", **GPT.tiny["gptj"])
    weights = [
        ftcore.load("gpt", checkpoint=folder, weights=kind).model.lm_head.weight for kind in ("pretrained", "random")
    ]
    assert not torch.equal(*weights)


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(GPT(), tiny_checkpoint("llama"), "gpt2, gpt_neo, gptj, gpt_neox")


@model_checks(GPT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
