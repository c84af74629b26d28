"""VeRA trains two vectors a layer around one pair of random matrices for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_vera import VeRA
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, count, injected, trained


def test_the_update_is_the_published_formula() -> None:
    """h = W x + b * (B (d * (A x))) with the first rows and columns of the shared B and A."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    layers = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in base]
    model = ftcore.inject(base, method="vera", target_modules=["0", "1"], r=4)
    trained(model)
    state = model.state_dict()
    shared_a, shared_b = state["base_model.vera_A.default"], state["base_model.vera_B.default"]
    assert shared_a.shape == (4, 7)
    assert shared_b.shape == (7, 4)
    given = wanted = torch.randn(3, 5)
    for index, (weight, bias) in enumerate(layers):
        d = state[f"base_model.model.{index}.vera_lambda_d.default"]
        b = state[f"base_model.model.{index}.vera_lambda_b.default"]
        a_part, b_part = shared_a[:, : weight.shape[1]], shared_b[: weight.shape[0]]
        update = torch.diag(b) @ b_part @ torch.diag(d) @ a_part
        wanted = wanted @ (weight + update).T + bias
    assert torch.allclose(model(given), wanted, atol=1e-4)


def test_two_vectors_a_layer_train_and_start_as_published(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    model = injected("vera", loaded, r=6, parts=["attention.q", "mlp.down"], d_initial=0.2).model
    assert count(model) == 2 * ((32 + 6) + (32 + 6))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.all(parameter == (0.2 if "lambda_d" in name else 0.0))


def test_the_shared_matrices_follow_their_key_and_nothing_else() -> None:
    def shared(key: int) -> torch.Tensor:
        torch.manual_seed(key)
        model = ftcore.inject(
            nn.Sequential(nn.Linear(4, 4)), method="vera", target_modules=["0"], r=3, projection_prng_key=key // 10
        )
        return model.state_dict()["base_model.vera_A.default"]

    assert torch.equal(shared(10), shared(11))
    assert not torch.equal(shared(10), shared(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"option 'r' is 0"),
        ({"dropout": 1.0}, r"option 'dropout' is 1"),
        ({"projection_prng_key": -1}, r"option 'projection_prng_key' is -1"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("vera", options, message)


def test_an_embedding_is_refused_in_words() -> None:
    base = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    with pytest.raises(ftcore.Refused, match="PEFT's VERA does not fit this model"):
        ftcore.inject(base, method="vera", target_modules=["0", "1"])


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}], ids=str)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("vera", **options)


@method_checks(VeRA())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
