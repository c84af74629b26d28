"""Baichuan2's head: a projection that answers as if each of its rows had length one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear, normalize

SCALED = "the head's rows count by their directions, so no update can be added to it; train it whole or leave it out"


class UnitHead(nn.Linear):
    """logits = h normalize(W)^T, where W may have rows of any length: its gradient is that of the makers' head."""

    @classmethod
    def of(cls, head: nn.Linear, weight: Tensor) -> UnitHead:
        """In the place of `head`, with this weight in its precision and on its device."""
        made = cls(head.in_features, head.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(weight.to(head.weight))
        return made.train(head.training)

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits."""
        return linear(hidden, normalize(self.weight))

    def plain(self) -> nn.Linear:
        """A projection that answers the same without dividing."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(normalize(self.weight.detach()), requires_grad=self.weight.requires_grad)
        return made.train(self.training)


def is_added_to(model: nn.Module) -> bool:
    """Whether a head that divides is the base of a layer that adds to what it answers."""
    return any(isinstance(getattr(layer, "base_layer", None), UnitHead) for layer in model.modules())


def made_plain(model: nn.Module) -> None:
    """The model's head no longer divides, and answers the same."""
    head = getattr(model, "lm_head", None)
    if isinstance(head, UnitHead):
        model.lm_head = head.plain()
