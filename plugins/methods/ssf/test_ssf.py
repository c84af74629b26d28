"""SSF scales and shifts exactly the chosen layers, starts as the base and merges exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_ssf import SSF
from torch import nn
from transformers.pytorch_utils import Conv1D
from trials import check_copies_answer_alike, check_start_is_the_base, drawn, injected


@pytest.mark.parametrize("kind", ["linear", "without bias", "conv1d"])
def test_the_features_are_the_published_formula_and_merge_exactly(kind: str) -> None:
    """y = gamma * (W x + b) + beta; merged, W' = diag(gamma) W and b' = gamma * b + beta."""
    torch.manual_seed(0)
    layer = Conv1D(7, 5) if kind == "conv1d" else nn.Linear(5, 7, bias=kind == "linear")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    weight = (layer.weight.T if kind == "conv1d" else layer.weight).detach().clone()
    bias = torch.zeros(7) if layer.bias is None else layer.bias.detach().clone()
    given = torch.randn(3, 5)
    model = ftcore.inject(nn.Sequential(layer), method="ssf", target_modules=["0"])
    assert torch.allclose(model(given), given @ weight.T + bias, atol=1e-5)
    trained = drawn(model)
    gamma, beta = trained["0.gamma"], trained.get("0.beta", torch.zeros(7))
    assert trained.keys() == ({"0.gamma"} if kind == "without bias" else {"0.gamma", "0.beta"})
    wanted = gamma * (given @ weight.T + bias) + beta
    assert torch.allclose(model(given), wanted, atol=1e-5)
    merged = SSF().merge(model=model)
    assert type(merged[0]) is type(layer)
    found = merged[0].weight.T if kind == "conv1d" else merged[0].weight
    assert torch.allclose(found, torch.diag(gamma) @ weight)
    assert torch.allclose(merged(given), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, 2 * (2 * 64 + 32 + 2 * 64 + 32)),  # q, k, v have a bias; o, gate, up and down have none
        ({"shift": "on"}, 2 * 2 * (64 + 32 + 2 * 64 + 32)),
        ({"shift": "off"}, 2 * (64 + 32 + 2 * 64 + 32)),
        ({"parts": ["attention.q", "mlp.up"]}, 2 * (2 * 32 + 64)),
        ({"target_modules": ["layers.1.mlp.down_proj"]}, 32),
    ],
    ids=str,
)
def test_as_many_numbers_train_as_features_are_chosen(
    options: dict[str, Any], numbers: int, checkpoint: Callable[..., Path]
) -> None:
    found = check_start_is_the_base("ssf", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)
    assert found.trainable == numbers


def test_a_shift_without_a_bias_is_learnt_and_not_merged() -> None:
    model = ftcore.inject(nn.Sequential(nn.Linear(3, 3, bias=False)), method="ssf", target_modules=["0"], shift="on")
    assert drawn(model).keys() == {"0.gamma", "0.beta"}
    with pytest.raises(ftcore.Refused, match=r"'0' has no bias to hold what --ssf\.shift on has learnt; use"):
        SSF(shift="on").merge(model=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["norm"]}, r"'model\.layers\.0\.input_layernorm' is Qwen2RMSNorm, no linear layer"),
        ({"parts": ["embedding"]}, r"'model\.embed_tokens' is Embedding, no linear layer; choose parts without"),
        ({"parts": ["head"]}, r"'lm_head' shares its weight with another module"),
        ({"parts": ["attention", "mlp.upp"]}, r"no part 'mlp\.upp'; did you mean 'mlp\.up'"),
        ({"target_modules": ["k_porj"]}, r"is named 'k_porj'; did you mean 'k_proj'"),
        ({"shift": "maybe"}, r"option 'shift' is 'maybe'.*'auto', 'on' or 'off'"),
    ],
)
def test_what_cannot_be_scaled_is_refused(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("ssf", ftcore.load("qwen", checkpoint=checkpoint("qwen2", tie_word_embeddings=True)), **options)


def test_copies_and_pickles_answer_the_same(checkpoint: Callable[..., Path]) -> None:
    model = injected("ssf", ftcore.load("qwen", checkpoint=checkpoint("qwen2"))).model
    drawn(model)
    check_copies_answer_alike(model)


@pytest.mark.parametrize("order", ["ssf+lora", "lora+ssf"])
def test_beside_lora_it_merges_in_either_order(
    order: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    """Merging compares the logits of the merged model with those of the adapted one, and stops when they differ."""
    output = tmp_path / "run"
    keys: dict[str, Any] = {"task": "causal", "model": "qwen", "checkpoint": checkpoint("qwen2"), "data": rows}
    ftcore.run(method=order, steps=3, lr=0.05, output=output, **keys)
    ftcore.merge(output, output=tmp_path / "merged")
    ftcore.merge(output, output=tmp_path / "streamed", stream=True)


@method_checks(SSF())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
