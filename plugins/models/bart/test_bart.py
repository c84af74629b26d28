"""BART checkpoints load whole and answer as plain transformers does, also as they were published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_facts import (
    IDS,
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
from ftcore_bart import TINY, Bart
from safetensors.torch import load_file, save_file

HEAD = "seq2seq-lm"
# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    name: (
        {
            "model_type": "bart",
            "vocab_size": vocabulary,
            "d_model": width,
            **dict.fromkeys(("encoder_layers", "decoder_layers"), layers),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), width // 64),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * width),
        },
        count,
    )
    for name, vocabulary, width, layers, count in (
        ("bart-base", 50265, 768, 6, 139_420_416),
        ("bart-large", 50265, 1024, 12, 406_291_456),
    )
}


def test_a_checkpoint_answers_as_plain_transformers() -> None:
    begun = torch.arange(7, 21).reshape(2, 7)
    answers_as_plain_transformers(
        Bart(), tiny_checkpoint("bart", HEAD, **TINY), HEAD, input_ids=IDS, decoder_input_ids=begun
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_numbers_as_their_weights(name: str, tmp_path: Path) -> None:
    fields, wanted = PUBLISHED[name]
    assert numbers(planned(Bart(), fields, tmp_path, HEAD)) == wanted


def test_every_weight_of_a_block_is_in_a_part() -> None:
    found = loaded(Bart(), tiny_checkpoint("bart", HEAD, **TINY), HEAD)
    odd = outside_of_parts(found)
    assert all(name.endswith(("embed_positions", "embed_tokens")) for name in odd), odd
    assert len(found.parts["block"]) == 4
    assert len(found.parts["attention.q"]) == 6  # two of the encoder, two of the decoder, two over what was read
    assert len(found.parts["norm"]) == 2 * 2 + 2 * 3 + 2


@pytest.mark.parametrize("bare", [True, False])
def test_files_as_they_were_published_load_whole(bare: bool, tmp_path: Path) -> None:
    """They hold the shared embedding three times; those of the base sizes have no head and no name of it."""
    native = tiny_checkpoint("bart", HEAD, **TINY)
    folder = Path(shutil.copytree(native, tmp_path / "published"))
    tensors = {
        name: tensor
        for name, tensor in load_file(native / "model.safetensors").items()
        if not bare or name != "final_logits_bias"
    }
    stacks = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tensors |= {name: tensors["model.shared.weight"].clone() for name in stacks}
    named = {name.removeprefix("model.") if bare else name: tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    assert same_tensors(Bart(), native, folder, HEAD)


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(Bart(), tiny_checkpoint("llama"), "bart", HEAD)


@model_checks(Bart())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
