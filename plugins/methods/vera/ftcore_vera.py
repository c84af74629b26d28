"""VeRA, vector-based random matrix adaptation (Kopiczko et al. 2023, arXiv:2310.11454), through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Run, options
from ftcore_peft import MergeablePeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class VeRA(MergeablePeftMethod):
    """h = W x + b * (B (d * (A x))): A and B are random, frozen and one pair for all layers; vectors d and b train."""

    suggested_lr: ClassVar[float] = 4e-3

    r: Annotated[int, Field(ge=1, description="Rank of the shared matrices and length of d.")] = 256
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the input of the update.")] = 0.0
    d_initial: Annotated[float, Field(description="What every entry of d starts as; b starts as zeros.")] = 0.1
    projection_prng_key: Annotated[int, Field(ge=0, description="Seed of the shared matrices A and B.")] = 0

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's VeraConfig, with A and B kept beside the vectors, so that they need not be drawn again."""
        from peft import VeraConfig

        return VeraConfig(
            r=self.r,
            vera_dropout=self.dropout,
            d_initial=self.d_initial,
            projection_prng_key=self.projection_prng_key,
            save_projection=True,
        )
