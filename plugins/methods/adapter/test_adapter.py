"""Adapters stand where their papers have them, compute what their papers say and start as the base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Loaded
from ftcore.testing import method_checks
from ftcore.testing.stage import Decoder, Encoder, EncoderDecoder, FusedDecoder
from ftcore_adapter import BottleneckAdapter
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu
from transformers import OPTConfig, OPTForCausalLM
from transformers.pytorch_utils import Conv1D
from trials import (
    check_copies_answer_alike,
    check_dropout_acts_in_training_only,
    check_every_tensor_learns,
    check_start_is_the_base,
    drawn,
    injected,
    staged,
)

KINDS = ["houlsby", "pfeiffer", "parallel"]
ATTENTION = tuple(f"model.layers.{i}.self_attn.o_proj" for i in (0, 1))
MLP = tuple(f"model.layers.{i}.mlp.down_proj" for i in (0, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("activation", "function"), [("relu", relu), ("gelu", gelu), ("silu", silu), ("tanh", torch.tanh)]
)
def test_the_forward_pass_is_the_published_formula(
    kind: str, activation: str, function: Callable[[Tensor], Tensor]
) -> None:
    """h + U f(D h + b) + c behind a layer, W x + 2.5 (U f(D x + b) + c) beside it."""
    torch.manual_seed(0)
    for layer in (nn.Linear(5, 7), Conv1D(7, 5)):
        weight = (layer.weight if isinstance(layer, nn.Linear) else layer.weight.T).detach().clone()
        model = ftcore.inject(
            nn.Sequential(copy.deepcopy(layer)), method="adapter", target_modules=["0"], kind=kind, bottleneck=3,
            activation=activation, scale=2.5,
        )  # fmt: skip
        given = torch.randn(4, 5)
        assert torch.equal(model(given), layer(given))
        down, b, up, c = drawn(model, 0.3).values()
        wide = 5 if kind == "parallel" else 7
        assert (down.shape, b.shape, up.shape, c.shape) == ((3, wide), (3,), (7, 3), (7,))
        hidden = given @ weight.T + layer.bias
        read, scale = (given, 2.5) if kind == "parallel" else (hidden, 1.0)
        wanted = hidden + scale * (linear(function(linear(read, down, b)), up, c))
        assert torch.allclose(model(given), wanted, atol=1e-5)


def test_beside_the_mlp_its_own_input_is_read(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    plain = copy.deepcopy(loaded.model.model.layers[0].mlp)
    model = injected("adapter", loaded, kind="parallel", bottleneck=5).model
    drawn(model, 0.3)
    mlp = model.model.layers[0].mlp
    given = torch.randn(2, 3, 32)
    adapter = mlp.down_proj.adapter
    change = linear(gelu(linear(given, adapter.down.weight, adapter.down.bias)), adapter.up.weight, adapter.up.bias)
    assert torch.allclose(mlp(given), plain(given) + 4.0 * change, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "matched", "numbers"),
    [
        ({}, (*ATTENTION, *MLP), 2 * 2 * (2 * 32 * 2 + 2 + 32)),
        ({"reduction_factor": 4}, (*ATTENTION, *MLP), 2 * 2 * (2 * 32 * 8 + 8 + 32)),
        ({"kind": "pfeiffer", "bottleneck": 5}, (*MLP,), 2 * (2 * 32 * 5 + 5 + 32)),
        ({"kind": "parallel", "bottleneck": 5}, (*MLP,), 2 * (2 * 32 * 5 + 5 + 32)),
        ({"reduction_factor": 100}, (*ATTENTION, *MLP), 2 * 2 * (2 * 32 + 1 + 32)),
        ({"target_modules": ["layers.0.mlp.up_proj"]}, ("model.layers.0.mlp.up_proj",), 2 * 64 * 4 + 4 + 64),
    ],
    ids=str,
)
def test_the_start_is_the_base_and_the_count_that_of_the_formula(
    options: dict[str, Any], matched: tuple[str, ...], numbers: int, checkpoint: Callable[..., Path]
) -> None:
    found = check_start_is_the_base("adapter", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)
    assert set(found.matched) == set(matched)
    assert found.trainable == numbers


@pytest.mark.parametrize(("bottleneck", "numbers"), [(1, 7_078_080), (8, 40_109_568)])
def test_in_the_shape_of_gpt_3_as_many_numbers_train_as_the_paper_of_lora_says(bottleneck: int, numbers: int) -> None:
    """Table 4 of arXiv:2106.09685: 7.1M and 40.1M. Six blocks stand for the 96, as all are alike."""
    config = OPTConfig(
        hidden_size=12288, ffn_dim=4 * 12288, num_hidden_layers=6, num_attention_heads=96, word_embed_proj_dim=12288
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    roles = {"attention.o": "self_attn.out_proj", "mlp.down": "fc2"}
    parts = {role: tuple(f"model.decoder.layers.{i}.{name}" for i in range(6)) for role, name in roles.items()}
    found = injected("adapter", Loaded(model, None, parts, "", 2048, 50272), "plan", bottleneck=bottleneck)
    assert found.trainable * 96 // 6 == numbers == 2 * 96 * (2 * 12288 * bottleneck + bottleneck + 12288)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("family", "model_type", "head", "count"),
    [
        (Decoder, "granite", "causal-lm", {"houlsby": 4, "pfeiffer": 2, "parallel": 2}),
        (FusedDecoder, "phi3", "causal-lm", {"houlsby": 4, "pfeiffer": 2, "parallel": 2}),
        (Encoder, "ernie", "masked-lm", {"houlsby": 4, "pfeiffer": 2, "parallel": 2}),
        (EncoderDecoder, "mt5", "seq2seq-lm", {"houlsby": 10, "pfeiffer": 4, "parallel": 4}),
    ],
)
def test_every_block_of_every_architecture_has_its_adapters(
    kind: str, family: type[Any], model_type: str, head: str, count: dict[str, int]
) -> None:
    """Each of them gets a gradient, also when activations are computed twice, and copies of the model answer alike."""
    found = injected("adapter", staged(family, model_type, head), kind=kind)
    assert len(found.matched) == count[kind]
    drawn(found.model, 0.3)
    check_copies_answer_alike(found.model, head)
    check_every_tensor_learns(found.model, head)


def test_dropout_acts_on_the_change_in_training_only(checkpoint: Callable[..., Path]) -> None:
    model = injected("adapter", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), dropout=0.5).model
    drawn(model, 0.3)
    check_dropout_acts_in_training_only(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hously"}, r"option 'kind' is 'hously'.*'houlsby', 'pfeiffer' or 'parallel'"),
        ({"bottleneck": 0}, r"option 'bottleneck' is 0"),
        ({"activation": "swish"}, r"option 'activation' is 'swish'"),
        ({"target_modules": ["k_porj"]}, r"is named 'k_porj'; did you mean 'k_proj'"),
        ({"target_modules": ["embed_tokens"]}, r"'model\.embed_tokens' is Embedding, no linear layer"),
    ],
)
def test_what_it_cannot_be_is_refused(options: dict[str, Any], message: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("adapter", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_without_the_roles_is_refused_by_the_role(kind: str) -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ftcore.Refused, match=r"has no part '(attention\.o|mlp\.down|mlp\.up)'"):
        ftcore.inject(layers, method="adapter", kind=kind)
    parts = {"mlp.up": ("0", "1"), "mlp.down": ("1",)}
    with pytest.raises(
        ftcore.Refused,
        match=r"2 mlp\.up and 1 mlp\.down, which do not come in pairs; use adapter",
    ):
        injected("adapter", Loaded(layers, None, parts, "", 0, 0), kind="parallel")


def test_it_cannot_be_merged_and_says_so(checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"task": "causal", "model": "qwen", "checkpoint": checkpoint("qwen2"), "data": rows}
    ftcore.run(method="adapter", steps=1, output=tmp_path / "run", **keys)
    with pytest.raises(ftcore.Refused, match=r"method 'adapter' .*cannot be merged"):
        ftcore.merge(tmp_path / "run", output=tmp_path / "merged")


@method_checks(BottleneckAdapter())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
