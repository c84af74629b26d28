"""Scaled and shifted features (Lian et al. 2022, arXiv:2210.08823)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ftcore import Loaded, OnModules, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@options
class SSF(OnModules):
    """y = gamma * f(x) + beta behind each chosen linear layer f; gamma starts at 1 and beta at 0 (equation 3)."""

    suggested_lr: ClassVar[float] = 5e-3

    shift: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Learn beta where the layer has a bias, everywhere (which cannot be merged), or nowhere."),
    ] = "auto"

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with every chosen linear layer scaled and shifted."""
        from ftcore_ssf.layers import Scaled

        for name in self.targets(run, model, loaded):
            linear = model.get_submodule(name)
            shifted = self.shift == "on" or (self.shift == "auto" and linear.bias is not None)
            model.set_submodule(name, Scaled(linear, shifted=shifted))
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model with gamma and beta in the layers' own weights and biases; refused where beta has no place."""
        from ftcore_ssf.layers import Scaled

        for name, module in list(model.named_modules()):
            if isinstance(module, Scaled):
                if module.beta is not None and module.base.bias is None:
                    reason = f"'{name}' has no bias to hold what --ssf.shift on has learnt"
                    raise Refused(f"{reason}; use 'ftcore chat', or train with --ssf.shift auto")
                model.set_submodule(name, module.merged())
        return model

    def targets(self, run: Run, model: nn.Module, loaded: Loaded) -> tuple[str, ...]:
        """The full names of the layers to adapt; what matches nothing, is not linear or is shared is refused."""
        chosen = super().targets(run, model, loaded)
        refuse_unfit(model, chosen)
        return chosen


def refuse_unfit(model: nn.Module, chosen: Sequence[str]) -> None:
    """Refused when a chosen module is no linear layer, or shares its weight with another that would be scaled too."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    owners = [id(weight) for _, weight in model.named_parameters(remove_duplicate=False)]
    for name in chosen:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear | Conv1D):
            raise Refused(f"'{name}' is {type(module).__name__}, no linear layer; choose parts without its role")
        if owners.count(id(module.weight)) > 1:
            raise Refused(f"'{name}' shares its weight with another module, so it cannot be scaled; leave it out")
