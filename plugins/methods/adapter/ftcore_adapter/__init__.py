"""Bottleneck adapters: Houlsby et al. 2019, Pfeiffer et al. 2020, and beside the MLP as He et al. 2021 have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ftcore import Loaded, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

Activation = Annotated[Literal["relu", "gelu", "silu", "tanh"], Field(description="Nonlinearity in the bottleneck.")]
Reduction = Annotated[int, Field(ge=1, description="How many times narrower than what it reads the bottleneck is.")]


@options
class BottleneckAdapter:
    """h + U act(D h + b) + c behind attention and MLP, or scaled beside the MLP; U and c start at zero."""

    suggested_lr: ClassVar[float] = 1e-3

    kind: Annotated[
        Literal["houlsby", "pfeiffer", "parallel"],
        Field(description="Behind attention and MLP (arXiv:1902.00751), behind the MLP, or beside it."),
    ] = "houlsby"
    bottleneck: Annotated[
        int | None, Field(ge=1, description="Width of the bottleneck, instead of by reduction_factor.")
    ] = None
    reduction_factor: Reduction = 16
    activation: Activation = "gelu"
    scale: Annotated[float, Field(gt=0, description="What the kind parallel multiplies its change with.")] = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the change.")] = 0.0
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules to put it behind or beside, by name or ending, instead of by role.")
    ] = ()

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with an adapter at each place of its kind; a model without such places is refused."""
        from ftcore_adapter.layers import Plan, put_behind, put_beside

        plan = Plan(self.bottleneck, self.reduction_factor, self.activation, self.dropout)
        named = self.named(run, model, loaded)
        if self.kind == "parallel":
            for entrance, exit_ in zip(named, named, strict=True) if named else mlps(loaded):
                put_beside(model, entrance, exit_, plan, self.scale)
        else:
            for name in named or places(loaded, self.kind):
                put_behind(model, name, plan)
        return model

    def named(self, run: Run, model: nn.Module, loaded: Loaded) -> tuple[str, ...]:
        """The modules that target_modules mean."""
        from ftcore.adapters import by_name

        return by_name(run, model, loaded, self.target_modules) if self.target_modules else ()


def places(loaded: Loaded, kind: str) -> tuple[str, ...]:
    """The modules that end attention and MLP, or the MLP only; a family that names none is refused."""
    from ftcore.adapters import select

    return select(loaded.parts, ("attention.o", "mlp.down") if kind == "houlsby" else ("mlp.down",))


def mlps(loaded: Loaded) -> Sequence[tuple[str, ...]]:
    """The first and the last layer of every MLP."""
    return aligned(loaded, "mlp.up", "mlp.down")


def aligned(loaded: Loaded, *roles: str) -> Sequence[tuple[str, ...]]:
    """The modules of several roles that belong together; refused where one role has more of them than another."""
    from ftcore.adapters import select

    found = [select(loaded.parts, (role,)) for role in roles]
    if len({len(names) for names in found}) > 1:
        counted = " and ".join(f"{len(names)} {role}" for names, role in zip(found, roles, strict=True))
        raise Refused(f"the model has {counted}, which do not come in pairs; use adapter, of the kind pfeiffer")
    return tuple(zip(*found, strict=True))
