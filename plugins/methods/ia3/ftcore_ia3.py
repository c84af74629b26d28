"""(IA)3, Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al. 2022, arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, FtcoreError, Loaded, Refused, Run, hookimpl, options
from ftcore.adapters import by_name, endings
from ftcore_peft import MergeablePeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class IA3(MergeablePeftMethod):
    """k = l_k * (W_k x), v = l_v * (W_v x) and W_down (l_ff * x): three vectors a block train, which start as ones."""

    suggested_lr: ClassVar[float] = 3e-3
    parted: ClassVar[Mapping[str, str]] = {"ia3_l": "rows"}

    parts: Annotated[
        tuple[str, ...],
        Field(description="Roles to scale: mlp.down at its input, others at their output; target_modules overrule."),
    ] = ("attention.k", "attention.v", "mlp.down")
    feedforward_modules: Annotated[
        tuple[str, ...],
        Field(description="Chosen modules whose input is scaled, by name or ending; else those of role mlp.down."),
    ] = ()

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's IA3Config with the modules whose input is scaled, which must be among its target modules by name."""
        from peft import IA3Config

        chosen = self.targets(run, model, loaded)
        names = endings(self.fed(run, model, loaded, chosen), [name for name, _ in model.named_modules()])
        return IA3Config(target_modules=names, feedforward_modules=names)

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, where exactly the modules that should have their input scaled have it."""
        wanted = self.fed(run, model, loaded, self.targets(run, model, loaded))
        adapted = super().inject_adapter(run, model, loaded, data, steps)
        inner = adapted.base_model.model
        fed = {name for name in adapted.base_model.targeted_module_names if inner.get_submodule(name).is_feedforward}
        if fed != set(wanted):
            odd = sorted(fed ^ set(wanted))[0]
            raise FtcoreError(f"PEFT scales the other side of '{odd}' than was chosen; name all its like")
        return adapted

    def fed(self, run: Run, model: nn.Module, loaded: Loaded, chosen: Sequence[str]) -> tuple[str, ...]:
        """The modules among `chosen` whose input is scaled; Refused when one is named that is not among them."""
        if not self.feedforward_modules:
            return tuple(name for name in chosen if name in loaded.parts.get("mlp.down", ()))
        named = by_name(run, model, loaded, self.feedforward_modules)
        stray = next((name for name in named if name not in chosen), None)
        if stray:
            raise Refused(f"feedforward_modules names '{stray}', which is not adapted; add it to target_modules")
        return named
