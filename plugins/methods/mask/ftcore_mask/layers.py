"""The binary mask of one weight matrix: real-valued scores, the threshold, and the gradient straight through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from ftcore.layers import makers, settle
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class StraightThrough(torch.autograd.Function):
    """1 where a score reaches the threshold and 0 elsewhere; the gradient of a score is that of its entry."""

    @staticmethod
    def forward(context: Any, scores: Tensor, threshold: float) -> Tensor:
        """The binary mask in the scores' own precision."""
        return (scores >= threshold).to(scores.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The mask's gradient, as the scores'."""
        return gradient, None


class WeightMask(nn.Module):
    """Multiplies a weight by the binary mask of its scores; every other number of it is left as it is, bit for bit."""

    def __init__(self, scores: Tensor, threshold: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.threshold = threshold

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with what is masked at zero."""
        mask: Tensor = StraightThrough.apply(self.scores, self.threshold)  # type: ignore[no-untyped-call]
        return weight * mask.to(weight.dtype)

    def packed(self) -> Tensor:
        """The mask as bytes of eight entries each, in the order of the flattened matrix."""
        kept = (self.scores.detach() >= self.threshold).cpu().numpy()
        return torch.from_numpy(numpy.packbits(kept.reshape(-1)))

    @torch.no_grad()
    def unpack(self, packed: Tensor) -> None:
        """The scores are far on that side of the threshold which `packed` says."""
        count = self.scores.numel()
        kept = torch.from_numpy(numpy.unpackbits(packed.cpu().numpy(), count=count)).reshape(self.scores.shape)
        self.scores.copy_(kept * (2 * self.threshold))


def masked(model: nn.Module) -> Iterator[tuple[str, WeightMask]]:
    """The mask of every masked weight, by the name of the module that the weight is in."""
    return makers(model, WeightMask)


def attach(module: nn.Module, scores: Tensor, threshold: float) -> None:
    """The weight of `module` is masked by `scores`."""
    register_parametrization(module, "weight", WeightMask(scores, threshold))


def detach(model: nn.Module) -> None:
    """Every masked weight is a plain one, zero where it was masked."""
    settle(model, WeightMask)


def above(weight: Tensor, threshold: float) -> Tensor:
    """Scores uniform between the threshold and four times it: every entry is on, and some are nearer to going off."""
    return torch.empty(weight.shape, dtype=torch.float32, device=weight.device).uniform_(threshold, 4 * threshold)


def with_smallest_off(scores: Tensor, weight: Tensor, share: float, threshold: float) -> Tensor:
    """`scores`, moved below the threshold for that share of the entries whose weight has the smallest magnitude."""
    off = weight.abs().flatten().argsort()[: int(share * weight.numel())]
    below = torch.empty(len(off), dtype=torch.float32, device=weight.device).uniform_(-2 * threshold, 0.99 * threshold)
    return scores.flatten().index_copy(0, off, below).reshape(scores.shape)
