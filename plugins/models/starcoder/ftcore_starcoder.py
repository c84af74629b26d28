"""StarCoder (Li et al. 2023, arXiv:2305.06161) and StarCoder2 (arXiv:2402.19173), in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import DECODES, LLAMA_ROLES, SCORES, HFModel

FUSED = "transformer.h.*.attn.c_attn"
SIZES: Mapping[str, str] = {
    "3b": "bigcode/starcoder2-3b",
    "7b": "bigcode/starcoder2-7b",
    "15b": "bigcode/starcoder2-15b",
    "1-1b": "bigcode/starcoderbase-1b",
    "1-3b": "bigcode/starcoderbase-3b",
    "1-7b": "bigcode/starcoderbase-7b",
    "1-15b": "bigcode/starcoderbase",
    "1-15b-python": "bigcode/starcoder",
    "santa-1.1b": "bigcode/gpt_bigcode-santacoder",
}


@options
class StarCoder(HFModel):
    """Decoders of the types gpt_bigcode, whose q, k and v are one projection, and starcoder2."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt_bigcode", "starcoder2")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    sizes: ClassVar[Mapping[str, str]] = SIZES
    roles: ClassVar[Mapping[str, str]] = {
        "block": "transformer.h.* model.layers.*",
        **{f"attention.{of}": f"{FUSED} model.layers.*.self_attn.{of}_proj" for of in "qkv"},
        "attention.o": "transformer.h.*.attn.c_proj model.layers.*.self_attn.o_proj",
        "mlp.up": "transformer.h.*.mlp.c_fc model.layers.*.mlp.c_fc",
        "mlp.down": "transformer.h.*.mlp.c_proj model.layers.*.mlp.c_proj",
        "norm": f"transformer.*ln_* {LLAMA_ROLES['norm']}",
        "embedding": "transformer.wte model.embed_tokens",
        "head": "lm_head score",
    }
