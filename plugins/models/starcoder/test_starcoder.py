"""StarCoder checkpoints load whole and answer as plain transformers does, with every weight in a part."""

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
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(kind, tie_word_embeddings=tied)
    loaded, plain = ftcore.load("starcoder", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize(("fields", "numbers"), PUBLISHED, ids=lambda value: str(value)[:40])
def test_published_sizes_have_as_many_numbers_as_their_weights(
    fields: dict[str, Any], numbers: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    planned = StarCoder().load_model(Run(Settings(checkpoint=str(tmp_path)), "plan", "causal-lm"), {})
    assert sum(parameter.numel() for parameter in planned.model.parameters()) == numbers


@pytest.mark.parametrize("multi_query", [False, True])
def test_q_k_and_v_of_the_first_starcoder_are_one_layer(multi_query: bool) -> None:
    loaded = ftcore.load("starcoder", checkpoint=tiny_checkpoint("gpt_bigcode", multi_query=multi_query))
    assert loaded.parts["attention.q"] == loaded.parts["attention.k"] == loaded.parts["attention.v"]
    named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
    assert {name for name, module in loaded.model.named_modules() if module._parameters} - named == {"transformer.wpe"}
    assert loaded.max_positions == 256


@pytest.mark.parametrize("multi_query", [False, True])
def test_rows_laid_end_to_end_cost_what_they_cost_alone(multi_query: bool) -> None:
    from ftcore.batches import pack, token_loss
    from ftcore.testing.stage import recital_row
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint("gpt_bigcode", multi_query=multi_query)
    loaded = ftcore.load("starcoder", checkpoint=folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    rows = [recital_row(number, loaded.vocab_size) for number in range(4)]
    with torch.no_grad():
        together = float(token_loss(loaded.model, pack(rows)))
        alone = 0.0
        for row in rows:
            ids, labels = (torch.from_numpy(one[None].astype("int64")) for one in (row.input_ids, row.labels))
            alone += float(plain(input_ids=ids, labels=labels).loss) * row.supervised
    assert together == pytest.approx(alone, rel=1e-5)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads gpt_bigcode, starcoder2"):
        ftcore.load("starcoder", checkpoint=tiny_checkpoint("llama"))


@model_checks(StarCoder())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
