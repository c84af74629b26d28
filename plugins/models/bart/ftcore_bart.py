"""BART (Lewis et al. 2019, arXiv:1910.13461) in transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ftcore import options
from ftcore.families import HFModel

LAYER = "model.*coder.layers.*"
TINY: Mapping[str, Any] = {
    "d_model": 32,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
    "decoder_start_token_id": 2,
    "tie_word_embeddings": True,
}


@options
class Bart(HFModel):
    """Encoder-decoders of the type bart."""

    model_types: ClassVar[tuple[str, ...]] = ("bart",)
    sizes: ClassVar[Mapping[str, str]] = {
        "base": "facebook/bart-base",
        "large": "facebook/bart-large",
        "large-cnn": "facebook/bart-large-cnn",
        "large-xsum": "facebook/bart-large-xsum",
        "base-chinese": "fnlp/bart-base-chinese",
        "large-chinese": "fnlp/bart-large-chinese",
    }
    heads: ClassVar[tuple[str, ...]] = ("seq2seq-lm",)
    unpackable: ClassVar[str] = "a row is read in one stack and written in another"
    tiny: ClassVar[Mapping[str, Mapping[str, Any]]] = {"bart": TINY}
    roles: ClassVar[Mapping[str, str]] = {
        "block": LAYER,
        "attention.q": f"{LAYER}.*_attn.q_proj",
        "attention.k": f"{LAYER}.*_attn.k_proj",
        "attention.v": f"{LAYER}.*_attn.v_proj",
        "attention.o": f"{LAYER}.*_attn.out_proj",
        "mlp.up": f"{LAYER}.fc1",
        "mlp.down": f"{LAYER}.fc2",
        "norm": "*layer_norm *layernorm_embedding",
        "embedding": "model.shared",
        "head": "lm_head",
    }
