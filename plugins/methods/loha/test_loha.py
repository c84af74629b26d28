"""LoHa adds the elementwise product of two low-rank updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_loha import LoHa
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, count, injected, on_a_layer, trained


def test_the_update_is_the_published_formula() -> None:
    """h = W x + (alpha / r) ((A1 B1) * (A2 B2)) x."""
    model, weight, bias = on_a_layer("loha", r=3, alpha=6)
    w = trained(model)
    update = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    given = torch.randn(3, 5)
    assert torch.allclose(model(given), given @ (weight + 6 / 3 * update).T + bias, atol=1e-5)


def test_its_update_has_a_higher_rank_than_loras_of_the_same_size() -> None:
    model = ftcore.inject(nn.Sequential(nn.Linear(16, 16)), method="loha", target_modules=["0"], r=3)
    w = trained(model)
    update = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    assert torch.linalg.matrix_rank(update) == 9
    assert count(model) == 2 * 3 * (16 + 16)


def test_twice_as_much_trains_as_with_lora(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    model = injected("loha", loaded, r=4, parts=["attention.q", "mlp.down"]).model
    assert count(model) == 2 * 2 * 4 * ((32 + 32) + (64 + 32))


def test_module_dropout_leaves_the_update_out_in_training_only() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    given = torch.randn(3, 5)
    plain = layer(given).detach()
    model = ftcore.inject(nn.Sequential(layer), method="loha", target_modules=["0"], module_dropout=0.9)
    trained(model)
    answers = [model.train()(given) for _ in range(20)]
    assert any(torch.equal(answer, plain) for answer in answers)
    assert not torch.equal(model.eval()(given), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"option 'r' is 0"),
        ({"alpha": 0}, r"option 'alpha' is 0"),
        ({"rank_dropout": 1}, r"option 'rank_dropout' is 1"),
        ({"module_dropout": -0.1}, r"option 'module_dropout' is -0.1"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("loha", options, message)


@pytest.mark.parametrize("options", [{}, {"r": 2, "alpha": 7}], ids=str)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("loha", **options)


@method_checks(LoHa())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
