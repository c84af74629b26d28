"""MAM puts a prefix into every attention and an adapter beside every MLP, and computes what its paper says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Loaded
from ftcore.testing import method_checks
from ftcore.testing.stage import Decoder, FusedDecoder
from ftcore_mam import MAM
from torch import Tensor, nn
from torch.nn.functional import linear, relu
from transformers import GPT2Config, GPT2LMHeadModel
from trials import ARCHITECTURES, attended, check_every_attention_has_a_prefix, drawn, injected, staged

GPT2_PARTS = {
    **dict.fromkeys(("attention.q", "attention.k", "attention.v"), ("transformer.h.0.attn.c_attn",)),
    "attention.o": ("transformer.h.0.attn.c_proj",),
    "mlp.up": ("transformer.h.0.mlp.c_fc",),
    "mlp.down": ("transformer.h.0.mlp.c_proj",),
}


def weighed(query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """softmax(Q K' * scale) V over (batch, heads, tokens, width), with no look at what `hidden` says."""
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def prefixed(module: Any, given: Tensor, tokens: Tensor, *, causal: bool) -> Tensor:
    """What attention without positions gives, written out; `tokens` are the prefix's keys and values side by side."""
    width = module.head_dim
    q, k, v = (layer(given).unflatten(2, (-1, width)) for layer in (module.q_proj, module.k_proj, module.v_proj))
    length, features = len(tokens), k.shape[2] * width
    before = [one.unflatten(1, (-1, width)).expand(len(given), -1, -1, -1) for one in tokens.split(features, 1)]
    keys, values = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(before, (k, v), strict=True))
    groups = q.shape[2] // k.shape[2]
    seen = torch.arange(given.shape[1])
    hidden = (seen[None] > seen[:, None]) & causal
    hidden = torch.cat([torch.zeros(len(seen), length, dtype=torch.bool), hidden], 1)
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    return weighed(q.transpose(1, 2), keys, values, module.scaling, hidden)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_looks_at_the_prefix_as_published(causal: bool, implementation: str) -> None:
    """attention(Q, [P_k; K], [P_v; V]): four heads over two, with no rotation of positions."""
    torch.manual_seed(0)
    loaded = staged(Decoder, "granite")
    loaded.model.set_attn_implementation(implementation)
    model = injected("mam", loaded, num_virtual_tokens=3).model
    tokens = drawn(model, 0.5)["model.layers.0.self_attn.prefix.tokens"]
    assert tokens.shape == (3, 2 * 16)
    module = model.model.layers[0].self_attn
    given = torch.randn(2, 5, 32)
    found = attended(module, given, causal=causal, implementation=implementation)
    wanted = module.o_proj(prefixed(module, given, tokens, causal=causal))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_network_makes_the_prefix_where_it_is_asked_for() -> None:
    found = injected("mam", staged(Decoder, "granite"), prefix_projection=True, encoder_hidden_size=7)
    prefix = found.model.model.layers[0].self_attn.prefix
    first, second = prefix.network[0], prefix.network[2]
    assert prefix.tokens.shape == (30, 16)
    made = linear(torch.tanh(linear(prefix.tokens, first.weight, first.bias)), second.weight, second.bias)
    row = torch.zeros(2, 2, 5, 8)
    keys, values = prefix(row, row)
    assert torch.allclose(keys[1].transpose(0, 1).flatten(1), made[:, :16], atol=1e-6)
    assert torch.allclose(values[0].transpose(0, 1).flatten(1), made[:, 16:], atol=1e-6)
    assert found.trainable == 2 * (30 * 16 + 7 * (16 + 1) + 32 * (7 + 1) + 2 * 32 * 16 + 16 + 32)


def test_beside_the_mlp_is_the_scaled_adapter(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    plain = copy.deepcopy(loaded.model.model.layers[1].mlp)
    model = injected("mam", loaded, scale=3.0).model
    down, b, up, c = (p for name, p in drawn(model, 0.5).items() if "layers.1.mlp" in name)
    assert down.shape == (16, 32)
    given = torch.randn(2, 3, 32)
    wanted = plain(given) + 3.0 * linear(relu(linear(given, down, b)), up, c)
    assert torch.allclose(model.model.layers[1].mlp(given), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, 2 * (30 * 2 * 16 + 2 * 32 * 16 + 16 + 32)),
        ({"num_virtual_tokens": 5, "bottleneck": 3}, 2 * (5 * 2 * 16 + 2 * 32 * 3 + 3 + 32)),
        ({"reduction_factor": 8}, 2 * (30 * 2 * 16 + 2 * 32 * 4 + 4 + 32)),
    ],
    ids=str,
)
def test_the_count_is_that_of_the_formula(
    options: dict[str, Any], numbers: int, checkpoint: Callable[..., Path]
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    assert injected("mam", loaded, **options).trainable == numbers


def places() -> Iterator[tuple[Loaded, str, int]]:
    """Models of every architecture, with GPT-2, whose layers keep their weights the other way round."""
    for family, kind, head, count in ARCHITECTURES:
        yield staged(family, kind, head), head, count
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=32)).eval()
    yield Loaded(gpt2, None, GPT2_PARTS, "", 32, 64), "causal-lm", 1


@pytest.mark.parametrize("at", range(5))
def test_every_attention_of_every_architecture_has_a_prefix(at: int) -> None:
    """Every tensor gets a gradient, also when activations are computed twice, and copies of the model answer alike."""
    check_every_attention_has_a_prefix("mam", *list(places())[at])


@pytest.mark.parametrize("at", range(5))
def test_padding_changes_no_answer(at: int) -> None:
    """A row's answers are the same alone and padded on either side, where a model takes that."""
    loaded, head, _ = list(places())[at]
    model = injected("mam", loaded).model.eval()
    drawn(model, 0.5)
    row, pad = torch.arange(5, 15)[None], torch.zeros(1, 3, dtype=torch.long)
    seq2seq = head == "seq2seq-lm"
    ids, mask = torch.cat([row, pad], 1), torch.tensor([[1] * 10 + [0] * 3])
    with torch.no_grad():
        alone = model(input_ids=row, **({"decoder_input_ids": row} if seq2seq else {})).logits
        padded = model(input_ids=ids, attention_mask=mask, **({"decoder_input_ids": row} if seq2seq else {})).logits
    assert torch.allclose(padded[:, :10], alone, atol=1e-4)


def test_a_window_of_attention_does_not_hide_the_prefix() -> None:
    """Of ten tokens each sees the last four, so that the first is none of the fifth's, and each sees the prefix."""
    loaded = staged(FusedDecoder, "phi3", sliding_window=4, num_hidden_layers=1)
    model = injected("mam", loaded, num_virtual_tokens=3).model.eval()
    tokens = drawn(model, 0.5)["model.layers.0.self_attn.prefix.tokens"]
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = model(ids).logits
        other = model(torch.cat([torch.tensor([[99]]), ids[:, 1:]], 1)).logits
        assert torch.allclose(before[:, 4:], other[:, 4:], atol=1e-5)
        tokens.add_(1.0)
        assert bool(((model(ids).logits - before).abs() > 1e-4).any(2).all())


def test_generating_with_the_cache_says_the_same(checkpoint: Callable[..., Path]) -> None:
    model: Any = injected("mam", ftcore.load("qwen", checkpoint=checkpoint("qwen2"))).model.eval()
    drawn(model, 0.5)
    ids = torch.arange(5, 15)[None]
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, use_cache=True, **given), model.generate(ids, use_cache=False, **given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_virtual_tokens": 0}, r"option 'num_virtual_tokens' is 0"),
        ({"activation": "swish"}, r"option 'activation' is 'swish'"),
        ({"prefix_length": 3}, r"has no option 'prefix_length'"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("mam", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


def test_a_model_whose_attention_takes_no_prefix_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=r"has no part 'attention\.q'"):
        ftcore.inject(nn.Sequential(nn.Linear(2, 2)), method="mam")
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    parts = {f"attention.{role}": (str(number),) for number, role in enumerate("qkvo")}
    with pytest.raises(ftcore.Refused, match=r"the attention around '0' takes no prefix; use adapter"):
        injected("mam", Loaded(layers, None, parts, "", 0, 0))
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    loaded.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ftcore.Refused, match=r"attention 'flex_attention' takes no prefix; load the model with one of"):
        injected("mam", loaded)


@method_checks(MAM())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
