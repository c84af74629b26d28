"""Partial fine-tuning: the weights of some blocks, parts or modules train, and all others stay frozen."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, Refused, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@options
class Freeze:
    """theta_chosen trains in float32 and theta_rest is frozen: the last blocks, or what parts or a pattern name."""

    suggested_lr: ClassVar[float] = 5e-5

    last: Annotated[
        int | None, Field(ge=1, description="Train this many of the last blocks; 2 where nothing else is chosen.")
    ] = None
    parts: Annotated[
        tuple[str, ...], Field(description="Train the modules of these roles, such as mlp.down or norm, instead.")
    ] = ()
    pattern: Annotated[
        str, Field(description="Train what has a name, or an end of one, of this shape instead, such as layers.1.*.")
    ] = ""

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model itself, with the chosen weights trainable; refused when the options choose twice or nothing."""
        given = {"last": self.last, "parts": self.parts, "pattern": self.pattern}
        ways = [f"freeze.{name}" for name, value in given.items() if value]
        if len(ways) > 1:
            raise Refused(f"{' and '.join(ways)} each say what trains; give one of them")
        for parameter in self.chosen(model, loaded):
            parameter.requires_grad_(True)
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: its weights are the trained ones."""
        return model

    def chosen(self, model: nn.Module, loaded: Loaded) -> Iterator[nn.Parameter]:
        """The parameters that the options mean."""
        from ftcore.adapters import select

        if self.pattern:
            return fitting(model, self.pattern)
        names = select(loaded.parts, self.parts) if self.parts else last_blocks(loaded, self.last or 2)
        return (parameter for name in names for parameter in model.get_submodule(name).parameters())


def fitting(model: nn.Module, pattern: str) -> Iterator[nn.Parameter]:
    """The parameters whose name, or the end of it after a point, has the shape of `pattern`; refused without any."""
    named = dict(model.named_parameters())
    found = [name for name in named if fnmatchcase(f".{name}", f"*.{pattern}")]
    if not found:
        shown = f"its parameters are named as '{next(iter(named), '')}'"
        raise Refused(f"freeze.pattern '{pattern}' fits no parameter of {type(model).__name__}; {shown}")
    return (named[name] for name in found)


def last_blocks(loaded: Loaded, count: int) -> tuple[str, ...]:
    """The last `count` blocks; refused when the model has fewer, unless it is one of which only a part is there."""
    from ftcore.adapters import PartialParts, select

    blocks = select(loaded.parts, ("block",))
    if count > len(blocks) and not isinstance(loaded.parts, PartialParts):
        raise Refused(f"freeze.last is {count} and the model has {len(blocks)} blocks; give at most {len(blocks)}")
    return blocks[-count:]
