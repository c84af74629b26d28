"""Qwen2, Qwen2.5 and Qwen3 in transformers' own classes, with a starter checkpoint that ftcore trained."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ftcore import options
from ftcore.families import HFModel


@options
class Qwen(HFModel):
    """Dense decoders of the types qwen2 and qwen3."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3")
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
