"""Llama 1, 2 and 3 and what shares their architecture, in transformers' own class."""

from __future__ import annotations

from typing import ClassVar

from ftcore import options
from ftcore.families import HFModel


@options
class Llama(HFModel):
    """Decoders of the type llama: Llama, Vicuna, Yi, CodeLlama."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)
