"""The mix-and-match adapter (He et al. 2021, arXiv:2110.04366): a prefix in attention and an adapter beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, hookimpl, options
from ftcore_adapter import Activation, Reduction, mlps
from pydantic import Field

if TYPE_CHECKING:
    from ftcore_adapter.layers import Plan
    from torch import nn


VirtualTokens = Annotated[int, Field(ge=1, description="Keys and values in front of every attention.")]


@options
class PrefixAndAdapter:
    """A method with a learned prefix in every attention and a bottleneck at every MLP."""

    unpackable: ClassVar[str] = "each row needs the prefix before it"
    one_of: ClassVar[str] = "transformers' interface of attentions"
    excused: ClassVar[Mapping[str, str]] = {
        "check_start_is_the_base": "a prefix takes its share of every softmax, whatever it holds"
    }

    num_virtual_tokens: VirtualTokens = 30
    prefix_projection: Annotated[
        bool, Field(description="Make the prefix by a two-layer network, as the paper does, instead of directly.")
    ] = False
    encoder_hidden_size: Annotated[
        int, Field(ge=1, description="Width of the network that makes the prefix; used with prefix_projection.")
    ] = 512
    bottleneck: Annotated[
        int | None, Field(ge=1, description="Width of the adapter's bottleneck, instead of by reduction_factor.")
    ] = None
    reduction_factor: Reduction = 2
    activation: Activation = "relu"

    def plan(self, dropout: float) -> Plan:
        """What the bottlenecks are like."""
        from ftcore_adapter.layers import Plan

        return Plan(self.bottleneck, self.reduction_factor, self.activation, dropout)

    def hidden(self) -> int | None:
        """The width of the network that makes the prefix, where one does."""
        return self.encoder_hidden_size if self.prefix_projection else None


@options
class MAM(PrefixAndAdapter):
    """attention(q, [P_k; K], [P_v; V]) with a learned prefix P, and mlp(x) + scale * U act(D x + b) + c beside it."""

    suggested_lr: ClassVar[float] = 1e-3

    scale: Annotated[float, Field(gt=0, description="What the adapter's change is multiplied with.")] = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapter's change.")] = 0.0

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with a prefix in each attention and an adapter beside each MLP."""
        from ftcore_adapter.layers import put_beside

        from ftcore_mam.prefix import attentions, prefix_of, put_prefix

        plan, hidden = self.plan(self.dropout), self.hidden()
        for attention in attentions(model, loaded):
            put_prefix(model, attention, prefix_of(model, attention, self.num_virtual_tokens, hidden))
        for entrance, end in mlps(loaded):
            put_beside(model, entrance, end, plan, self.scale)
        return model
