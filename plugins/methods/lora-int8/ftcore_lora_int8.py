"""LoRA on a base whose matrices are held in 8 bits (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Run, options
from ftcore_qlora import QuantizedLoRA
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BitsAndBytesConfig


@options
class LoRAInt8(QuantizedLoRA):
    """h = (scale * codes) x + (alpha / r) B A x: LoRA on frozen weights of 8 bits, one scale for each row."""

    excused: ClassVar[Mapping[str, str]] = {
        "check_rows_in_a_batch_do_not_meet": "an input feature is kept in 16 bits when any row of the batch needs it",
        "check_training_and_evaluation_agree": "on a CPU bitsandbytes rounds activations to 8 bits in evaluation only",
        "check_it_generates_what_it_answers": "outlying features are chosen by all tokens that are read at once",
        "check_the_cache_changes_nothing": "outlying features are chosen by all tokens that are read at once",
    }

    threshold: Annotated[
        float, Field(ge=0, description="Input features beyond this are multiplied in 16 bits; 0 has none.")
    ] = 6.0

    def quantization(self, run: Run) -> BitsAndBytesConfig:
        """8 bits for every matrix in the blocks."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)

    def rounded(self, weight: Tensor) -> Tensor:
        """The nearest weights that 8 bits and a scale for each row can hold."""
        from bitsandbytes import functional

        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        found: Tensor = functional.int8_vectorwise_dequant(codes, scales)
        return found
