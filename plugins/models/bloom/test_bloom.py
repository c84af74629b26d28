"""Bloom checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

import math
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

STARTER = Path(__file__).parent / "ftcore_bloom" / "starter"


def test_the_starter_is_small_and_loads_whole_in_its_own_class() -> None:
    from transformers import AutoModelForCausalLM, BloomForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(STARTER, output_loading_info=True)
    assert not any(info.values())
    assert type(model) is BloomForCausalLM
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 2_500_000
    loaded = ftcore.load("bloom")
    assert loaded.checkpoint == str(STARTER)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model.eval()(ids).logits, atol=1e-5)


def test_the_starter_shares_its_embeddings_and_has_no_bound_of_positions() -> None:
    loaded = ftcore.load("bloom")
    assert loaded.model.config.tie_word_embeddings
    assert loaded.max_positions > 2**16


@pytest.mark.parametrize(
    "text", ['Tom said, "Hello!"\n  He ran.', "小猫在门口看雨。", "naïve café 👩‍👧 🐱\n\tx", "\u200b \x7f"]
)
def test_any_text_goes_through_the_starters_tokenizer_and_back(text: str) -> None:
    tokenizer = ftcore.load("bloom").tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_starters_tokenizer_has_blooms_special_tokens_and_no_turns_of_a_chat() -> None:
    loaded = ftcore.load("bloom")
    assert loaded.tokenizer.convert_ids_to_tokens(range(4)) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert loaded.tokenizer.chat_template is None
    assert loaded.stop_ids == (2,)


def test_the_starter_has_read_stories(story_costs: Callable[[Any, str], float]) -> None:
    read, unread = (ftcore.load("bloom", checkpoint=STARTER, weights=weights) for weights in ("pretrained", "random"))
    assert story_costs(read, "<s>") < 0.5 * math.log(read.vocab_size) < story_costs(unread, "<s>")


def test_the_first_command_lowers_the_loss_on_held_out_rows(tmp_path: Path) -> None:
    outcome = ftcore.run(method="lora", task="causal", model="bloom", output=tmp_path / "run", epochs=1)
    assert outcome.metrics["loss"] < 0.7 * outcome.before["loss"]
    assert all(sample["before"] != sample["after"] for sample in outcome.samples)


@model_checks(Bloom())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
