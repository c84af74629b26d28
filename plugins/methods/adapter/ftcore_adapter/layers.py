"""The bottleneck, and the layers of a base with one behind or beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ftcore import Refused
from ftcore.layers import Around
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Plan:
    """What a bottleneck is to be like: its width or by how much it is narrower, its nonlinearity and dropout."""

    bottleneck: int | None
    reduction_factor: int
    activation: str
    dropout: float

    def made(self, reads: int, writes: int, device: torch.device) -> Bottleneck:
        """A bottleneck from `reads` features to `writes`."""
        width = self.bottleneck or max(1, reads // self.reduction_factor)
        return Bottleneck(reads, width, writes, ACTIVATIONS[self.activation](), self.dropout, device)


class Bottleneck(nn.Module):
    """up(activation(down(x))), in float32 where there is no autocast; zero until `up` has learnt something."""

    def __init__(
        self, reads: int, width: int, writes: int, activation: nn.Module, dropout: float, device: torch.device
    ) -> None:
        super().__init__()
        self.down = nn.Linear(reads, width, device=device, dtype=torch.float32)
        self.activation = activation
        self.up = nn.Linear(width, writes, device=device, dtype=torch.float32)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, features: Tensor) -> Tensor:
        """The change that the features make."""
        narrow = self.activation(self.down(features.to(self.down.weight.dtype)))
        change: Tensor = self.dropout(self.up(narrow))
        return change


class Behind(Around):
    """h + adapter(h), where h is what the base gives."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__(base)
        self.adapter = adapter

    def forward(self, given: Tensor) -> Tensor:
        """The base's features with the change, in their number format."""
        features: Tensor = self.base(given)
        return added(features, self.adapter(features))


class Listening(Around):
    """The base; what it was given last can be taken by a module that comes later in the same forward pass."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.heard: Tensor | None = None

    def forward(self, given: Tensor) -> Tensor:
        """What the base gives."""
        self.heard = given
        features: Tensor = self.base(given)
        return features

    def taken(self) -> Tensor:
        """What the base was given; it is not kept."""
        heard, self.heard = self.heard, None
        assert heard is not None
        return heard

    def __getstate__(self) -> dict[str, Any]:
        """Copies do not carry what was heard: a recomputed forward pass may end before somebody took it."""
        return {**self.__dict__, "heard": None}


class Beside(Around):
    """h + scale * adapter(x), where h is what the base gives and x what the `entrance` was given."""

    def __init__(self, base: nn.Module, entrance: Listening, adapter: nn.Module, scale: float) -> None:
        super().__init__(base)
        self.entrance = (entrance,)  # in a tuple, as it is part of the model elsewhere
        self.adapter = adapter
        self.scale = scale

    def forward(self, given: Tensor) -> Tensor:
        """The base's features with the change, in their number format."""
        features: Tensor = self.base(given)
        change: Tensor = self.adapter(self.entrance[0].taken())
        return added(features, self.scale * change)


def added(features: Tensor, change: Tensor) -> Tensor:
    """The features with the change, in their number format."""
    return (features + change).to(features.dtype)


def put_behind(model: nn.Module, name: str, plan: Plan) -> None:
    """An adapter is behind the module of that name."""
    base: Any = model.get_submodule(name)
    _, writes = widths(name, base)
    model.set_submodule(name, Behind(base, plan.made(writes, writes, base.weight.device)))


def put_beside(model: nn.Module, entrance: str, end: str, plan: Plan, scale: float) -> None:
    """An adapter leads from what `entrance` is given to what `end` gives."""
    reads, _ = widths(entrance, model.get_submodule(entrance))
    last: Any = model.get_submodule(end)
    adapter = plan.made(reads, widths(end, last)[1], last.weight.device)
    model.set_submodule(entrance, listening := Listening(model.get_submodule(entrance)))
    model.set_submodule(end, Beside(model.get_submodule(end), listening, adapter, scale))


def widths(name: str, module: nn.Module) -> tuple[int, int]:
    """How many features a linear layer reads and writes; refused when it is none."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    raise Refused(f"'{name}' is {type(module).__name__}, no linear layer, so no adapter fits; name its linear layers")
