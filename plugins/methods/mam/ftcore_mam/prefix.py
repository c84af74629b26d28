"""Learned keys and values in front of those that attention looks at, through transformers' interface of attentions."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ftcore import Loaded, Refused
from ftcore.adapters import select
from ftcore_adapter import aligned
from ftcore_adapter.layers import widths
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

NAME = "ftcore-prefix"
BASES = ("ftcore", "sdpa", "eager")
Pair = tuple[Tensor, Tensor]  # of the prefix, and of the row


def register() -> str:
    """The name under which transformers finds attention with a prefix; registering twice changes nothing."""
    AttentionInterface.register(NAME, prefixed_attention)
    return NAME


def prefixed_attention(module: Any, *given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
    """What the prefix of an attention module makes of its queries, keys and values."""
    answer: tuple[Tensor, Tensor | None] = module.prefix.attend(module, *given, **named)
    return answer


@dataclass(frozen=True)
class Attention:
    """An attention module, the layer that makes its queries, and how wide its keys and values are over all heads."""

    name: str
    query: str
    keys: int
    values: int


class Prefix(nn.Module):
    """Keys and values that are the same for every row; with `hidden` a network of that width makes them.

    `implementation` names the attention that looks at them and at the row.
    """

    def __init__(
        self, length: int, keys: int, values: int, hidden: int | None, implementation: str, device: torch.device
    ) -> None:
        super().__init__()
        register()
        self.widths, self.implementation = (keys, values), implementation
        kind: Mapping[str, Any] = {"device": device, "dtype": torch.float32}
        self.network: nn.Module = nn.Identity()
        if hidden is not None:
            self.network = nn.Sequential(
                nn.Linear(keys, hidden, **kind), nn.Tanh(), nn.Linear(hidden, keys + values, **kind)
            )
        self.tokens = nn.Parameter(torch.empty(length, keys + values if hidden is None else keys, **kind))
        nn.init.normal_(self.tokens, std=0.02 if hidden is None else 1.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()  # a pickle may be read where no prefix was made

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix in the shape of (batch, heads, length, features) and the number format of a row's."""
        made = self.network(self.tokens).split(self.widths, dim=1)
        keys, values = (in_heads(one, like) for one, like in zip(made, (key, value), strict=True))
        return keys, values

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        position_bias: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What the module gives where the prefix stands in front of the row."""
        keys, values = self(key, value)
        mask = self.seeing(module, query, key, attention_mask, rest.get("is_causal"))
        if position_bias is not None:
            rest["position_bias"] = before(position_bias, keys.shape[2])
        return self.over(module, query, (keys, key), (values, value), mask, **rest)

    def over(
        self, module: nn.Module, query: Tensor, keys: Pair, values: Pair, mask: Tensor | None, /, **rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over the prefix, which every token sees, and over the row."""
        return self.base(module)(module, query, torch.cat(keys, 2), torch.cat(values, 2), mask, **rest)

    def base(self, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The attention that the model had before."""
        code = vars(sys.modules[type(module).__module__])
        found: Callable[..., tuple[Tensor, Tensor | None]] = code["ALL_ATTENTION_FUNCTIONS"].get_interface(
            self.implementation, code["eager_attention_forward"]
        )
        return found

    def seeing(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None
    ) -> Tensor | None:
        """The mask over prefix and row; None where everything is seen."""
        length = self.tokens.shape[0]
        if mask is not None:
            return before(mask, length)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if self.implementation == "eager" or not causal or query.shape[2] == 1:
            return None
        row = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return before(row, length)[None, None]


def in_heads(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens of shape (length, features of all heads) for each row and head of `like`."""
    batch, heads, _, width = like.shape
    split: Tensor = tokens.to(like.dtype).unflatten(1, (-1, width)).transpose(0, 1)
    return split.repeat_interleave(heads // split.shape[0], 0).expand(batch, -1, -1, -1)


def before(mask: Tensor, length: int) -> Tensor:
    """The mask, or what is added to the scores, with `length` more keys at the front that everybody sees."""
    return pad(mask, (length, 0), value=mask.dtype == torch.bool)


def attentions(model: nn.Module, loaded: Loaded) -> tuple[Attention, ...]:
    """Every attention of the model; refused where it does not go through transformers' interface."""
    q, k, v = (select(loaded.parts, (f"attention.{role}",)) for role in "qkv")
    if k in ((), q):  # all in one layer; what attention gives is as wide as its queries
        pairs = aligned(loaded, "attention.q", "attention.o")
        found = [(query, both := (_out(model, query) - _in(model, end)) // 2, both) for query, end in pairs]
    elif k == v:
        pairs = aligned(loaded, "attention.q", "attention.k")
        found = [(query, both := _out(model, key) // 2, both) for query, key in pairs]
    else:
        rows = aligned(loaded, "attention.q", "attention.k", "attention.v")
        found = [(query, _out(model, key), _out(model, value)) for query, key, value in rows]
    return tuple(Attention(_around(model, query), query, keys, values) for query, keys, values in found)


def _in(model: nn.Module, name: str) -> int:
    return widths(name, model.get_submodule(name))[0]


def _out(model: nn.Module, name: str) -> int:
    return widths(name, model.get_submodule(name))[1]


def _around(model: nn.Module, name: str) -> str:
    """The innermost module around a layer that looks up its attention by its config."""
    around = name
    while around:
        around = around.rpartition(".")[0]
        module = model.get_submodule(around)
        asks = "ALL_ATTENTION_FUNCTIONS" in vars(sys.modules[type(module).__module__])
        if (
            asks
            and isinstance(vars(module).get("config"), PreTrainedConfig)
            and not isinstance(module, PreTrainedModel)
        ):
            return around
    raise Refused(
        f"the attention around '{name}' takes no prefix; use adapter, or prefix, which works through the cache"
    )


def prefix_of(model: nn.Module, attention: Attention, length: int, hidden: int | None) -> Prefix:
    """A new prefix for an attention module."""
    implementation = implementation_of(model, attention)
    query: Any = model.get_submodule(attention.query)
    return Prefix(length, attention.keys, attention.values, hidden, implementation, query.weight.device)


def implementation_of(model: nn.Module, attention: Attention) -> str:
    """The name of the attention that a module looks up; refused where no mask can be given to it."""
    module: Any = model.get_submodule(attention.name)
    name: str = module.config._attn_implementation
    if name not in BASES:
        raise Refused(f"attention '{name}' takes no prefix; load the model with one of {', '.join(BASES)}")
    return name


def put_prefix(model: nn.Module, attention: Attention, prefix: Prefix) -> None:
    """The attention module has the prefix, and a config of its own that asks for it; the model's stays as it is."""
    module: Any = model.get_submodule(attention.name)
    module.prefix = prefix
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation = NAME
