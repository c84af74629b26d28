"""Freezing trains the chosen weights of the model and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.adapters import Injected
from ftcore.testing import method_checks
from ftcore_freeze import Freeze
from safetensors.torch import load_file
from torch import nn
from trials import injected, trainable

BLOCK = 2 * 32 * 32 + 32 + 2 * (16 * 32 + 16) + 32 + 3 * 32 * 64  # q and o, k and v with biases, norms, the MLP


def frozen(folder: Path, **options: Any) -> Injected:
    """A tiny model with the method."""
    return injected("freeze", ftcore.load("qwen", checkpoint=folder), **options)


def test_the_last_blocks_train_whole(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2", num_hidden_layers=3)
    one, two = frozen(folder, last=1), frozen(folder)
    assert {name.split(".")[2] for name in trainable(one.model)} == {"2"}
    assert {name.split(".")[2] for name in trainable(two.model)} == {"1", "2"}
    assert all(name.startswith("model.layers.") for name in trainable(two.model))
    assert (one.trainable, two.trainable) == (BLOCK + 32, 2 * (BLOCK + 32))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"parts": ["norm"]}, 5 * 32),
        ({"parts": ["attention.q", "mlp.down"]}, 2 * (32 * 32 + 32 + 32 * 64)),
        ({"parts": "head"}, 320 * 32),
        ({"pattern": "layers.1.*"}, BLOCK + 32),
        ({"pattern": "model.layers.1.*"}, BLOCK + 32),
        ({"pattern": "*.bias"}, 2 * (32 + 16 + 16)),
        ({"pattern": "mlp.*_proj.weight"}, 2 * 3 * 32 * 64),
    ],
    ids=str,
)
def test_what_parts_or_a_pattern_name_trains(
    options: dict[str, Any], count: int, checkpoint: Callable[..., Path]
) -> None:
    assert frozen(checkpoint("qwen2"), **options).trainable == count


def test_a_pattern_begins_where_a_name_does(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=r"freeze.pattern 'ayers.1.\*' fits no parameter"):
        frozen(checkpoint("qwen2"), pattern="ayers.1.*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 3}, r"freeze\.last is 3 and the model has 2 blocks; give at most 2"),
        ({"last": 0}, r"option 'last' is 0"),
        ({"last": 1, "parts": ["norm"]}, r"freeze\.last and freeze\.parts each say what trains; give one of them"),
        ({"parts": ["norm"], "pattern": "*"}, r"freeze\.parts and freeze\.pattern each say what trains"),
        ({"parts": ["norms"]}, r"no part 'norms'; did you mean 'norm'\?"),
        ({"pattern": "layers.7.*"}, r"fits no parameter of Qwen2ForCausalLM; its parameters are named as 'model\."),
    ],
)
def test_what_cannot_be_meant_is_refused(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        frozen(checkpoint("qwen2"), **options)


def test_a_module_without_parts_goes_by_pattern() -> None:
    base = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    model = ftcore.inject(base, method="freeze", pattern="2.*")
    assert {name: p.dtype for name, p in trainable(model).items()} == {
        "2.weight": torch.float32, "2.bias": torch.float32,
    }  # fmt: skip
    with pytest.raises(ftcore.Refused, match="no part 'block'"):
        ftcore.inject(nn.Sequential(nn.Linear(3, 4)), method="freeze")


def test_a_run_keeps_the_trained_tensors_only_and_merges_them(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2")
    ftcore.run(
        method=Freeze(last=1), task="causal", model="qwen", checkpoint=folder, data=rows, steps=2, lr=1e-3,
        output=tmp_path / "run",
    )  # fmt: skip
    kept = load_file(tmp_path / "run/adapter_model.safetensors")
    assert all(name.startswith("model.layers.1.") for name in kept)
    base = load_file(folder / "model.safetensors")
    for stream in (False, True):
        merged = load_file(
            ftcore.merge(tmp_path / "run", output=tmp_path / f"merged{stream}", stream=stream) / "model.safetensors"
        )
        assert merged.keys() == base.keys()
        changed = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
        assert changed == kept.keys()


@method_checks(Freeze())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
