"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) and its variants, through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from ftcore import Data, Loaded, Run, options
from ftcore_peft import MergeablePeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class LoRA(MergeablePeftMethod):
    """h = W x + (alpha / r) B A x with A of shape (r, in) and B of shape (out, r); W stays frozen (equation 3)."""

    r: Annotated[int, Field(ge=1, description="Rank of the update.")] = 8
    alpha: Annotated[int, Field(ge=1, description="The update is scaled by alpha / r.")] = 16
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the input of the update.")] = 0.0
    bias: Annotated[Literal["none", "all", "lora_only"], Field(description="Which biases train beside the update.")] = (
        "none"
    )
    use_dora: Annotated[bool, Field(description="Train magnitude and direction apart (DoRA, arXiv:2402.09353).")] = (
        False
    )
    use_rslora: Annotated[bool, Field(description="Scale by alpha / sqrt(r) instead (rsLoRA, arXiv:2312.03732).")] = (
        False
    )
    init: Annotated[
        Literal["default", "gaussian", "pissa", "olora", "orthogonal"],
        Field(description="Initial A and B; pissa (arXiv:2404.02948) and olora (arXiv:2406.01775) take them out of W."),
    ] = "default"

    def config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LoraConfig; a plan has no weights to take an initial value from."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            bias=self.bias,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights=True if self.init == "default" or run.intent == "plan" else self.init,
        )
