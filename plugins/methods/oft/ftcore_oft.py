"""OFT, orthogonal fine-tuning (Qiu et al. 2023, arXiv:2306.07280; 2025, arXiv:2506.19847), through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Refused, Run, options
from ftcore_peft import MergeablePeftMethod, refuse_unfit
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class OFT(MergeablePeftMethod):
    """h = W (R x): R = (I + Q)(I - Q)^-1 rotates blocks of x; the skew-symmetric Q trains from zero."""

    suggested_lr: ClassVar[float] = 1e-3

    r: Annotated[int, Field(ge=0, description="Number of blocks; 0 derives it from oft_block_size.")] = 0
    oft_block_size: Annotated[int, Field(ge=0, description="Width of a block; 0 derives it from r.")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="Share of the blocks that a training step leaves out.")] = (
        0.0
    )
    coft: Annotated[bool, Field(description="Keep the rotation within eps of none (COFT).")] = False
    eps: Annotated[float, Field(gt=0, description="How far COFT lets the rotation go.")] = 6e-5
    block_share: Annotated[bool, Field(description="Rotate every block of a layer alike.")] = False
    use_cayley_neumann: Annotated[
        bool, Field(description="Approximate the inverse by a series: quicker, and R is orthogonal only nearly.")
    ] = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=2, description="Terms of that series.")] = 5

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's OFTConfig; blocks that do not fill a layer's input are refused, where PEFT would take others."""
        from peft import OFTConfig

        if bool(self.r) == bool(self.oft_block_size):
            given = f"oft.r is {self.r} and oft.oft_block_size is {self.oft_block_size}"
            raise Refused(f"{given}; give one of them and leave the other 0, since their product is the layer's width")
        option, size = ("r", self.r) if self.r else ("oft_block_size", self.oft_block_size)
        refuse_unfit(model, self.targets(run, model, loaded), f"oft.{option}", size)
        return OFTConfig(
            r=self.r,
            oft_block_size=self.oft_block_size,
            module_dropout=self.dropout,
            coft=self.coft,
            eps=self.eps,
            block_share=self.block_share,
            use_cayley_neumann=self.use_cayley_neumann,
            num_cayley_neumann_terms=self.num_cayley_neumann_terms,
        )
