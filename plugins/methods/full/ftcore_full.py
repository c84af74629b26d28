"""Full fine-tuning: every weight of the model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ftcore import hookimpl, options

if TYPE_CHECKING:
    from torch import nn


@options
class Full:
    """Every weight trains in float32; what is saved is the whole model."""

    suggested_lr: ClassVar[float] = 2e-5
    alone: ClassVar[str] = "it trains every weight already"
    excused: ClassVar[Mapping[str, str]] = {"check_not_everything_trains": "training every weight is what it is for"}

    @hookimpl
    def inject_adapter(self, model: nn.Module) -> nn.Module:
        """The model itself, with nothing frozen."""
        return model.requires_grad_(True)

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: its weights are the trained ones."""
        return model
