"""UniPELT gates LoRA, prefix and adapter token by token, and computes what is written of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore.testing.stage import Decoder
from ftcore_unipelt import UniPELT
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from trials import (
    ARCHITECTURES,
    attended,
    check_dropout_acts_in_training_only,
    check_every_attention_has_a_prefix,
    drawn,
    injected,
    staged,
)


def in_module(trained: dict[str, nn.Parameter], name: str) -> dict[str, nn.Parameter]:
    """What trains in a module, by the names it has there."""
    return {key.removeprefix(f"{name}."): p for key, p in trained.items() if key.startswith(f"{name}.")}


def updated(layer: nn.Linear, own: dict[str, nn.Parameter], given: Tensor, scale: float) -> Tensor:
    """W x + sigmoid(w x + b) * scale * B A x, written out."""
    gate = torch.sigmoid(linear(given, own["lora.gate.weight"], own["lora.gate.bias"]))
    change = linear(linear(given, own["lora.change.lora_A.weight"]), own["lora.change.lora_B.weight"])
    return layer(given) + gate * scale * change


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_is_the_formula_of_the_readme(causal: bool, implementation: str) -> None:
    """Gated updates of q and v, and a prefix of three whose keys and values each query's gate scales."""
    torch.manual_seed(0)
    loaded = staged(Decoder, "granite")
    loaded.model.set_attn_implementation(implementation)
    base = copy.deepcopy(loaded.model.model.layers[0].self_attn)
    model = injected("unipelt", loaded, num_virtual_tokens=3, r=2, alpha=5).model
    trained = drawn(model, 0.5)
    module = model.model.layers[0].self_attn
    own = {part: in_module(trained, f"model.layers.0.self_attn.{part}") for part in ("q_proj", "v_proj", "prefix")}
    given = torch.randn(2, 5, 32)

    q = updated(base.q_proj, own["q_proj"], given, 5 / 2).unflatten(2, (4, 8)).transpose(1, 2)
    v = updated(base.v_proj, own["v_proj"], given, 5 / 2).unflatten(2, (2, 8)).transpose(1, 2)
    k = base.k_proj(given).unflatten(2, (2, 8)).transpose(1, 2)
    p_k, p_v = (half.unflatten(1, (2, 8)).transpose(0, 1)[None] for half in own["prefix"]["tokens"].split(16, 1))
    k, v, p_k, p_v = (one.repeat_interleave(2, 1) for one in (k, v, p_k, p_v))
    gate = torch.sigmoid(linear(given, own["prefix"]["gate.weight"], own["prefix"]["gate.bias"]))[:, None]
    row = q @ k.transpose(2, 3)
    row = row.masked_fill(torch.ones(5, 5).triu(1).bool() & causal, -math.inf)
    shares = (torch.cat([gate * (q @ p_k.transpose(2, 3)), row], 3) * module.scaling).softmax(3)
    wanted = shares[..., :3] @ p_v * gate + shares[..., 3:] @ v

    found = attended(module, given, causal=causal, implementation=implementation)
    assert torch.allclose(found, base.o_proj(wanted.transpose(1, 2).flatten(2)), atol=1e-5)


def test_behind_the_mlp_is_the_gated_adapter() -> None:
    """h + sigmoid(w h + b) (U gelu(D h + b) + c)."""
    loaded = staged(Decoder, "granite")
    plain = copy.deepcopy(loaded.model.model.layers[1].mlp)
    model = injected("unipelt", loaded, bottleneck=3).model
    own = in_module(drawn(model, 0.5), "model.layers.1.mlp.down_proj.adapter")
    given = torch.randn(2, 5, 32)
    hidden = plain(given)
    gate = torch.sigmoid(linear(hidden, own["gate.weight"], own["gate.bias"]))
    narrow = gelu(linear(hidden, own["change.down.weight"], own["change.down.bias"]))
    wanted = hidden + gate * linear(narrow, own["change.up.weight"], own["change.up.bias"])
    assert torch.allclose(model.model.layers[1].mlp(given), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "r", "length", "m"),
    [
        ({}, 8, 10, 2),
        ({"r": 3, "num_virtual_tokens": 4, "bottleneck": 5}, 3, 4, 5),
        ({"reduction_factor": 4}, 8, 10, 8),
    ],
    ids=str,
)
def test_the_count_is_that_of_the_formula(
    options: dict[str, Any], r: int, length: int, m: int, checkpoint: Callable[..., Path]
) -> None:
    """With d = 32 and keys and values of 16: LoRA on q (32 to 32) and v (32 to 16), prefix, adapter, four gates."""
    found = injected("unipelt", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)
    block = r * (32 + 32) + r * (32 + 16) + length * 2 * 16 + 2 * 32 * m + m + 32 + 4 * (32 + 1)
    assert found.trainable == 2 * block


@pytest.mark.parametrize(("family", "kind", "head", "count"), ARCHITECTURES)
def test_every_architecture_has_all_three(family: type[Any], kind: str, head: str, count: int) -> None:
    """Every tensor gets a gradient, also when activations are computed twice, and copies of the model answer alike."""
    check_every_attention_has_a_prefix("unipelt", staged(family, kind, head), head, count)


def test_no_token_of_a_decoder_hears_of_a_later_one(checkpoint: Callable[..., Path]) -> None:
    model = injected("unipelt", ftcore.load("qwen", checkpoint=checkpoint("qwen2"))).model.eval()
    drawn(model, 0.5)
    ids = torch.arange(5, 25)[None]
    other = torch.cat([ids[:, :12], ids[:, 12:] + 30], 1)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits[:, :12], model(other).logits[:, :12], atol=1e-5)


def test_a_network_makes_the_prefix_where_it_is_asked_for() -> None:
    given = {"prefix_projection": True, "encoder_hidden_size": 7}
    plain, found = (injected("unipelt", staged(Decoder, "granite"), **options).trainable for options in ({}, given))
    assert found - plain == 2 * (7 * (16 + 1) + 32 * (7 + 1) - 10 * 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"option 'r' is 0"),
        ({"dropout": 1.0}, r"option 'dropout' is 1\.0"),
        ({"rank": 3}, r"has no option 'rank'"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("unipelt", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


def test_dropout_acts_in_training_and_not_in_evaluation(checkpoint: Callable[..., Path]) -> None:
    model = injected("unipelt", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), dropout=0.5).model
    drawn(model, 0.5)
    check_dropout_acts_in_training_only(model)


@method_checks(UniPELT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
