"""The linear layer with a scale and a shift behind it."""

from __future__ import annotations

from typing import Any

import torch
from ftcore.layers import Around
from torch import Tensor, nn


class Scaled(Around):
    """gamma * base(x) + beta."""

    def __init__(self, base: Any, *, shifted: bool) -> None:
        super().__init__(base)
        width = base.weight.shape[0] if isinstance(base, nn.Linear) else base.weight.shape[1]
        self.gamma = nn.Parameter(torch.ones(width, device=base.weight.device))
        self.beta = nn.Parameter(torch.zeros(width, device=base.weight.device)) if shifted else None

    def forward(self, given: Tensor) -> Tensor:
        """The features in the precision of the base, scaled in that of gamma."""
        features: Tensor = self.base(given)
        scaled = features * self.gamma
        return (scaled if self.beta is None else scaled + self.beta).to(features.dtype)

    @property
    def in_features(self) -> int:
        """How wide the input is, where the base says so."""
        width: int = self.base.in_features
        return width

    @torch.no_grad()
    def merged(self) -> Any:
        """The base, whose own weight and bias scale and shift."""
        weight, bias = self.base.weight, self.base.bias
        rows = self.gamma[:, None] if isinstance(self.base, nn.Linear) else self.gamma
        weight.copy_(weight * rows)
        if bias is not None:
            bias.copy_(bias * self.gamma + (0 if self.beta is None else self.beta))
        return self.base
