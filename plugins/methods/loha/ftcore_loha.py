"""LoHa, a Hadamard product of low-rank updates (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098), through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Run, options
from ftcore_peft import MergeablePeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class LoHa(MergeablePeftMethod):
    """h = W x + (alpha / r) ((A1 B1) * (A2 B2)) x, whose update has a rank of up to r squared."""

    parted: ClassVar[Mapping[str, str]] = {
        "hada_w1_a": "rows", "hada_w1_b": "whole", "hada_w2_a": "rows", "hada_w2_b": "whole",
    }  # fmt: skip

    r: Annotated[int, Field(ge=1, description="Rank of each of the two products.")] = 8
    alpha: Annotated[int, Field(ge=1, description="The update is scaled by alpha / r.")] = 8
    rank_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the update's rows that a training step leaves out.")
    ] = 0.0
    module_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Chance that a training step leaves out a layer's update.")
    ] = 0.0

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LoHaConfig."""
        from peft import LoHaConfig

        return LoHaConfig(
            r=self.r, alpha=self.alpha, rank_dropout=self.rank_dropout, module_dropout=self.module_dropout
        )
