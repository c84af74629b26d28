"""P-tuning (Liu et al. 2021, arXiv:2103.10385) through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ftcore import Data, Loaded, Refused, Run, options
from ftcore_prompt import PromptMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@options
class PTuning(PromptMethod):
    """h = f([MLP(LSTM(P)); E(x)]), or [MLP(P); E(x)]: prompts P and their encoder learned, f and E frozen (equation 6).

    Afterwards only what the encoder makes of P is kept, num_virtual_tokens x d numbers.
    """

    suggested_lr: ClassVar[float] = 1e-3

    reparameterization: Annotated[
        Literal["mlp", "lstm"],
        Field(description="What makes the prompts: a bidirectional LSTM and an MLP of two layers, or one of three."),
    ] = "lstm"
    encoder_hidden_size: Annotated[
        int | None,
        Field(ge=1, description="Width of the encoder; if not given the model's, of which an LSTM has half."),
    ] = None
    encoder_num_layers: Annotated[int, Field(ge=1, description="Layers of the LSTM.")] = 2
    encoder_dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout between the layers of the LSTM.")] = 0.0

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's PromptEncoderConfig; what it would leave unheeded is refused."""
        from ftcore_prompt.virtual_tokens import transformers_model
        from peft import PromptEncoderConfig

        self.refuse_unheeded()
        width = transformers_model(model).get_input_embeddings().weight.shape[1]
        usual = width // 2 if self.reparameterization == "lstm" else width
        return PromptEncoderConfig(
            encoder_reparameterization_type=self.reparameterization.upper(),
            encoder_hidden_size=self.encoder_hidden_size or usual,
            encoder_num_layers=self.encoder_num_layers,
            encoder_dropout=self.encoder_dropout,
        )

    def refuse_unheeded(self) -> None:
        """Refused when an option would change nothing."""
        if self.reparameterization == "mlp" and (self.encoder_num_layers != 2 or self.encoder_dropout):
            raise Refused(
                f"ptuning.encoder_num_layers {self.encoder_num_layers} and encoder_dropout {self.encoder_dropout} are "
                "the LSTM's, and reparameterization is 'mlp'; leave them out or choose lstm"
            )
        if self.encoder_dropout and self.encoder_num_layers == 1:
            raise Refused(
                f"ptuning.encoder_dropout {self.encoder_dropout} acts between layers of the LSTM, and there is one; "
                "raise encoder_num_layers to 2 or leave the dropout out"
            )
