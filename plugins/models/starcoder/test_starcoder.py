"""StarCoder checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from ftcore.batches import pack, token_loss
from ftcore.testing import model_checks
from ftcore.testing.stage import recital_row, tiny_checkpoint
from ftcore_starcoder import StarCoder

# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    (
        {
            "model_type": "gpt_bigcode",
            "vocab_size": 49152,
            "n_embd": 6144,
            "n_head": 48,
            "n_inner": 24576,
            "n_layer": 40,
            "n_positions": 8192,
            "multi_query": True,
        },
        15_517_456_384,
    ),
    (
        {
            "model_type": "starcoder2",
            "vocab_size": 49152,
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 30,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
        },
        3_030_371_328,
    ),
]


@pytest.mark.parametrize("kind", StarCoder.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    answers_as_plain_transformers(StarCoder(), tiny_checkpoint(kind, tie_word_embeddings=tied))


@pytest.mark.parametrize(("fields", "wanted"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], wanted: int, tmp_path: Path
) -> None:
    assert numbers(planned(StarCoder(), fields, tmp_path)) == wanted


@pytest.mark.parametrize("multi_query", [False, True])
def test_q_k_and_v_of_the_first_starcoder_are_one_layer(multi_query: bool) -> None:
    found = loaded(StarCoder(), tiny_checkpoint("gpt_bigcode", multi_query=multi_query))
    assert found.parts["attention.q"] == found.parts["attention.k"] == found.parts["attention.v"]
    assert outside_of_parts(found) == {"transformer.wpe"}
    assert found.max_positions == 256


@pytest.mark.parametrize("multi_query", [False, True])
def test_rows_laid_end_to_end_cost_what_they_cost_alone(multi_query: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("gpt_bigcode", multi_query=multi_query)
    found = loaded(StarCoder(), folder)
    rows = [recital_row(number, found.vocab_size) for number in range(4)]
    with torch.no_grad():
        together = float(token_loss(found.model, pack(rows)))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert together == pytest.approx(cost_alone(plain, rows), rel=1e-5)


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(StarCoder(), tiny_checkpoint("llama"), "gpt_bigcode, starcoder2")


@model_checks(StarCoder())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
