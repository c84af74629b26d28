"""Starts of LoRA that look at the rows or quantise the base: EVA, LoRA-GA and LoftQ."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from ftcore import Adapter, Data, Loaded, Run
from ftcore.batches import moved
from peft import EvaConfig, LoraConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.loraga import preprocess_loraga

if TYPE_CHECKING:
    from ftcore import Batch
    from torch import Tensor, nn

BATCHES = 8
ITERATIONS = 1
BLOCK = 64
# NormalFloat with 4 bits (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def begin(init: str, model: PeftModel, loaded: Loaded, data: Data | None, run: Run) -> None:
    """The adapted model begins as `init` says; without rows it is only given the form, for tensors to be loaded."""
    if init == "eva" and data is not None:
        eva(model, data, run)
    if init == "loftq" and run.intent != "plan":
        loftq(model)
    if init == "lora_ga":
        for layer in layers(model).values():
            layer.register_buffer("first_A", weight_of(layer, "A").detach().float().clone().zero_())
            layer.register_buffer("first_B", weight_of(layer, "B").detach().float().clone().zero_())
            layer.register_forward_hook(without_first)
        if data is not None:
            lora_ga(model, data, run)


def layers(model: PeftModel) -> dict[str, Any]:
    """The adapted layers by their name in the base."""
    return {name: layer for name, layer in model.base_model.model.named_modules() if isinstance(layer, LoraLayer)}


def weight_of(layer: Any, letter: str) -> nn.Parameter:
    """A or B of a layer."""
    found: nn.Parameter = layer.get_submodule(f"lora_{letter}")["default"].weight
    return found


def first_batches(model: PeftModel, data: Data, run: Run) -> Iterator[Batch]:
    """Some batches of the rows in the order in which they are written."""
    size = run.settings.batch_size
    device = next(model.parameters()).device
    for start in range(0, min(len(data.train), BATCHES * size), size):
        yield moved(data.collate(data.train[start : start + size]), device)


# EVA


def eva(model: PeftModel, data: Data, run: Run) -> None:
    """Each A holds the directions in which what its layer is given varies most (Paischer et al., arXiv:2410.07170)."""
    config = model.peft_config["default"]
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    initialize_lora_eva_weights(
        model,
        [dict(batch.inputs) for batch in first_batches(model, data, run)],
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=tokens_given,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )


def tokens_given(given: Any, inputs: Mapping[str, Tensor], name: str) -> Tensor:
    """What a layer is given, a row for each token that is no padding."""
    x: Tensor = given if isinstance(given, torch.Tensor) else given[0]
    mask = inputs.get("attention_mask")
    return x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)


# LoftQ


@torch.no_grad()
def loftq(model: PeftModel) -> None:
    """Each W is rounded to NF4, and B A holds the best of what that lost (Li et al. 2023, arXiv:2310.08659)."""
    config = model.peft_config["default"]
    config.init_lora_weights, config.loftq_config = "loftq", {"loftq_bits": 4, "loftq_iter": ITERATIONS}
    for layer in layers(model).values():
        weight = layer.get_base_layer().weight
        rounded = nf4(weight.float())
        u, s, v = torch.linalg.svd(weight.float() - rounded, full_matrices=False)
        rank = layer.r["default"]
        root = s[:rank].sqrt()
        weight_of(layer, "B").copy_(u[:, :rank] * root / layer.scaling["default"])
        weight_of(layer, "A").copy_(root[:, None] * v[:rank])
        weight.data = rounded.to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """The weight with each number replaced by the nearest of 16 values, scaled by the largest of its block of 64."""
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    codes = torch.tensor(NF4, dtype=weight.dtype, device=weight.device)
    nearest = torch.bucketize(blocks / largest, (codes[1:] + codes[:-1]) / 2)
    return (codes[nearest] * largest).flatten()[: len(flat)].view_as(weight)


# LoRA-GA


def lora_ga(model: PeftModel, data: Data, run: Run) -> None:
    """B A begins along the gradient of the loss (Wang et al. 2024, arXiv:2407.05000); what it begins as is taken off.

    PEFT takes it off the weight; here the weight stays, so that the adapter alone tells what was learnt.
    """
    inner, found = model.base_model.model, layers(model)
    config = LoraConfig(target_modules=[], lora_ga_config=LoraGAConfig(), init_lora_weights="lora_ga")
    config.target_modules = [f"{name}.base_layer" for name in found]

    def passes() -> None:
        for batch in first_batches(model, data, run):
            (data.loss(inner, batch) / batch.weight).backward()

    with warnings.catch_warnings():  # the first layer is given tokens, which have no gradient
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        preprocess_loraga(inner, config, passes)
    for layer in found.values():
        weight = layer.get_base_layer().weight
        kept = weight.data
        layer.lora_ga_init("default", config.lora_ga_config)
        weight.data = kept
        layer.first_A.copy_(weight_of(layer, "A").detach())
        layer.first_B.copy_(weight_of(layer, "B").detach())


def without_first(layer: Any, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    """The layer's answer less what B A began as."""
    x = given[0].to(layer.first_A.dtype)
    return answer - (layer.scaling["default"] * (x @ layer.first_A.T) @ layer.first_B.T).to(answer.dtype)


def doubled(model: PeftModel, adapter: Adapter) -> Adapter:
    """The adapter with what it began as taken off by as many ranks again, for plain LoRA to read."""
    tensors = dict(adapter.tensors)
    for name, layer in layers(model).items():
        for letter, first, dim in (("A", layer.first_A, 0), ("B", -layer.first_B, 1)):
            key = f"base_model.model.{name}.lora_{letter}.weight"
            tensors[key] = torch.cat([tensors[key], first.to(tensors[key])], dim)
    config = dict(adapter.config)
    growth = 2**0.5 if config["use_rslora"] else 2
    config |= {"r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"]}
    return replace(adapter, config=config, tensors=tensors)


def halved(model: PeftModel, adapter: Adapter) -> Adapter:
    """The adapter with the ranks that trained, and the layers with the others."""
    tensors = dict(adapter.tensors)
    for name, layer in layers(model).items():
        for letter, first, dim, sign in (("A", layer.first_A, 0, 1), ("B", layer.first_B, 1, -1)):
            key = f"base_model.model.{name}.lora_{letter}.weight"
            if key in tensors and tensors[key].shape[dim] == 2 * first.shape[dim]:
                tensors[key], other = tensors[key].chunk(2, dim)
                first.copy_(sign * other)
    return replace(adapter, tensors=tensors)


@torch.no_grad()
def fold(model: PeftModel) -> None:
    """What B A began as is taken off the weights."""
    for layer in layers(model).values():
        weight = layer.get_base_layer().weight
        first = layer.scaling["default"] * layer.first_B @ layer.first_A
        weight.data = (weight.float() - (first.T if layer.fan_in_fan_out else first)).to(weight.dtype)
