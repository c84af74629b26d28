"""Bloom (BigScience 2022, arXiv:2211.05100), in transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ftcore import options
from ftcore.families import DECODES, SCORES, HFModel

BLOCK = "transformer.h.*"
SIZES: Mapping[str, str] = {
    "560m": "bigscience/bloom-560m",
    "1.1b": "bigscience/bloom-1b1",
    "1.7b": "bigscience/bloom-1b7",
    "3b": "bigscience/bloom-3b",
    "7.1b": "bigscience/bloom-7b1",
    "176b": "bigscience/bloom",
    "z-560m": "bigscience/bloomz-560m",
    "z-1.1b": "bigscience/bloomz-1b1",
    "z-1.7b": "bigscience/bloomz-1b7",
    "z-3b": "bigscience/bloomz-3b",
    "z-7.1b": "bigscience/bloomz-7b1",
    "z-176b": "bigscience/bloomz",
    "389m-zh": "Langboat/bloom-389m-zh",
    "800m-zh": "Langboat/bloom-800m-zh",
    "1.4b-zh": "Langboat/bloom-1b4-zh",
    "2.5b-zh": "Langboat/bloom-2b5-zh",
    "6.4b-zh": "Langboat/bloom-6b4-zh",
}


@options
class Bloom(HFModel):
    """Decoders of the type bloom, whose q, k and v are one projection."""

    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    unpackable: ClassVar[str] = "its attention adds a bias by distance (ALiBi) and takes no borders between rows"
    roles: ClassVar[Mapping[str, str]] = {
        "block": BLOCK,
        **dict.fromkeys(("attention.q", "attention.k", "attention.v"), f"{BLOCK}.self_attention.query_key_value"),
        "attention.o": f"{BLOCK}.self_attention.dense",
        "mlp.up": f"{BLOCK}.mlp.dense_h_to_4h",
        "mlp.down": f"{BLOCK}.mlp.dense_4h_to_h",
        "norm": "transformer.*layernorm transformer.ln_f",
        "embedding": "transformer.word_embeddings",
        "head": "lm_head score",
    }
