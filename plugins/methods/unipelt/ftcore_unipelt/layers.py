"""The gate, and LoRA, prefix and adapter behind one."""

from __future__ import annotations

import math
from typing import Any

import torch
from ftcore.layers import Around
from ftcore_adapter.layers import Behind, Listening, Plan, added, widths
from ftcore_mam.prefix import Attention, Pair, Prefix, implementation_of, put_prefix
from torch import Tensor, nn
from torch.nn.functional import pad


class Gate(nn.Linear):
    """sigmoid(w x + b) for each token, in float32 where there is no autocast."""

    def __init__(self, reads: int, device: torch.device) -> None:
        super().__init__(reads, 1, device=device, dtype=torch.float32)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """A number between 0 and 1 for each token."""
        return super().forward(features.to(self.weight.dtype)).sigmoid()


class Gated(nn.Module):
    """gate(x) * change(x)."""

    def __init__(self, change: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.change, self.gate = change, gate

    def forward(self, features: Tensor) -> Tensor:
        """The share of the change that the gate lets through."""
        passed: Tensor = self.gate(features) * self.change(features)
        return passed


class LowRank(nn.Module):
    """scale * B A x, in float32 where there is no autocast; zero until B has learnt something."""

    def __init__(self, reads: int, writes: int, r: int, scale: float, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.lora_A = nn.Linear(reads, r, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(r, writes, bias=False, device=device, dtype=torch.float32)
        self.dropout, self.scale = nn.Dropout(dropout), scale
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, features: Tensor) -> Tensor:
        """The change that the features make."""
        change: Tensor = self.lora_B(self.lora_A(self.dropout(features.to(self.lora_A.weight.dtype))))
        return self.scale * change


class Updated(Around):
    """base(x) + lora(x)."""

    def __init__(self, base: nn.Module, lora: nn.Module) -> None:
        super().__init__(base)
        self.lora = lora

    def forward(self, given: Tensor) -> Tensor:
        """The base's features with the change, in their number format."""
        return added(self.base(given), self.lora(given))


class GatedPrefix(Prefix):
    """A prefix whose keys and values are scaled, for each query, by a gate on what the query is made of."""

    def __init__(self, *given: Any, entrance: Listening, gate: Gate) -> None:
        super().__init__(*given)
        self.entrance = (entrance,)  # in a tuple, as it is part of the model elsewhere
        self.gate = gate

    def over(
        self, module: nn.Module, query: Tensor, keys: Pair, values: Pair, mask: Tensor | None, /, **rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over features of twice the width: the row is in the first half, and the prefix in the second.

        A query looks at both with one softmax, at the prefix times its gate, and what it gets of each stays apart until
        the gate has scaled it.
        """
        gate = self.gate(self.entrance[0].taken()).to(query.dtype)
        scaling = rest.pop("scaling", None)
        rest["scaling"] = query.shape[3] ** -0.5 if scaling is None else scaling
        queries = torch.cat([query, query * gate[:, None]], 3)
        found, weights = self.base(module)(module, queries, apart(*keys), apart(*values), mask, **rest)
        row, prefix = found.chunk(2, dim=3)
        return row + prefix * gate[..., None], weights


def apart(prefix: Tensor, row: Tensor) -> Tensor:
    """Both one after the other, the row in the first half of the features and the prefix in the second."""
    width = row.shape[3]
    return torch.cat([pad(prefix, (width, 0)), pad(row, (0, width))], 2)


def put_gated_prefix(model: nn.Module, attention: Attention, length: int, hidden: int | None) -> None:
    """The attention module has a prefix, gated by the input of the layer that makes its queries."""
    query: Any = model.get_submodule(attention.query)
    reads, device = widths(attention.query, query)[0], query.weight.device
    model.set_submodule(attention.query, listening := Listening(query))
    given = (length, attention.keys, attention.values, hidden, implementation_of(model, attention), device)
    put_prefix(model, attention, GatedPrefix(*given, entrance=listening, gate=Gate(reads, device)))


def put_gated_lora(model: nn.Module, name: str, r: int, alpha: int, dropout: float) -> None:
    """The layer has a low-rank update, gated by its own input."""
    layer: Any = model.get_submodule(name)
    reads, writes = widths(name, layer.base if isinstance(layer, Listening) else layer)
    device = layer.weight.device
    lora = Gated(LowRank(reads, writes, r, alpha / r, dropout, device), Gate(reads, device))
    model.set_submodule(name, Updated(layer, lora))


def put_gated_adapter(model: nn.Module, name: str, plan: Plan) -> None:
    """An adapter is behind the layer, gated by what the layer gives."""
    base: Any = model.get_submodule(name)
    _, writes = widths(name, base)
    device = base.weight.device
    model.set_submodule(name, Behind(base, Gated(plan.made(writes, writes, device), Gate(writes, device))))
