"""Masking keeps or drops pretrained weights, starts as the base, and keeps one bit a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import numpy
import pytest
import torch
from ftcore import Adapter
from ftcore.testing import method_checks
from ftcore_mask import Mask
from safetensors.torch import load_file
from torch import nn
from trials import WITHOUT_A_MATRIX, awkward, check_a_copy_is_its_own, injected, on_a_layer, trainable


def masked(**options: Any) -> tuple[nn.Sequential, torch.Tensor, torch.nn.Parameter]:
    """A masked linear layer of 5 to 7, its pretrained weight, and its scores."""
    model, weight, _ = on_a_layer("mask", **options)
    (scores,) = trainable(model).values()
    return model, weight, scores


def test_only_weights_whose_score_reaches_the_threshold_act() -> None:
    model, weight, scores = masked(threshold=0.25)
    with torch.no_grad():
        scores.copy_(torch.randn_like(scores))
        scores[0, 0], scores[1, 1] = 0.25, 0.25 - 1e-6
    given = torch.randn(3, 5)
    wanted = torch.zeros(3, 7)
    for row in range(7):
        for column in range(5):
            if float(scores[row, column].detach()) >= 0.25:
                wanted[:, row] += given[:, column] * weight[row, column]
    assert torch.allclose(model(given), wanted + model[0].bias, atol=1e-6)
    assert model[0].weight[0, 0] == weight[0, 0]
    assert model[0].weight[1, 1] == 0


def test_the_gradient_of_a_score_is_that_of_its_mask_entry() -> None:
    model, weight, scores = masked()
    with torch.no_grad():
        scores.normal_()
    given, wanted = torch.randn(3, 5), torch.randn(3, 7)
    (model(given) - wanted).square().sum().backward()
    mask = (scores.detach() >= 1e-2).double().requires_grad_()
    said = given.double() @ (weight.double() * mask).T + model[0].bias.detach().double()
    (said - wanted).square().sum().backward()
    assert scores.grad is not None
    assert mask.grad is not None
    assert torch.allclose(scores.grad.double(), mask.grad, atol=1e-4)
    by_hand = 2 * (said.detach() - wanted).T @ given.double() * weight
    assert torch.allclose(mask.grad, by_hand)
    assert (scores.grad[scores < 1e-2] != 0).all()


@pytest.mark.parametrize("threshold", [1e-2, 5e-3, 0.3])
def test_the_start_is_the_base_bit_for_bit(threshold: float) -> None:
    model, weight, scores = masked(threshold=threshold)
    assert torch.equal(model[0].weight, weight)
    assert (scores >= threshold).all()
    assert (scores <= 4 * threshold).all()
    assert len(scores.unique()) > 30


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_initial_sparsity_starts_without_the_smallest_weights(share: float) -> None:
    model, weight, scores = masked(initial_sparsity=share)
    off = model[0].weight == 0
    assert int(off.sum()) == int(share * 35)
    assert weight[off].abs().max() <= weight[~off].abs().min()
    assert (scores >= -2e-2).all()
    assert torch.equal(model[0].weight[~off], weight[~off])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)),
        ({"parts": ["mlp.up", "attention.k"]}, 2 * (32 * 64 + 32 * 16)),
        ({"target_modules": ["layers.1.self_attn.q_proj", "down_proj"]}, 32 * 32 + 2 * 32 * 64),
    ],
)
def test_there_is_one_score_for_each_chosen_weight(
    options: dict[str, Any], count: int, checkpoint: Callable[..., Path]
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    found = injected("mask", loaded, **options)
    names = {name.removesuffix(".parametrizations.weight.0.scores") for name in trainable(found.model)}
    assert found.trainable == count
    assert names == set(found.matched)


def test_merged_the_weight_is_the_pretrained_one_with_zeros() -> None:
    model, weight, scores = masked()
    with torch.no_grad():
        scores.normal_()
    kept = scores.detach() >= 1e-2
    given = torch.randn(3, 5)
    before = model(given)
    merged = Mask().merge(model)
    assert type(merged[0]) is nn.Linear
    assert set(merged.state_dict()) == {"0.weight", "0.bias"}
    assert torch.equal(merged[0].weight[kept], weight[kept])
    assert (merged[0].weight[~kept] == 0).all()
    assert torch.equal(merged(given), before)


def test_what_is_kept_is_one_bit_a_weight() -> None:
    model, _, scores = masked()
    with torch.no_grad():
        scores.normal_()
    adapter = Mask().save_adapter(model)
    (bits,) = adapter.tensors.values()
    assert bits.dtype == torch.uint8
    assert bits.numel() == math.ceil(35 / 8)
    flat = (scores.detach() >= 1e-2).flatten().tolist()
    assert [bool(bits[i // 8] >> (7 - i % 8) & 1) for i in range(35)] == flat
    assert adapter.config["shapes"] == {"0": [7, 5]}
    again, _, _ = masked(threshold=0.3)
    assert Mask().load_adapter(again, adapter) == {"0.mask"}
    given = torch.randn(3, 5)
    assert torch.equal(again(given), model(given))
    assert torch.equal(Mask().merge(again)(given), model(given))


@pytest.mark.parametrize(
    ("tensors", "shapes", "message"),
    [
        ({}, {"0": [7, 5]}, r"lacks tensor '0\.mask'"),
        ({"0.mask": 5}, {"0": [5, 7]}, r"of a weight of shape \(5, 7\), not \(7, 5\)"),
        ({"0.mask": 4}, {"0": [7, 5]}, r"of shape \(7, 5\)"),
        ({"0.mask": 5}, {}, r"of shape \(\), not \(7, 5\)"),
    ],
)
def test_another_adapter_is_refused(tensors: dict[str, int], shapes: dict[str, list[int]], message: str) -> None:
    model, _, _ = masked()
    given = {name: torch.zeros(size, dtype=torch.uint8) for name, size in tensors.items()}
    with pytest.raises(ftcore.Refused, match=message):
        Mask().load_adapter(model, Adapter({"shapes": shapes}, given))


def test_a_run_keeps_bits_and_its_checkpoints_keep_scores(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2")
    ftcore.run(
        method="mask", task="causal", model="qwen", checkpoint=folder, data=rows, steps=3, lr=5e-3, output=tmp_path
    )
    saved, scores = (
        load_file(tmp_path / "adapter_model.safetensors"),
        load_file(tmp_path / "checkpoints" / "step-000000003" / "adapter.safetensors"),
    )
    assert {name.removesuffix(".parametrizations.weight.0.scores") for name in scores} == {
        name.removesuffix(".mask") for name in saved
    }
    name = "model.layers.0.mlp.up_proj"
    kept = scores[f"{name}.parametrizations.weight.0.scores"] >= 1e-2
    assert 0 < int((~kept).sum()) < kept.numel()
    assert torch.equal(saved[f"{name}.mask"], torch.from_numpy(numpy.packbits(kept.numpy())))
    assert sum(t.nbytes for t in saved.values()) * 32 == sum(t.nbytes for t in scores.values())


def test_in_half_precision_the_scores_stay_float32_and_the_weights_are_exact() -> None:
    model, weight, scores = masked(dtype=torch.bfloat16)
    with torch.no_grad():
        scores.normal_()
    kept = scores.detach() >= 1e-2
    assert scores.dtype == torch.float32
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].weight, torch.where(kept, weight, 0))


def test_a_copy_of_the_model_masks_for_itself() -> None:
    model, _, scores = masked()
    check_a_copy_is_its_own(model, scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["2"]}, r"'2' shares its weight with '0\.weight', so it cannot be masked"),
        ({"target_modules": ["0"]}, r"'0' shares its weight with '2\.weight'"),
        *WITHOUT_A_MATRIX,
        ({"threshold": 0}, r"option 'threshold' is 0"),
        ({"threshold": "nan"}, r"option 'threshold' is"),
        ({"initial_sparsity": 1.0}, r"option 'initial_sparsity' is 1\.0"),
    ],
)
def test_what_cannot_be_masked_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.inject(awkward(), method="mask", **options)


@method_checks(Mask())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
