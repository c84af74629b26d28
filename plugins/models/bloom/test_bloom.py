"""Bloom checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import (
    answers_as_plain_transformers,
    cost_alone,
    loaded,
    numbers,
    outside_of_parts,
    planned,
    refuses_another_type,
)
from ftcore.batches import collator, token_loss
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import recital_row, tiny_checkpoint
from ftcore_bloom import Bloom

# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    ({"model_type": "bloom", "vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}, 559_214_592),
    ({"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32}, 7_069_016_064),
]


@pytest.mark.parametrize("kind", Bloom.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    answers_as_plain_transformers(Bloom(), tiny_checkpoint(kind, tie_word_embeddings=tied))


@pytest.mark.parametrize(("fields", "wanted"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], wanted: int, tmp_path: Path
) -> None:
    assert numbers(planned(Bloom(), fields, tmp_path)) == wanted


def test_every_weight_is_in_a_part_and_rows_are_padded() -> None:
    found = loaded(Bloom(), tiny_checkpoint("bloom"))
    assert outside_of_parts(found) == set()
    assert "ALiBi" in found.unpackable


def test_padded_rows_cost_what_they_cost_alone() -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("bloom", n_head=3, hidden_size=48)  # 3 is no power of two, so slopes interleave
    found = loaded(Bloom(), folder)
    rows = [recital_row(number, found.vocab_size) for number in range(4)]
    with torch.no_grad():
        together = float(token_loss(found.model, collator(found, Settings())(rows)))
    alone = cost_alone(AutoModelForCausalLM.from_pretrained(folder).eval(), rows)
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(Bloom(), tiny_checkpoint("llama"), "bloom")


# The starter


def test_the_starter_shares_its_embeddings_and_has_no_bound_of_positions() -> None:
    loaded = ftcore.load("bloom")
    assert loaded.model.config.tie_word_embeddings
    assert loaded.max_positions > 2**16


def test_the_starters_tokenizer_has_blooms_special_tokens_and_no_turns_of_a_chat() -> None:
    loaded = ftcore.load("bloom")
    assert loaded.tokenizer.convert_ids_to_tokens(range(4)) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert loaded.tokenizer.chat_template is None
    assert loaded.stop_ids == (2,)


@model_checks(Bloom())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
