"""Bloom (BigScience 2022, arXiv:2211.05100), in transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import HFModel

BLOCK = "transformer.h.*"


@options
class Bloom(HFModel):
    """Decoders of the type bloom, whose q, k and v are one projection."""

    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    unpackable: ClassVar[str] = "its attention adds a bias by distance (ALiBi) and takes no borders between rows"
    roles: ClassVar[Mapping[str, str]] = {
        "block": BLOCK,
        **dict.fromkeys(("attention.q", "attention.k", "attention.v"), f"{BLOCK}.self_attention.query_key_value"),
        "attention.o": f"{BLOCK}.self_attention.dense",
        "mlp.up": f"{BLOCK}.mlp.dense_h_to_4h",
        "mlp.down": f"{BLOCK}.mlp.dense_4h_to_h",
        "norm": "transformer.*layernorm transformer.ln_f",
        "embedding": "transformer.word_embeddings",
        "head": "lm_head",
    }
