"""(IA)3 scales keys and values by their output and the MLP by its input, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_ia3 import IA3
from torch import nn
from trials import check_merged_it_answers_the_same, check_refused_on_a_layer, count, injected, on_a_layer, trained


def test_an_output_is_scaled_with_its_bias() -> None:
    """(IA)3 multiplies what a layer answers, its bias included."""
    model, weight, bias = on_a_layer("ia3")
    scale = trained(model)["ia3_l"]
    given = torch.randn(3, 5)
    assert scale.shape == (7, 1)
    assert torch.allclose(model(given), (given @ weight.T + bias) * scale.squeeze(-1), atol=1e-5)


def test_a_feedforward_module_is_scaled_at_its_input() -> None:
    model, weight, bias = on_a_layer("ia3", feedforward_modules=["0"])
    scale = trained(model)["ia3_l"]
    given = torch.randn(3, 5)
    assert scale.shape == (1, 5)
    assert torch.allclose(model(given), (given * scale) @ weight.T + bias, atol=1e-5)


def test_keys_values_and_the_inner_mlp_are_scaled_in_each_block(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    model = injected("ia3", loaded).model
    keys, inner = 2 * 8, 64
    assert count(model) == 2 * (keys + keys + inner)
    scaled = {
        name: module for name, module in model.named_modules() if name.endswith("_proj") and "ia3" in repr(module)
    }
    assert {name.rpartition(".")[2]: module.is_feedforward for name, module in scaled.items()} == {
        "k_proj": False, "v_proj": False, "down_proj": True,
    }  # fmt: skip


def test_a_fused_projection_is_scaled_whole(checkpoint: Callable[..., Path]) -> None:
    """Where q, k and v are one module their common output has one vector, so that queries are scaled as well."""
    from ftcore.testing.stage import FusedDecoder, tiny_checkpoint

    loaded = ftcore.load(FusedDecoder(), checkpoint=tiny_checkpoint("phi3"))
    model = injected("ia3", loaded).model
    assert count(model) == 2 * ((4 + 2 + 2) * 8 + 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedforward_modules": ["1"]}, r"no module of Sequential is named '1'"),
        ({"target_modules": ["0.weight"]}, r"is named '0.weight'"),
        ({"r": 8}, r"has no option 'r'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    check_refused_on_a_layer("ia3", options, message)


def test_a_feedforward_module_that_is_not_adapted_is_refused() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ftcore.Refused, match="feedforward_modules names '1', which is not adapted"):
        ftcore.inject(base, method="ia3", target_modules=["0"], feedforward_modules=["1"])


@pytest.mark.parametrize("options", [{}, {"feedforward_modules": ["0"]}], ids=str)
def test_merged_it_answers_the_same(options: dict[str, Any]) -> None:
    check_merged_it_answers_the_same("ia3", **options)


@method_checks(IA3())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
