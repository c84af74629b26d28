"""Full fine-tuning trains every weight and stands alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_full import Full
from safetensors.torch import load_file
from torch import nn


def test_every_weight_trains_and_the_start_is_the_base(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = loaded.model(ids).logits
        model = ftcore.inject(loaded.model, method="full")
        assert torch.equal(model(ids).logits, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_weights_train_in_float32() -> None:
    model = ftcore.inject(nn.Linear(3, 3).bfloat16(), method="full")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_run_changes_every_tensor_and_keeps_them_all(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    ftcore.run(
        method="full", task="causal", model="llama", checkpoint=folder, data=rows, steps=2, output=tmp_path, lr=1e-3
    )
    base, trained = load_file(folder / "model.safetensors"), load_file(tmp_path / "adapter_model.safetensors")
    assert base.keys() == trained.keys()
    assert [name for name, tensor in trained.items() if torch.equal(tensor, base[name])] == []
    attached = ftcore.attach(tmp_path).model.state_dict()
    assert all(torch.equal(attached[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize("method", ["lora+full", "full+lora"])
def test_company_is_refused_with_a_reason(
    method: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    wanted = r"method 'full' .*cannot be combined with 'lora': it trains every weight already; name one of them"
    with pytest.raises(ftcore.Refused, match=wanted):
        ftcore.run(
            method=method, task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, output=tmp_path / "o"
        )
    assert not (tmp_path / "o" / "ftcore.json").exists()


def test_an_option_is_refused_because_there_are_none() -> None:
    with pytest.raises(ftcore.Refused, match=r"method 'full' .*has no option 'r'; it takes no options"):
        ftcore.inject(nn.Linear(2, 2), method="full", r=8)


@method_checks(Full())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
