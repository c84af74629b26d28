"""BOFT, orthogonal fine-tuning by butterfly factorization (Liu et al. 2023, arXiv:2311.06243), through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Loaded, Refused, Run, hookimpl, options
from ftcore_peft import MergeablePeftMethod, refuse_unfit
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class BOFT(MergeablePeftMethod):
    """h = s * (W (R x)) with R = B_m … B_1, each a permuted block-diagonal rotation; it starts as the identity."""

    suggested_lr: ClassVar[float] = 1e-3

    boft_block_size: Annotated[int, Field(ge=0, description="Width of a block; 0 derives it from boft_block_num.")] = 4
    boft_block_num: Annotated[int, Field(ge=0, description="Number of blocks; 0 derives it from boft_block_size.")] = 0
    boft_n_butterfly_factor: Annotated[
        int, Field(ge=1, description="Sparse rotations in the product; with 1 no number meets those of other blocks.")
    ] = 1
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of one rotation's blocks that a training step leaves out.")
    ] = 0.0

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's BOFTConfig; blocks that do not fill a layer's input, or cannot be paired, are refused by name."""
        from peft import BOFTConfig

        self.refuse_blocks(model, self.targets(run, model, loaded))
        return BOFTConfig(
            boft_block_size=self.boft_block_size,
            boft_block_num=self.boft_block_num,
            boft_n_butterfly_factor=self.boft_n_butterfly_factor,
            boft_dropout=self.dropout,
        )

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with layers that need no CUDA kernel to be compiled for them."""
        from ftcore_boft.layers import butterflies

        with butterflies():
            return super().inject_adapter(run, model, loaded, data, steps)

    def refuse_blocks(self, model: nn.Module, chosen: tuple[str, ...]) -> None:
        """Refused when a chosen module's input cannot be cut into the blocks that the options describe."""
        if bool(self.boft_block_size) == bool(self.boft_block_num):
            given = f"boft_block_size is {self.boft_block_size} and boft_block_num is {self.boft_block_num}"
            raise Refused(f"{given}; give one of them and leave the other 0, since their product is the layer's width")
        option = "boft_block_size" if self.boft_block_size else "boft_block_num"
        shown = f"with boft.boft_n_butterfly_factor {self.boft_n_butterfly_factor} boft.{option}"
        refuse_unfit(model, chosen, shown, self.boft_block_size or self.boft_block_num, self.fits)

    def fits(self, width: int, number: int) -> bool:
        """Whether blocks of this size, or this many, fill a width and can be paired as often as there are factors."""
        if width % number:
            return False
        size = number if self.boft_block_size else width // number
        factors = self.boft_n_butterfly_factor
        return width % (size * 2 ** (factors - 1)) == 0 and (factors == 1 or size % 2 == 0)
