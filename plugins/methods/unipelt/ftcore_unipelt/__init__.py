"""LoRA, a prefix and an adapter, each behind a gate (Mao et al. 2021, arXiv:2110.07577)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, hookimpl, options
from ftcore_adapter import Activation, places
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@options
class UniPELT:
    """W x + g B A x on q and v, attention(q, [g P_k; K], [g P_v; V]) and h + g A(h) with each g = sigmoid(w x + b)."""

    suggested_lr: ClassVar[float] = 5e-4
    unpackable: ClassVar[str] = "each row needs the prefix before it"
    one_of: ClassVar[str] = "transformers' interface of attentions"
    excused: ClassVar[Mapping[str, str]] = {
        "check_start_is_the_base": "a prefix takes its share of every softmax, whatever it holds"
    }

    r: Annotated[int, Field(ge=1, description="Rank of LoRA's update of q and v.")] = 8
    alpha: Annotated[int, Field(ge=1, description="LoRA's update is scaled by alpha / r.")] = 16
    num_virtual_tokens: Annotated[int, Field(ge=1, description="Keys and values in front of every attention.")] = 10
    prefix_projection: Annotated[
        bool, Field(description="Make the prefix by a two-layer network, as the paper does, instead of directly.")
    ] = False
    encoder_hidden_size: Annotated[
        int, Field(ge=1, description="Width of the network that makes the prefix; used with prefix_projection.")
    ] = 512
    bottleneck: Annotated[
        int | None, Field(ge=1, description="Width of the adapter's bottleneck, instead of by reduction_factor.")
    ] = None
    reduction_factor: Annotated[
        int, Field(ge=1, description="How many times narrower than what it reads the bottleneck is.")
    ] = 16
    activation: Annotated[Activation, Field(description="Nonlinearity in the bottleneck.")] = "gelu"
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on LoRA's input and on the adapter's change.")] = (
        0.0
    )

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with gated prefixes, low-rank updates and adapters; refused where one of them has no place."""
        from ftcore.adapters import select
        from ftcore_adapter.layers import Plan
        from ftcore_mam.prefix import attentions

        from ftcore_unipelt.layers import put_gated_adapter, put_gated_lora, put_gated_prefix

        plan = Plan(self.bottleneck, self.reduction_factor, self.activation, self.dropout)
        hidden = self.encoder_hidden_size if self.prefix_projection else None
        for attention in attentions(model, loaded):
            put_gated_prefix(model, attention, self.num_virtual_tokens, hidden)
        for name in select(loaded.parts, ("attention.q", "attention.v")):
            put_gated_lora(model, name, self.r, self.alpha, self.dropout)
        for name in places(loaded, "pfeiffer"):
            put_gated_adapter(model, name, plan)
        return model
