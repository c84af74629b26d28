"""A family's checkpoints that become native while they are read can be held in 4 bits and trained so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from ftcore.adapters import inject
from ftcore.discovery import bind, choose
from ftcore.hooks import Run
from ftcore.pipeline import load_model
from ftcore.settings import Settings
from ftcore.training import Core
from makers import OWN, checkpoint
from torch import nn

IDS = torch.arange(5, 65).reshape(2, 30)


@pytest.mark.parametrize("family", OWN)
def test_in_4_bits_it_answers_with_the_rounded_weights_and_one_step_changes_the_update_only(
    family: str, tmp_path: Path
) -> None:
    own = OWN[family]
    folder = checkpoint(own, own.tensors(), tmp_path / "own")
    hooks = bind([choose("method", "qlora", {}), choose("model", family, dict(own.options))], Core())
    run = Run(Settings(checkpoint=str(folder), precision="fp32"), "infer", "causal-lm")
    loaded, whole = load_model(hooks, run), load_model(bind(hooks.chosen[1:], Core()), run)
    for name, layer in loaded.model.named_modules():
        if isinstance(layer, Linear4bit):
            rounded = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            whole.model.get_submodule(name).weight.data = rounded.float()
    assert sum(isinstance(layer, Linear4bit) for layer in loaded.model.modules()) == 2 * len(
        native_linears(whole.model)
    )
    with torch.no_grad():
        wanted = whole.model(IDS).logits
        assert torch.allclose(loaded.model(IDS).logits, wanted, atol=1e-3 * float(wanted.abs().max()))
    one_step(inject(hooks, run, loaded, None, 10).model)


def native_linears(model: Any) -> list[str]:
    """The projections of one block."""
    return [name for name, layer in model.model.layers[0].named_modules() if isinstance(layer, nn.Linear)]


def one_step(model: nn.Module) -> None:
    """A step of training lowers the loss, and moves what trains and nothing else."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for _ in range(2):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    after = model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
