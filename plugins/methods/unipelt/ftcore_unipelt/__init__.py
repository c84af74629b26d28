"""LoRA, a prefix and an adapter, each behind a gate (Mao et al. 2021, arXiv:2110.07577)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, hookimpl, options
from ftcore_adapter import Activation, Reduction, places
from ftcore_mam import PrefixAndAdapter, VirtualTokens
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@options
class UniPELT(PrefixAndAdapter):
    """W x + g B A x on q and v, attention(q, [g P_k; K], [g P_v; V]) and h + g A(h) with each g = sigmoid(w x + b)."""

    suggested_lr: ClassVar[float] = 5e-4

    r: Annotated[int, Field(ge=1, description="Rank of LoRA's update of q and v.")] = 8
    alpha: Annotated[int, Field(ge=1, description="LoRA's update is scaled by alpha / r.")] = 16
    num_virtual_tokens: VirtualTokens = 10
    reduction_factor: Reduction = 16
    activation: Activation = "gelu"
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on LoRA's input and on the adapter's change.")] = (
        0.0
    )

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with gated prefixes, low-rank updates and adapters; refused where one of them has no place."""
        from ftcore.adapters import select
        from ftcore_mam.prefix import attentions

        from ftcore_unipelt.layers import put_gated_adapter, put_gated_lora, put_gated_prefix

        plan, hidden = self.plan(self.dropout), self.hidden()
        for attention in attentions(model, loaded):
            put_gated_prefix(model, attention, self.num_virtual_tokens, hidden)
        for name in select(loaded.parts, ("attention.q", "attention.v")):
            put_gated_lora(model, name, self.r, self.alpha, self.dropout)
        for name in places(loaded, "pfeiffer"):
            put_gated_adapter(model, name, plan)
        return model
