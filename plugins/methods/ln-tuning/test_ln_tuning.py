"""LN tuning trains the norms and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_ln_tuning import LNTuning
from torch import nn
from trials import check_refused_on_a_layer, count, injected, trained


def test_a_norm_answers_with_its_own_gain_and_shift() -> None:
    model = ftcore.inject(nn.Sequential(nn.LayerNorm(6)), method="ln-tuning", target_modules=["0"])
    w = trained(model, 0.5)
    given = torch.randn(3, 6)
    centred = given - given.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["weight"] + w["bias"]
    assert torch.allclose(model(given), wanted, atol=1e-5)


def test_every_norm_trains_and_nothing_else(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen3"))
    model = injected("ln-tuning", loaded).model
    heads = 2 * 8
    assert count(model) == 2 * (2 * 32 + heads) + 32
    assert all("norm" in name for name, p in model.named_parameters() if p.requires_grad)


def test_the_base_keeps_its_own_norms() -> None:
    base = nn.Sequential(nn.LayerNorm(6))
    model = ftcore.inject(base, method="ln-tuning", target_modules=["0"])
    trained(model, 0.5)
    kept = model.base_model.model[0].base_layer
    assert torch.equal(kept.weight, torch.ones(6))
    assert not torch.equal(model.merge_and_unload()[0].weight, torch.ones(6))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_norm_of_float32_fits_between_layers_of_another_precision(kind: torch.dtype) -> None:
    base = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).to(kind)
    model = ftcore.inject(base, method="ln-tuning", target_modules=["1"])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(torch.randn(3, 4, dtype=kind)).dtype == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["norms"], "target_modules": []}, r"no part 'norms'"),
        ({"target_modules": ["7"]}, r"is named '7'"),
        ({"r": 3}, r"has no option 'r'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("ln-tuning", options, message)


@method_checks(LNTuning())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
