"""Layers that the broken methods put around linear ones; apart, because importing a plugin must not load torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Low(nn.Module):
    """W x + 2 B A x: the layer as it should be."""

    scale = 2.0

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base
        rows, columns = base.weight.shape
        made = {"device": base.weight.device, "dtype": torch.float32}
        self.a = nn.Parameter(torch.randn(rank, columns, **made) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank, **made))
        self.in_features = columns

    @property
    def weight(self) -> Tensor:
        """What some models look at to learn the number format."""
        found: Tensor = self.base.weight
        return found

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base(x)
        return answer + self.change(x).to(answer.dtype)

    def change(self, x: Tensor) -> Tensor:
        return self.scale * (x.to(self.a.dtype) @ self.a.T @ self.b.T)

    def update(self) -> Tensor:
        return self.scale * (self.b @ self.a)

    def merged(self) -> nn.Module:
        """The linear layer with the change in its weight."""
        base: Any = self.base.merged() if isinstance(self.base, Low) else self.base
        base.weight.data += self.update().to(base.weight.dtype)
        found: nn.Module = base
        return found


class Detached(Low):
    def change(self, x: Tensor) -> Tensor:
        return super().change(x).detach() + 0 * self.a.sum()


class Dropping(Low):
    def change(self, x: Tensor) -> Tensor:
        return super().change(nn.functional.dropout(x, 0.1))


class Remembering(Low):
    """Adds a share of what it saw before."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__(base, rank)
        self.seen = 0.0

    def change(self, x: Tensor) -> Tensor:
        change = super().change(x) * (1 + 0.01 * self.seen)
        if not self.training:
            self.seen = float(x.mean().detach())
        return change


class TrainingOnly(Low):
    def change(self, x: Tensor) -> Tensor:
        return super().change(x) * (1.0 if self.training else 0.0)

    def update(self) -> Tensor:
        return 0.0 * super().update()


class Uphill(Low):
    """Its gradients point the other way."""

    def change(self, x: Tensor) -> Tensor:
        change = super().change(x)
        return 2 * change.detach() - change


class Mixing(Low):
    """Rows meet: everything is seen beside the mean of its batch."""

    def change(self, x: Tensor) -> Tensor:
        return super().change(x - 0.1 * x.mean(dim=tuple(range(x.ndim - 1)), keepdim=True))


class MixingInTraining(Low):
    def change(self, x: Tensor) -> Tensor:
        return super().change(x - 0.1 * x.mean(dim=0, keepdim=True) if self.training and len(x) > 1 else x)


class LongOnly(Low):
    """A token alone, as the cache feeds it, is not adapted."""

    def change(self, x: Tensor) -> Tensor:
        return super().change(x) * (0.0 if x.ndim == 3 and x.shape[1] == 1 else 1.0)


class Averaging(Low):
    """Keeps a running size in a buffer that no state dict holds, and uses it."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__(base, rank)
        self.register_buffer("size", torch.ones((), device=base.weight.device), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.size.mul_(0.95)
        return super().change(x) * self.size

    def update(self) -> Tensor:
        return super().update() * self.size


class Pulled(Low):
    """Has room for a running mean that no state dict holds."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__(base, rank)
        self.register_buffer("mean", torch.zeros_like(self.b), persistent=False)


class HalvedInEvaluation(Low):
    def change(self, x: Tensor) -> Tensor:
        return super().change(x) * (1.0 if self.training else 0.5)

    def update(self) -> Tensor:
        return 0.5 * super().update()


class Uncast(Low):
    """Multiplies what comes in by float32 as it is."""

    def change(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.a.T @ self.b.T)


class Widening(Low):
    def merged(self) -> nn.Module:
        self.base.weight.data = self.base.weight.data + self.update()
        return super().merged() if isinstance(self.base, Low) else self.base


class OffByOnePercent(Low):
    def update(self) -> Tensor:
        return 1.01 * super().update()


class Double(Low):
    def merged(self) -> nn.Module:
        return super().merged().double()


class Marked(Low):
    def merged(self) -> nn.Module:
        base = super().merged()
        base.register_buffer("rank", torch.tensor(4))
        return base


class Hooked(Low):
    def merged(self) -> nn.Module:
        base = super().merged()
        base.register_forward_hook(lambda module, given, answer: answer)
        return base
