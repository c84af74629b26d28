"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190) through PEFT."""

from __future__ import annotations

from typing import Annotated, ClassVar

from ftcore import options
from ftcore_prompt import PrefixMethod
from pydantic import Field


@options
class Prefix(PrefixMethod):
    """In every layer softmax(q [P_k; K]^T) [P_v; V] with (P_k, P_v) = MLP(P) learned and the model frozen (equation 3).

    Afterwards only what the MLP makes of P is kept, num_virtual_tokens x 2 L d numbers.
    """

    suggested_lr: ClassVar[float] = 2e-4

    num_virtual_tokens: Annotated[int, Field(ge=1, description="Virtual tokens before every row.")] = 10
    projection: Annotated[
        bool, Field(description="While training, an MLP makes the keys and values from one embedding for each token.")
    ] = True
    encoder_hidden_size: Annotated[
        int | None, Field(ge=1, description="Width of that MLP; as wide as a layer's keys when not given.")
    ] = 512
