"""LoHa, a Hadamard product of low-rank updates (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098), through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Run, options
from ftcore_peft import LycorisMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class LoHa(LycorisMethod):
    """h = W x + (alpha / r) ((A1 B1) * (A2 B2)) x, whose update has a rank of up to r squared."""

    parted: ClassVar[Mapping[str, str]] = {
        "hada_w1_a": "rows", "hada_w1_b": "whole", "hada_w2_a": "rows", "hada_w2_b": "whole",
    }  # fmt: skip

    r: Annotated[int, Field(ge=1, description="Rank of each of the two products.")] = 8

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LoHaConfig."""
        from peft import LoHaConfig

        return LoHaConfig(
            r=self.r, alpha=self.alpha, rank_dropout=self.rank_dropout, module_dropout=self.module_dropout
        )
