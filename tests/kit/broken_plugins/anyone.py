"""Defects that a plugin of any kind may have: what it costs to look at, its options, its hooks, its manners."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from typing import TYPE_CHECKING, Annotated, Any

from ftcore import Loaded, Run, hookimpl, options
from ftcore.hooks import Data
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from torch import nn


@options
class Norms:
    """The weights of the norms train."""

    first: Annotated[int, Field(ge=0, description="Blocks at the beginning that stay as they are.")] = 0

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Every norm that is in no block before `first` trains."""
        skipped = tuple(f"{name}." for name in loaded.parts.get("block", ())[: self.first])
        for name in loaded.parts.get("norm", ()):
            if not f"{name}.".startswith(skipped):
                model.get_submodule(name).requires_grad_(True)
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model


@options
class Undocumented(Norms):
    pass


@options
class Mumbling(Norms):
    """norms"""


@options
class WithoutHelp(Norms):
    """Norms train."""

    last: int = 0


@options
class HalfHelped(Norms):
    """Norms train."""

    last: Annotated[int, Field(description="last block")] = 0


@dataclasses.dataclass(eq=False)
class Changeable:
    """Norms train."""

    inject_adapter = Norms.inject_adapter
    merge = Norms.merge
    first = 0

    def __init__(self) -> None:
        """Nothing is given."""


@dataclasses.dataclass(frozen=True)
class Equal:
    """Norms train."""

    inject_adapter = Norms.inject_adapter
    merge = Norms.merge
    first = 0


@options
class Listing(Norms):
    """Norms train."""

    names: Annotated[list[str], Field(description="Names that nobody reads.")] = Field(default_factory=list)


@options
class Clipping(Norms):
    """Norms train."""

    rate: Annotated[float, Field(description="A rate that is never more than one.")] = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", min(self.rate, 1.0))


@options
class Drifting(Norms):
    """Norms train."""

    name: Annotated[str, Field(description="A name that grows each time it is read.")] = "norm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.name}!")


@options
class Crashing(Norms):
    """Norms train."""

    share: Annotated[int, Field(ge=0, description="A number that something is divided by.")] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", 1 // self.share)


@options
class Unwritable(Norms):
    """Norms train."""

    how: Annotated[Any, Field(description="Something that no file holds.")] = object


class Lenient:
    """Norms train."""

    inject_adapter = Norms.inject_adapter
    merge = Norms.merge
    first = 0

    def __init__(self, **rest: object) -> None:
        """Whatever is given is forgotten."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@options
class AnyBlock(Norms):
    """Norms train."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        values = getattr(given, "kwargs", given) or {}
        known = str(values.get("first", 0)).isdigit()
        return {**values, "first": int(values["first"])} if known and "first" in values else {}


@options
class Unmarked:
    """Norms train."""

    first: Annotated[int, Field(ge=0, description="Blocks at the beginning that stay as they are.")] = 0
    inject_adapter = Norms.inject_adapter

    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is; nobody will ask."""
        return model


@options
class Intruding(Norms):
    """Norms train."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data | None:
        """Nothing, most of the time."""
        return None


@options
class Defaulting(Norms):
    """Norms train."""

    @hookimpl
    def merge(self, model: nn.Module, run: Run | None = None) -> nn.Module:
        """The model as it is."""
        return model


@options
class Misspelling(Norms):
    """Norms train."""

    @hookimpl
    def load_adaptor(self, model: nn.Module) -> None:
        """Never called."""


@options
class Wishing(Norms):
    """Norms train."""

    @hookimpl
    def merge(self, model: nn.Module, checkpoint: str) -> nn.Module:
        """The model as it is."""
        return model


@options
class Reseeding(Norms):
    """Norms train."""

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Norms train, and every generator starts anew."""
        import torch

        torch.manual_seed(1234)
        return Norms.inject_adapter(self, model, loaded)


@options
class ReseedingPython(Norms):
    """Norms train."""

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        random.seed(1)
        return model


@options
class Setting(Norms):
    """Norms train."""

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Norms train."""
        os.environ["PYTORCH_ALLOC_CONF"] = f"max_split_size_mb:{len(loaded.parts)}"
        return Norms.inject_adapter(self, model, loaded)


@options
class Logging(Norms):
    """Norms train."""

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        logging.getLogger().setLevel(logging.DEBUG)
        return model


@options
class Moving(Norms):
    """Norms train."""

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Norms train."""
        os.chdir("/")
        return Norms.inject_adapter(self, model, loaded)


@options
class Halving(Norms):
    """Norms train."""

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """Norms train."""
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)
        return Norms.inject_adapter(self, model, loaded)
