"""The sparse difference to one weight matrix: its numbers, a hard-concrete gate for each, and their pruning."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from ftcore.layers import makers, settle
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

LOWER, UPPER = -1.5, 1.5  # gamma and zeta: what the gates are stretched to before they are cut to 0 and 1
START = 5.0  # of log alpha: P(z > 0) is 0.993
SHUT, OPEN = -1e4, 1e4  # log alpha of a gate that stays where it is, whatever is drawn
SMALLEST = 1e-4  # uniform noise keeps this far from 0 and 1


class WeightDiff(nn.Module):
    """Adds z * difference to a weight; z is drawn in training and the gates' own value in evaluation.

    `difference` starts at zero. `gates` are log alpha, one for each entry, flat, so that no weight decay moves them;
    `group_gate` is one for the whole matrix. After step `fixed_after` the gates are fixed.
    """

    def __init__(self, weight: Tensor, structured: bool, fixed_after: int) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.gates = nn.Parameter(self.difference.detach().flatten() + START)
        self.group_gate = nn.Parameter(self.gates.detach()[:1].clone()) if structured else None
        self.fixed_after = fixed_after
        self.seed: int | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the difference as far as its gates let it through, summed in float32."""
        z = self.drawn() if self.training else self.settled()
        return (weight.float() + z.view_as(weight) * self.difference).to(weight.dtype)

    def drawn(self) -> Tensor:
        """Gates for one step: the same ones whenever it is asked with the same `seed`."""
        device = self.gates.device
        source = None if self.seed is None else torch.Generator(device).manual_seed(self.seed)
        z = hard_concrete(self.gates, torch.rand(len(self.gates), generator=source, device=device))
        if self.group_gate is None:
            return z
        return z * hard_concrete(self.group_gate, torch.rand(1, generator=source, device=device))

    def settled(self) -> Tensor:
        """The gates without noise."""
        z = stretched(torch.sigmoid(self.gates))
        return z if self.group_gate is None else z * stretched(torch.sigmoid(self.group_gate))

    def expected_count(self) -> Tensor:
        """How many entries of the difference are expected to be let through: its expected L0 norm."""
        count = open_probability(self.gates).sum()
        return count if self.group_gate is None else count * open_probability(self.group_gate).squeeze()

    @torch.no_grad()
    def effective(self) -> Tensor:
        """What is added to the weight in evaluation, flat."""
        return self.settled() * self.difference.flatten()

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """The difference is what it was in evaluation where `kept` says so, and nothing elsewhere, from now on."""
        self.give(kept.nonzero().flatten(), self.effective()[kept])

    @torch.no_grad()
    def give(self, places: Tensor, values: Tensor) -> None:
        """The difference is `values` at the flat `places` and nothing elsewhere, also after more training."""
        self.difference.view(-1).index_copy_(0, places, values)
        self.gates.fill_(SHUT).index_fill_(0, places, OPEN)
        if self.group_gate is not None:
            self.group_gate.fill_(OPEN)


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """z = min(1, max(0, s (zeta - gamma) + gamma)) with s = sigmoid(log u - log(1 - u) + log alpha)."""
    return stretched(torch.sigmoid(torch.logit(uniform, SMALLEST) + log_alpha))


def stretched(gate: Tensor) -> Tensor:
    """A number between 0 and 1, stretched and cut, so that it can be 0 or 1 itself."""
    return (gate * (UPPER - LOWER) + LOWER).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) of a drawn gate."""
    return torch.sigmoid(log_alpha - math.log(-LOWER / UPPER))


def differences(model: nn.Module) -> Iterator[tuple[str, WeightDiff]]:
    """Every difference, by the name of the module that its weight is in."""
    return makers(model, WeightDiff)


def attach(module: nn.Module, weight: Tensor, structured: bool, fixed_after: int) -> None:
    """A difference that is still zero is added to the weight of `module`."""
    register_parametrization(module, "weight", WeightDiff(weight, structured, fixed_after))


def detach(model: nn.Module) -> None:
    """Every weight is a plain one with its difference, as in evaluation, added."""
    settle(model, WeightDiff)


def expected_count(model: nn.Module) -> Tensor:
    """The expected number of changed weights of the whole model."""
    return torch.stack([difference.expected_count() for _, difference in differences(model)]).sum()


def prune(model: nn.Module, density: float) -> None:
    """Of all differences only that share is left which is largest in magnitude, and the gates are fixed."""
    layers = [difference for _, difference in differences(model)]
    sizes = torch.cat([layer.effective().abs() for layer in layers])
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.topk(max(1, round(density * len(sizes)))).indices] = True
    for layer, mine in zip(layers, kept.split([len(layer.gates) for layer in layers]), strict=True):
        layer.keep(mine)
