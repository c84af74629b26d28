"""LN tuning: only the norms train (Zhao et al. 2023, arXiv:2312.11420), through PEFT."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Run, hookimpl, options
from ftcore_peft import MergeablePeftMethod, between_precisions
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn


@options
class LNTuning(MergeablePeftMethod):
    """y = gamma * (x - mean) / std + beta: gamma, and beta where there is one, train in a copy of each norm."""

    suggested_lr: ClassVar[float] = 1e-3

    parts: Annotated[tuple[str, ...], Field(description="Roles to train; ignored with target_modules.")] = ("norm",)

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LNTuningConfig."""
        from peft import LNTuningConfig

        return LNTuningConfig()

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT; a norm that trains in float32 still gives what the layers around it expect."""
        with warnings.catch_warnings():  # PEFT warns of each norm that it wraps
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            adapted = super().inject_adapter(run, model, loaded, data, steps)
        for name in adapted.base_model.targeted_module_names:
            between_precisions(adapted.base_model.model.get_submodule(name), "ln_tuning_layers", "base_layer")
        return adapted

    @hookimpl
    def merge(self, run: Run, model: PeftModel) -> nn.Module:
        """The base model with the trained norms in place of its own, in its own precision."""
        inner = model.base_model.model
        layers = {name: inner.get_submodule(name).base_layer for name in model.base_model.targeted_module_names}
        kinds = {name: next(layer.parameters()).dtype for name, layer in layers.items()}
        merged = super().merge(run, model)
        for name, kind in kinds.items():
            merged.get_submodule(name).to(kind)
        return merged
