"""BOFT rotates what a layer is given by a product of sparse rotations, without a compiled kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_boft import BOFT
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, count, injected, on_a_layer, trained


def turned(skewed: torch.Tensor, size: int) -> torch.Tensor:
    """The Cayley transform (I - Q)(I + Q)^-1 of the skew-symmetric part of a matrix."""
    skew = (skewed - skewed.T) / 2
    return (torch.eye(size) - skew) @ torch.linalg.inv(torch.eye(size) + skew)


def butterfly(width: int, chunk: int, half: int) -> torch.Tensor:
    """The permutation that sorts the half-blocks of each chunk of a width into even ones and odd ones."""
    order = torch.arange(width).reshape(width // chunk, chunk // half, half)
    return torch.eye(width)[torch.cat([order[:, 0::2], order[:, 1::2]], dim=1).flatten()]


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_the_input_is_turned_as_published(factors: int) -> None:
    """h = s * W (B_m … B_1 x), where B_i turns pairs of half-blocks that are 2^(i-1) apart."""
    width, size = 16, 4
    model, weight, bias = on_a_layer("boft", width, 7, boft_block_size=size, boft_n_butterfly_factor=factors)
    w = trained(model)
    assert w["boft_R"].shape == (factors, width // size, size, size)
    product = torch.eye(width)
    for index, blocks in enumerate(w["boft_R"].detach()):
        order = butterfly(width, size * 2**index, size // 2) if factors > 1 else torch.eye(width)
        product = order @ torch.block_diag(*(turned(block, size) for block in blocks)) @ order.T @ product
    given = torch.randn(3, width)
    wanted = ((given @ product) @ weight.T) * w["boft_s"].squeeze(-1) + bias
    assert torch.allclose(model(given), wanted, atol=1e-5)
    assert torch.allclose(product @ product.T, torch.eye(width), atol=1e-5)


def test_with_two_factors_every_number_of_two_blocks_meets() -> None:
    options = {"boft_block_size": 4, "boft_n_butterfly_factor": 2}
    model = ftcore.inject(nn.Sequential(nn.Linear(8, 8, bias=False)), method="boft", target_modules=["0"], **options)
    trained(model)
    rotation, _ = model.base_model.model[0].get_delta_weight("default")
    assert rotation.all()


def test_what_trains_is_blocks_and_scales(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    options: dict[str, Any] = {"boft_block_size": 8, "boft_n_butterfly_factor": 2, "parts": ["attention.q", "mlp.down"]}
    model = injected("boft", loaded, **options).model
    assert count(model) == 2 * ((2 * 32 * 8 + 32) + (2 * 64 * 8 + 32))


def test_dropout_leaves_blocks_unturned_in_training_only() -> None:
    base = nn.Sequential(nn.Linear(16, 4))
    model = ftcore.inject(base, method="boft", target_modules=["0"], boft_block_size=4, dropout=0.5)
    trained(model)
    given = torch.randn(3, 16)
    assert not torch.equal(model.train()(given), model(given)) or not torch.equal(model(given), model(given))
    assert torch.equal(model.eval()(given), model(given))


def test_what_peft_makes_of_one_factor_is_the_same() -> None:
    from ftcore_boft.layers import Butterfly
    from peft.tuners.boft.layer import Linear

    model = ftcore.inject(nn.Sequential(nn.Linear(16, 4)), method="boft", target_modules=["0"], boft_block_size=4)
    trained(model)
    given = torch.randn(3, 16)
    ours = model(given)
    layer = model.base_model.model[0]
    assert type(layer) is Butterfly
    layer.fbd_cuda_available, layer.boft_P = False, torch.eye(16)[None]
    assert torch.allclose(Linear.forward(layer, given), ours, atol=1e-6)


def test_pefts_own_layer_is_in_place_again_afterwards() -> None:
    from peft.tuners.boft import layer, model

    before = (model.Linear, layer.get_fbd_cuda)
    ftcore.inject(nn.Sequential(nn.Linear(16, 4)), method="boft", target_modules=["0"])
    assert (model.Linear, layer.get_fbd_cuda) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boft_block_size": 5}, r"boft_block_size 5 does not fit '0', which is given 12 numbers; 4 would"),
        (
            {"boft_block_size": 0, "boft_block_num": 5},
            r"boft_block_num 5 does not fit '0', which is given 12 numbers; 4 would",
        ),
        ({"boft_block_num": 3}, r"boft_block_size is 4 and boft_block_num is 3; give one of them"),
        (
            {"boft_n_butterfly_factor": 2},
            r"with boft.boft_n_butterfly_factor 2 boft.boft_block_size 4 does not fit '0'.*; 2 would",
        ),
        ({"boft_n_butterfly_factor": 4}, r"boft_n_butterfly_factor 4 .* does not fit '0'.*no number would"),
        ({"boft_n_butterfly_factor": 0}, r"option 'boft_n_butterfly_factor' is 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("boft", options, message)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
        {"boft_block_size": 0, "boft_block_num": 3},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("boft", **options)


@method_checks(BOFT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
