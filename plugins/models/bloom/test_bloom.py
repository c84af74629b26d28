"""Bloom checkpoints load whole and answer as plain transformers does, with every weight in a part."""

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
from ftcore_bloom import Bloom

# Fields of a published config.json, and how many numbers its weights hold.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    ({"model_type": "bloom", "vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}, 559_214_592),
    ({"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32}, 7_069_016_064),
]


@pytest.mark.parametrize("kind", Bloom.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(kind, tie_word_embeddings=tied)
    loaded, plain = ftcore.load("bloom", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize(("fields", "numbers"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], numbers: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    planned = Bloom().load_model(Run(Settings(checkpoint=str(tmp_path)), "plan", "causal-lm"), {})
    assert sum(parameter.numel() for parameter in planned.model.parameters()) == numbers


def test_every_weight_is_in_a_part_and_rows_are_padded() -> None:
    loaded = ftcore.load("bloom", checkpoint=tiny_checkpoint("bloom"))
    named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
    assert named == {name for name, module in loaded.model.named_modules() if module._parameters}
    assert "ALiBi" in loaded.unpackable


def test_padded_rows_cost_what_they_cost_alone() -> None:
    from ftcore.batches import collator, token_loss
    from ftcore.testing.stage import recital_row
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("bloom", n_head=3, hidden_size=48)  # 3 is no power of two, so slopes interleave
    loaded = ftcore.load("bloom", checkpoint=folder)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [recital_row(number, loaded.vocab_size) for number in range(4)]
    with torch.no_grad():
        together = float(token_loss(loaded.model, collator(loaded, Settings())(rows)))
        alone = 0.0
        for row in rows:
            ids, labels = (torch.from_numpy(one[None].astype("int64")) for one in (row.input_ids, row.labels))
            alone += float(plain(input_ids=ids, labels=labels).loss) * row.supervised
    assert together == pytest.approx(alone, rel=1e-5)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads bloom"):
        ftcore.load("bloom", checkpoint=tiny_checkpoint("llama"))


@model_checks(Bloom())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
