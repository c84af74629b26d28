"""OPT checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
import torch
from ftcore.testing import model_checks
from ftcore_opt import OPT

TINY = {"ffn_dim": 64, "word_embed_proj_dim": 32}


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(tied: bool, checkpoint: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint("opt", tie_word_embeddings=tied, **TINY)
    loaded, plain = ftcore.load("opt", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)


def test_every_part_names_modules_and_every_weight_of_a_block_is_in_a_part(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("opt", checkpoint=checkpoint("opt", **TINY))
    modules = dict(loaded.model.named_modules())
    named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
    weighty = {name for name, module in modules.items() if module._parameters}
    assert named <= weighty
    assert weighty - named == {"model.decoder.embed_positions"}
    assert len(loaded.parts["block"]) == len(loaded.parts["attention.o"]) == 2


def test_what_does_not_fit_is_refused_by_name(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads opt"):
        ftcore.load("opt", checkpoint=checkpoint("llama"))


@model_checks(OPT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
