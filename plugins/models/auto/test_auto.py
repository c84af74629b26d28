"""Parts of any architecture are found by looking, say what they mean, and what cannot be told is left out and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.families import LLAMA_ROLES, parts_of
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint, tiny_config, tiny_model
from ftcore_auto import Auto
from ftcore_auto.roles import inspected


def loaded(folder: Path, head: str = "causal-lm", intent: Any = "train") -> tuple[Loaded, list[str]]:
    """What the family makes of a checkpoint, and what it says."""
    said: list[str] = []
    return Auto().load_model(Run(Settings(checkpoint=str(folder)), intent, head, say=said.append), {}), said


@pytest.mark.parametrize("intent", ["train", "plan"])
def test_what_was_found_is_said_and_is_what_a_family_made_for_the_type_says(intent: str) -> None:
    found, said = loaded(tiny_checkpoint("llama"), intent=intent)
    assert found.parts == parts_of(found.model, LLAMA_ROLES)
    assert any(line.endswith("attention.q is model.layers.*.self_attn.q_proj (2)") for line in said)
    assert any("the family 'llama' is made for the type 'llama'; pass --model llama" in line for line in said)


@pytest.mark.parametrize(
    ("family", "kind", "head"),
    [
        ("gpt", "gpt2", "causal-lm"),
        ("gpt", "gptj", "causal-lm"),
        ("gpt", "gpt_neox", "causal-lm"),
        ("bloom", "bloom", "causal-lm"),
        ("opt", "opt", "causal-lm"),
        ("starcoder", "gpt_bigcode", "causal-lm"),
        ("starcoder", "starcoder2", "causal-lm"),
        ("bert", "bert", "masked-lm"),
        ("bert", "electra", "masked-lm"),
        ("bert", "distilbert", "question-answering"),
        ("t5", "t5", "seq2seq-lm"),
        ("t5", "umt5", "seq2seq-lm"),
    ],
)
def test_it_finds_what_people_wrote_down(family: str, kind: str, head: str) -> None:
    from ftcore.discovery import declared_datum, sound

    cls = next(offer for offer in sound("model") if offer.name == family).load()
    model: Any = tiny_model(tiny_config(kind, **declared_datum(cls, "tiny").get(kind, {})), head)
    assert dict(inspected(model).parts) == parts_of(model, cls.roles)


def test_layers_that_no_role_can_be_told_for_are_in_none_and_said() -> None:
    found, said = loaded(tiny_checkpoint("mamba"))
    assert not any(role.startswith(("attention", "mlp")) for role in found.parts)
    assert any("no role could be told for backbone.layers.*.mixer.in_proj" in line for line in said)
    assert len(found.parts["block"]) == 2


def test_a_gate_that_its_name_does_not_tell_is_not_guessed() -> None:
    from torch import nn

    model: Any = tiny_model(tiny_config("llama"), "causal-lm")
    for block in model.model.layers:
        block.mlp.left, block.mlp.right = block.mlp.gate_proj, block.mlp.up_proj
        del block.mlp.gate_proj, block.mlp.up_proj
    found = inspected(model)
    assert not any(role.startswith("mlp") for role in found.parts)
    assert "model.layers.*.mlp.left" in found.untold
    for block in model.model.layers:
        block.self_attn.second_out = nn.Linear(32, 32)
        block.self_attn.out_proj = nn.Linear(32, 32)
    assert "attention.o" not in inspected(model).parts


def test_a_model_without_blocks_is_refused_with_the_families_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import ftcore_auto.roles

    monkeypatch.setattr(ftcore_auto.roles, "blocks", lambda model: ())
    with pytest.raises(ftcore.Refused, match=r"no repeated blocks can be told in a Llama.*use a family .*llama"):
        loaded(tiny_checkpoint("llama"))


def test_a_head_that_the_type_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ftcore.Refused, match="no head 'masked-lm' for the type 'llama'; it has causal-lm"):
        loaded(tiny_checkpoint("llama"), "masked-lm")
    with pytest.raises(ftcore.Refused, match="a model of type 'ernie' sees what comes after a token"):
        loaded(tiny_checkpoint("ernie", "masked-lm"))
    with pytest.raises(ftcore.Refused, match="BertGenerationDecoder with this config sees what comes after"):
        loaded(tiny_checkpoint("bert-generation"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}), encoding="utf-8")
    with pytest.raises(ftcore.Refused, match="no-such-type"):
        loaded(tmp_path)


def test_rows_are_as_long_as_positions_reach() -> None:
    from ftcore.testing.models.families import answer

    found, _ = loaded(tiny_checkpoint("camembert", "masked-lm"), "masked-lm")
    longest = torch.full((1, found.max_positions), 7)
    assert answer(found.model, {"input_ids": longest}).shape[1] == found.max_positions < 256
    with pytest.raises((IndexError, RuntimeError)):
        answer(found.model, {"input_ids": torch.full((1, found.max_positions + 1), 7)})


@model_checks(Auto())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
