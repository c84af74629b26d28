"""LoKr, adaptation by a Kronecker product (KronA, Edalati et al. 2022, arXiv:2212.10650), through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from ftcore import Data, Loaded, Refused, Run, options
from ftcore_peft import LycorisMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class LoKr(LycorisMethod):
    """h = W x + (alpha / r) kron(W1, W2) x, where W2, or both, are products of rank r where that is smaller."""

    r: Annotated[int, Field(ge=1, description="Rank of the factors that are low-rank products.")] = 8
    decompose_both: Annotated[bool, Field(description="Make the smaller factor a low-rank product as well.")] = False
    decompose_factor: Annotated[
        int, Field(ge=-1, description="Size of the smaller factor's sides at most; -1 makes both factors alike.")
    ] = -1
    init: Annotated[
        Literal["default", "lycoris"],
        Field(description="Which factor starts as zeros: W1 (default), or W2 as the LyCORIS library has it."),
    ] = "default"

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LoKrConfig."""
        from peft import LoKrConfig

        if self.decompose_factor == 0:
            raise Refused(
                "lokr.decompose_factor is 0, which leaves W1 no side; give 1 or more, or -1 for equal factors"
            )

        return LoKrConfig(
            r=self.r,
            alpha=self.alpha,
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
            decompose_both=self.decompose_both,
            decompose_factor=self.decompose_factor,
            init_weights=True if self.init == "default" else "lycoris",
        )
