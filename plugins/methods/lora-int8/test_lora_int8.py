"""LoRA on an 8-bit base: the published rounding, the update exact, and what is merged into said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore import adapters
from ftcore.discovery import bind, choose
from ftcore.hooks import Run
from ftcore.pipeline import load_model
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore.testing.stage import Decoder, tiny_checkpoint
from ftcore.training import Core
from ftcore_lora_int8 import LoRAInt8
from safetensors.torch import load_file

NAME = "model.layers.1.mlp.up_proj"


def test_each_row_is_rounded_to_127_steps_of_its_largest_magnitude() -> None:
    """LLM.int8, equation 1 by rows: codes = round(127 w / max |w|)."""
    torch.manual_seed(0)
    weight = torch.randn(12, 40).half().float()
    scale = weight.abs().amax(1, keepdim=True)
    wanted = (127 * weight / scale).round() * scale / 127
    assert torch.allclose(LoRAInt8().rounded(weight), wanted, atol=1e-6)


def test_a_layer_in_training_is_the_rounded_weight_and_the_update() -> None:
    hooks = bind(
        [choose("method", LoRAInt8(r=3, alpha=12, parts=("mlp.up",)), {}), choose("model", Decoder(), {})], Core()
    )
    checkpoint = tiny_checkpoint("granite")
    run = Run(Settings(checkpoint=str(checkpoint), precision="fp32"), "train", "causal-lm")
    loaded = load_model(hooks, run)
    model = adapters.inject(hooks, run, loaded, None, 10).model.train()
    layer: Any = model.get_submodule(f"base_model.model.{NAME}")
    weight = load_file(checkpoint / "model.safetensors")[f"{NAME}.weight"]
    assert layer.base_layer.weight.dtype == torch.int8
    first, second = layer.lora_A["default"].weight, torch.nn.init.normal_(layer.lora_B["default"].weight)
    given = torch.randn(5, weight.shape[1], requires_grad=True)
    wanted = given @ LoRAInt8().rounded(weight).T + 12 / 3 * given @ first.T @ second.T
    assert torch.allclose(layer(given), wanted, atol=2e-3 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("into", ["unquantized", "dequantized"])
def test_merging_adds_the_update_to_the_weights_that_were_asked_for(
    into: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder, name = checkpoint("qwen2", hidden_size=64), "model.layers.0.self_attn.o_proj"
    options = {"r": 2, "alpha": 4, "parts": ["attention.o"]}
    ftcore.run(
        method="lora-int8", task="causal", model="qwen", checkpoint=folder, data=rows, steps=3, lr=1e-2,
        precision="fp32", output=tmp_path / "run", **{"lora-int8": options},
    )  # fmt: skip
    ftcore.merge(tmp_path / "run", output=tmp_path / "merged", **{"lora-int8": {"merge": into}})
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    base, merged = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "merged"))
    weight = base[f"{name}.weight"]
    start = LoRAInt8().rounded(weight) if into == "dequantized" else weight
    first, second = (adapter[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    assert torch.allclose(merged[f"{name}.weight"], start + 4 / 2 * second @ first, atol=1e-6)


@method_checks(LoRAInt8())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
