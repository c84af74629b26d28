"""LoKr adds a Kronecker product of two small matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_lokr import LoKr
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, on_a_layer, trained


def test_the_update_is_the_published_formula() -> None:
    """h = W x + (alpha / r) kron(W1, A2 B2) x, with W1 and W2 as near to square as the sides of W allow."""
    model, weight, bias = on_a_layer("lokr", 16, 64, r=2, alpha=3)
    w = trained(model)
    assert {name: tuple(p.shape) for name, p in w.items()} == {
        "lokr_w1": (8, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 4),
    }  # fmt: skip
    update = torch.kron(w["lokr_w1"], w["lokr_w2_a"] @ w["lokr_w2_b"])
    given = torch.randn(3, 16)
    assert torch.allclose(model(given), given @ (weight + 3 / 2 * update).T + bias, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"r": 4}, {"lokr_w1": (8, 8), "lokr_w2": (8, 8)}),
        ({"r": 1, "decompose_both": True},
         {"lokr_w1_a": (8, 1), "lokr_w1_b": (1, 8), "lokr_w2_a": (8, 1), "lokr_w2_b": (1, 8)}),
        ({"r": 1, "decompose_factor": 2}, {"lokr_w1": (2, 2), "lokr_w2_a": (32, 1), "lokr_w2_b": (1, 32)}),
    ],
    ids=str,
)  # fmt: skip
def test_the_factors_have_the_sizes_that_the_options_ask_for(
    options: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    model = ftcore.inject(nn.Sequential(nn.Linear(64, 64)), method="lokr", target_modules=["0"], **options)
    assert {name: tuple(p.shape) for name, p in trained(model).items()} == shapes


@pytest.mark.parametrize(("init", "zero"), [("default", "lokr_w1"), ("lycoris", "lokr_w2_b")])
def test_one_factor_starts_as_zeros(init: str, zero: str) -> None:
    model = ftcore.inject(nn.Sequential(nn.Linear(64, 64)), method="lokr", target_modules=["0"], r=2, init=init)
    zeros = [name for name, p in model.named_parameters() if p.requires_grad and not p.any()]
    assert zeros == [f"base_model.model.0.{zero}.default"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"option 'r' is 0"),
        ({"decompose_factor": -2}, r"option 'decompose_factor' is -2"),
        ({"decompose_factor": 0}, r"decompose_factor is 0"),
        ({"init": "zero"}, r"option 'init' is 'zero'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("lokr", options, message)


@pytest.mark.parametrize("options", [{}, {"r": 1, "decompose_both": True}, {"init": "lycoris"}], ids=str)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("lokr", **options)


@method_checks(LoKr())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
