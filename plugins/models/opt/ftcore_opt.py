"""OPT, the open GPT-3 (Zhang et al. 2022, arXiv:2205.01068), in transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import DECODES, SCORES, HFModel

LAYER = "model.decoder.layers.*"
SIZES: Mapping[str, str] = {
    "125m": "facebook/opt-125m",
    "350m": "facebook/opt-350m",
    "1.3b": "facebook/opt-1.3b",
    "2.7b": "facebook/opt-2.7b",
    "6.7b": "facebook/opt-6.7b",
    "13b": "facebook/opt-13b",
    "30b": "facebook/opt-30b",
    "66b": "facebook/opt-66b",
}


@options
class OPT(HFModel):
    """Decoders of the type opt, from 125M to 66B."""

    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    sizes: ClassVar[Mapping[str, str]] = SIZES
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}}
    roles: ClassVar[Mapping[str, str]] = {
        "block": LAYER,
        "attention.q": f"{LAYER}.self_attn.q_proj",
        "attention.k": f"{LAYER}.self_attn.k_proj",
        "attention.v": f"{LAYER}.self_attn.v_proj",
        "attention.o": f"{LAYER}.self_attn.out_proj",
        "mlp.up": f"{LAYER}.fc1",
        "mlp.down": f"{LAYER}.fc2",
        "norm": "model.decoder*layer_norm",
        "embedding": "model.decoder.embed_tokens",
        "head": "lm_head score",
    }
