"""OFT rotates blocks of what a layer is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_oft import OFT
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, count, injected, on_a_layer, trained


def cayley(vector: torch.Tensor, size: int, terms: int | None) -> torch.Tensor:
    """The Cayley transform of the skew-symmetric matrix whose upper triangle is `vector`, or its truncated series."""
    skew = torch.zeros(size, size)
    skew[tuple(torch.triu_indices(size, size, 1))] = vector
    skew = skew - skew.T
    if terms is None:
        return torch.linalg.solve(torch.eye(size) + skew, torch.eye(size) - skew, left=False)
    powers = [torch.matrix_power(skew, n) for n in range(terms)]
    return powers[0] + 2 * sum(powers[1:-1]) + powers[-1]


@pytest.mark.parametrize(
    ("options", "terms"),
    [({}, 5), ({"num_cayley_neumann_terms": 7}, 7), ({"use_cayley_neumann": False}, None)],
    ids=str,
)
def test_the_input_is_turned_as_published(options: dict[str, Any], terms: int | None) -> None:
    model, weight, bias = on_a_layer("oft", 12, 7, oft_block_size=4, **options)
    vectors = trained(model)["weight"]
    assert vectors.shape == (3, 4 * 3 // 2)
    turned = torch.block_diag(*(cayley(vector, 4, terms) for vector in vectors.detach()))
    given = torch.randn(3, 12)
    assert torch.allclose(model(given), (given @ turned) @ weight.T + bias, atol=1e-5)


def test_with_the_exact_inverse_lengths_are_kept() -> None:
    options = {"oft_block_size": 4, "use_cayley_neumann": False}
    model = ftcore.inject(nn.Sequential(nn.Linear(12, 12, bias=False)), method="oft", target_modules=["0"], **options)
    with torch.no_grad():
        model.base_model.model[0].base_layer.weight.copy_(torch.eye(12))
    trained(model)
    given = torch.randn(5, 12)
    assert torch.allclose(model(given).norm(dim=1), given.norm(dim=1), atol=1e-5)


def test_what_trains_is_one_triangle_a_block(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    model = injected("oft", loaded, oft_block_size=8, parts=["attention.q", "mlp.down"]).model
    assert count(model) == 2 * ((32 + 64) * (8 - 1) // 2)


def test_shared_blocks_train_once_and_r_counts_blocks() -> None:
    base = nn.Sequential(nn.Linear(12, 6))
    model = ftcore.inject(base, method="oft", target_modules=["0"], oft_block_size=0, r=3, block_share=True)
    assert count(model) == 4 * 3 // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oft_block_size": 5}, r"oft.oft_block_size 5 does not fit '0', which is given 12 numbers; 4 would"),
        ({}, r"oft.oft_block_size 32 does not fit '0', which is given 12 numbers; 12 would"),
        ({"r": 7, "oft_block_size": 0}, r"oft.r 7 does not fit '0', which is given 12 numbers; 6 would"),
        ({"r": 3}, r"oft.r is 3 and oft.oft_block_size is 32; give one of them"),
        ({"oft_block_size": 0}, r"give one of them"),
        ({"num_cayley_neumann_terms": 1}, r"option 'num_cayley_neumann_terms' is 1"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("oft", options, message)


@pytest.mark.parametrize(
    "options",
    [
        {"oft_block_size": 4},
        {"oft_block_size": 4, "use_cayley_neumann": False},
        {"oft_block_size": 4, "block_share": True},
        {"oft_block_size": 4, "coft": True, "eps": 0.1},
    ],
    ids=str,
)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("oft", **options)


@method_checks(OFT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
