"""Only biases train (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, OnModules, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@options
class BitFit(OnModules):
    """y = W x + b with W frozen and b trained, in every layer and norm that has a bias."""

    suggested_lr: ClassVar[float] = 1e-3
    excused: ClassVar[Mapping[str, str]] = {
        "check_every_head_it_claims": "the encoder-decoder that it is tried on, mt5, has no bias; BART has",
        "check_fused_projections": "the model with fused projections that it is tried on, phi3, has no bias",
    }

    parts: Annotated[
        tuple[str, ...],
        Field(description="Roles whose biases train, such as attention.q; every bias of the model without them."),
    ] = ()
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules whose biases train, by name or ending, instead of by role.")
    ] = ()

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model itself, with the chosen biases trainable; refused when there are none."""
        chosen = self.targets(run, model, loaded)
        found = [bias for name in chosen for bias in biases(model.get_submodule(name))]
        if not found:
            named = self.target_modules or self.parts
            where = f"{type(loaded.model).__name__} has no bias to train" + (f" in {', '.join(named)}" if named else "")
            raise Refused(f"{where}; use ln-tuning, ia3 or lora instead")
        for bias in found:
            bias.requires_grad_(True)
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: its biases are the trained ones."""
        return model

    def targets(self, run: Run, model: nn.Module, loaded: Loaded) -> tuple[str, ...]:
        """The full names of the modules that the options mean; the empty name is the whole model."""
        return super().targets(run, model, loaded) if self.target_modules or self.parts else ("",)


def biases(module: nn.Module) -> Iterator[nn.Parameter]:
    """Every bias in a module and in what it is made of."""
    return (parameter for name, parameter in module.named_parameters() if name.rpartition(".")[2] == "bias")
