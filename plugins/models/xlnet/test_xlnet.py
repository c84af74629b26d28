"""XLNet checkpoints load whole, answer as plain transformers does, and get a head where they have another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
import torch
from family_facts import IDS, answers_as_plain_transformers, loaded, outside_of_parts, refuses_another_type
from ftcore.families import UNLIMITED
from ftcore.hooks import Intent, Loaded, Run
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.methods.properties import Exercise, head_fields
from ftcore.testing.stage import tiny_checkpoint
from ftcore_bitfit import BitFit
from ftcore_full import Full
from ftcore_xlnet import IDLE, XLNet
from safetensors.torch import load_file


def tiny(head: str) -> Path:
    """A random two-layer checkpoint with that head."""
    return tiny_checkpoint("xlnet", head, **XLNet.tiny["xlnet"])


def drawn(folder: Path, head: str, said: list[str]) -> Loaded:
    """What the family makes of a checkpoint without this head."""
    with seeded(0, "test"):
        return XLNet().load_model(Run(Settings(checkpoint=str(folder)), "train", head, say=said.append), {})


@pytest.mark.parametrize("head", XLNet.heads)
@pytest.mark.parametrize("segments", [{}, {"token_type_ids": (torch.arange(30) > 9).long().expand(2, -1)}])
def test_a_checkpoint_answers_as_plain_transformers_with_segments_and_without(
    head: str, segments: dict[str, torch.Tensor]
) -> None:
    found = answers_as_plain_transformers(XLNet(), tiny(head), head, input_ids=IDS, **segments)
    assert found.max_positions == UNLIMITED


@pytest.mark.parametrize("intent", ["train", "plan"])
def test_every_weight_is_in_a_part_and_what_takes_no_part_is_no_weight(intent: Intent) -> None:
    folder = tiny("token-classification")
    found = loaded(XLNet(), folder, "token-classification", intent)
    assert outside_of_parts(found) == set()
    assert len(found.parts["block"]) == len(found.parts["relative_attention"]) == 2
    assert {name.rpartition(".")[2] for name, _ in found.model.named_buffers()} == set(IDLE)
    assert found.model.state_dict().keys() == load_file(folder / "model.safetensors").keys()


@pytest.mark.parametrize(
    "method", [Full(), BitFit(), BitFit(parts=("relative_attention",))], ids=["full", "all", "one"]
)
def test_methods_that_train_a_models_own_tensors_train_those_that_take_part(method: object, tmp_path: Path) -> None:
    head = "token-classification"
    checkpoint = tiny_checkpoint("xlnet", head, **head_fields(head), **XLNet.tiny["xlnet"])
    keys = {"method": method, "task": Exercise(head=head), "model": "xlnet", "checkpoint": checkpoint}
    done = ftcore.run(output=tmp_path / "run", steps=2, **keys)
    trained = load_file(done.output / "adapter_model.safetensors")
    assert trained
    assert not [name for name in trained if name.endswith(IDLE)]


def test_a_published_checkpoint_gets_the_head_asked_for() -> None:
    """What is published has the head of a language model."""
    published, said = tiny("causal-lm"), list[str]()
    one, other = (drawn(published, "question-answering", said) for _ in range(2))
    assert "the checkpoint has no head for question-answering: a new one is drawn (qa_outputs)" in said
    assert "2 tensors of the checkpoint have no use here and are left out (lm_loss)" in said
    state, stored = one.model.state_dict(), load_file(published / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in state.items() if name.startswith("transformer."))
    assert torch.equal(one.model.qa_outputs.weight, other.model.qa_outputs.weight)


def test_what_does_not_fit_is_refused_by_name() -> None:
    refuses_another_type(XLNet(), tiny_checkpoint("llama"), "xlnet", "token-classification")
    settings = Settings(checkpoint=str(tiny("token-classification")), gradient_checkpointing=True)
    with pytest.raises(ftcore.Refused, match="xlnet cannot recompute activations; leave gradient_checkpointing out"):
        XLNet().load_model(Run(settings, "train", "token-classification"), {})


@model_checks(XLNet())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
