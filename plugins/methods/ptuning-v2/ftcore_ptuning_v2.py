"""P-tuning v2 (Liu et al. 2022, arXiv:2110.07602) through PEFT."""

from __future__ import annotations

from typing import ClassVar

from ftcore import options
from ftcore_prompt import PrefixMethod


@options
class PTuningV2(PrefixMethod):
    """In every layer softmax(q [P_k; K]^T) [P_v; V] with P_k, P_v learned as they are and the model frozen."""

    suggested_lr: ClassVar[float] = 2e-2
