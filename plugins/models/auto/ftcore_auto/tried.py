"""What the conformance kit tries the family on: it claims no model types itself, so these claim some for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options

from ftcore_auto import Auto


@options
class Decoders(Auto):
    """Decoders with layers of their own for q, k and v, and with fused ones."""

    model_types: ClassVar[tuple[str, ...]] = ("olmo2", "phi3")
    heads: ClassVar[tuple[str, ...]] = ("causal-lm",)


@options
class Encoders(Auto):
    """Encoders whose attention and mlp lie in several modules each."""

    model_types: ClassVar[tuple[str, ...]] = ("rembert",)
    heads: ClassVar[tuple[str, ...]] = ("masked-lm", "token-classification")


@options
class EncoderDecoders(Auto):
    """Two stacks, of which one looks at the other."""

    model_types: ClassVar[tuple[str, ...]] = ("m2m_100",)
    heads: ClassVar[tuple[str, ...]] = ("seq2seq-lm",)
    tiny: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "m2m_100": {"decoder_start_token_id": 2, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    }
