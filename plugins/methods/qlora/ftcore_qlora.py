"""LoRA on a base whose matrices are held in 4 bits (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ftcore import Data, FtcoreError, Loaded, Refused, Run, hookimpl, options
from ftcore_lora import LoRA
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import BitsAndBytesConfig


@options
class QuantizedLoRA(LoRA):
    """LoRA on a base that bitsandbytes quantises as it is read; it says what it merges into."""

    optimizer: Annotated[
        Literal["auto", "adamw", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"],
        Field(description="AdamW of torch or of bitsandbytes; auto is paged_adamw_32bit on CUDA, else adamw."),
    ] = "auto"
    merge_into: Annotated[
        Literal["unquantized", "dequantized"],
        Field(
            alias="merge",
            description="What the update is merged into: the checkpoint's weights, or what quantising left of them.",
            json_schema_extra={"harmless": True},
        ),
    ] = "unquantized"

    def quantization(self, run: Run) -> BitsAndBytesConfig:
        """How transformers is to quantise the base."""
        raise FtcoreError(f"{type(self).__name__} names no quantisation; define its method 'quantization'")

    def rounded(self, weight: Tensor) -> Tensor:
        """What is left of a matrix of shape (out, in) that was quantised and dequantised again."""
        raise FtcoreError(f"{type(self).__name__} cannot dequantise; define its method 'rounded'")

    @hookimpl
    def load_kwargs(self, run: Run) -> Mapping[str, Any] | None:
        """A quantised base to train and to answer; a whole one to merge into, and none of either for a plan."""
        return {"quantization_config": self.quantization(run)} if run.intent in ("train", "infer") else None

    @hookimpl(wrapper=True)
    def load_model(self, run: Run) -> Generator[None, Loaded, Loaded]:
        """On a CPU the quantised weights stay as they were stored.

        bitsandbytes would repack them for AVX-512 when they are first used in evaluation, and round their scales on
        the way, so that training and evaluation would see different weights.
        """
        loaded = yield
        for module in loaded.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return loaded

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """LoRA on the quantised base; to be merged, on the weights that the update is merged into."""
        if self.init not in ("default", "gaussian", "orthogonal"):
            raise Refused(
                f"init '{self.init}' takes its start from whole weights, and these are quantised; use default"
            )
        if run.intent == "merge":
            self._make_ready_to_merge(run, model, loaded)
        return super().inject_adapter(run, model, loaded, data, steps)

    def _make_ready_to_merge(self, run: Run, model: nn.Module, loaded: Loaded) -> None:
        if self.merge_into == "unquantized":
            run.say(f"merging into the weights of {loaded.checkpoint}, which training saw quantised")
            return
        from ftcore.adapters import PartialParts

        if isinstance(loaded.parts, PartialParts):
            raise Refused("merge 'dequantized' needs the whole model in memory; merge without --stream")
        run.say(f"merging into the dequantised weights of {loaded.checkpoint}, as training saw them")
        round_weights(model, self.rounded, loaded.trained)

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer | None:
        """AdamW as asked for; paged and 8-bit states are bitsandbytes'."""
        from ftcore.training import adam_settings

        kind = self._optimizer_for(model)
        if kind == "adamw":
            return LoRA.create_optimizer(self, run, model)
        from bitsandbytes.optim import AdamW

        how = {"optim_bits": 8 if kind.endswith("8bit") else 32, "is_paged": kind.startswith("paged")}
        made: Optimizer = AdamW(self.groups(run, model), **adam_settings(run.settings), **how)
        return made

    def _optimizer_for(self, model: nn.Module) -> str:
        """The optimizer's name; there is nothing to page to where the weights are in main memory already."""
        on_cuda = next(model.parameters()).device.type == "cuda"
        if self.optimizer == "auto":
            return "paged_adamw_32bit" if on_cuda else "adamw"
        if self.optimizer.startswith("paged") and not on_cuda:
            return self.optimizer.removeprefix("paged_").replace("adamw_32bit", "adamw")
        return self.optimizer


def round_weights(model: nn.Module, rounded: Any, trained: Sequence[str] = ()) -> None:
    """Every matrix that was quantised, so none of what trains whole, holds what `rounded` makes of it."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    whole: Any = model
    kept = HfQuantizer.get_modules_to_not_convert(whole, [*trained] or None, whole._keep_in_fp32_modules)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and should_convert_module(name, kept):
            turned = isinstance(module, Conv1D)
            with torch.no_grad():
                weight = module.weight.T.contiguous() if turned else module.weight
                found = rounded(weight).to(weight.dtype)
                module.weight.copy_(found.T if turned else found)


@options
class QLoRA(QuantizedLoRA):
    """h = dequantise(codes, absmax) x + (alpha / r) B A x: LoRA on frozen weights of 4 bits (equations 5 and 6)."""

    quant_type: Annotated[
        Literal["nf4", "fp4"], Field(description="The 16 values of a weight: NormalFloat or floating point of 4 bits.")
    ] = "nf4"
    double_quant: Annotated[bool, Field(description="Quantise the scales of the blocks of 64 weights as well.")] = True
    compute_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="Number format in which dequantised weights are multiplied; auto is the run's precision."),
    ] = "auto"

    def quantization(self, run: Run) -> BitsAndBytesConfig:
        """4 bits for every matrix in the blocks."""
        from ftcore.settings import dtype_of
        from transformers import BitsAndBytesConfig

        named = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=named.get(self.compute_dtype) or dtype_of(run.settings),
        )

    def rounded(self, weight: Tensor) -> Tensor:
        """The nearest weights that 4 bits and a scale for 64 of them can hold."""
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=64, compress_statistics=self.double_quant, quant_type=self.quant_type
        )
        found: Tensor = functional.dequantize_4bit(codes, state)
        return found
