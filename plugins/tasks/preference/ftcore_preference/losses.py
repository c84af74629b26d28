"""What answers are worth and what a comparison costs: DPO, IPO, ORPO, SimPO and KTO as their papers write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["dpo", "ipo", "orpo", "simpo", "kto"]
WITH_REFERENCE: tuple[Kind, ...] = ("dpo", "ipo", "kto")


@dataclass(frozen=True)
class Said:
    """Of each answer the log-probability of all its tokens, their number, and the reference's log-probability."""

    total: Tensor
    tokens: Tensor
    reference: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> Said:
        """Some of the answers."""
        return Said(self.total[chosen], self.tokens[chosen], self.reference[chosen])

    @property
    def mean(self) -> Tensor:
        """The log-probability of a token."""
        return self.total / self.tokens

    @property
    def ratio(self) -> Tensor:
        """How much likelier the model says the answer than the reference does, as a logarithm."""
        return self.total - self.reference

    @property
    def odds(self) -> Tensor:
        """The logarithm of p / (1 - p), where p is the probability of a token."""
        import torch

        mean = self.mean.clamp(max=-1e-7)  # of what is certain the odds have no end
        return mean - torch.log(-torch.expm1(mean))


@dataclass(frozen=True)
class Objective:
    """A loss with its numbers; `strange` answers, which are none to their prompts, are there for KTO alone."""

    kind: Kind
    beta: float
    gamma: float = 0.0
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def rewards(self, said: Said) -> Tensor:
        """What each answer is worth: the quantity whose difference the loss compares."""
        return REWARDS[self.kind](said) * (1.0 if self.kind == "orpo" else self.beta)

    def of_pairs(self, better: Said, worse: Said) -> Tensor:
        """What each pair costs."""
        margin = self.rewards(better) - self.rewards(worse)
        if self.kind == "ipo":
            cost = (margin / self.beta - 1 / (2 * self.beta)) ** 2
        elif self.kind == "orpo":
            cost = self.beta * self._unlikely(margin) - better.mean
        else:
            cost = self._unlikely(margin - self.gamma * (self.kind == "simpo"))
        return cost - self.sft_weight * better.mean

    def of_judged(self, wanted: Said, unwanted: Said, strange: Said) -> Tensor:
        """What each answer costs by KTO, the wanted ones first.

        Gains and losses are seen from where strange answers are, which no gradient passes: the mean of their rewards,
        and 0 where that is negative.
        """
        import torch

        common = self.rewards(strange).detach().sum() / max(1, len(strange.total))
        seen = common.clamp(min=0.0)
        gain = self.desirable_weight * (1 - torch.sigmoid(self.rewards(wanted) - seen))
        loss = self.undesirable_weight * (1 - torch.sigmoid(seen - self.rewards(unwanted)))
        return torch.cat([gain - self.sft_weight * wanted.mean, loss])

    def _unlikely(self, margin: Tensor) -> Tensor:
        """Minus the log-likelihood of the preference, in which a share of the pairs may be the wrong way round."""
        from torch.nn.functional import logsigmoid

        wrong = self.label_smoothing
        return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


REWARDS: Mapping[Kind, Callable[[Said], Tensor]] = {
    "dpo": lambda said: said.ratio,
    "ipo": lambda said: said.ratio / said.tokens,
    "orpo": lambda said: said.odds,
    "simpo": lambda said: said.mean,
    "kto": lambda said: said.ratio,
}
