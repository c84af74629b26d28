"""Windows in batches, and what pointing at the wrong tokens costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ftcore import Batch
from ftcore.texts import inputs_of

from ftcore_qa.windows import Window

if TYPE_CHECKING:
    from torch import Tensor, nn


def batcher(pad_id: int, *, told: bool) -> Callable[[Sequence[Window]], Batch]:
    """How windows become a batch that weighs as much as it has windows; `told` is whether the model takes segments."""

    def batch_of(rows: Sequence[Window]) -> Batch:
        import torch

        inputs = inputs_of([row.input_ids for row in rows], [row.segments for row in rows], pad_id, told=told)
        targets = {"first": torch.tensor([row.first for row in rows]), "last": torch.tensor([row.last for row in rows])}
        tokens = sum(row.size for row in rows)
        return Batch(inputs, targets, float(len(rows)), tokens, tuple(row.place for row in rows))

    return batch_of


def span_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum over windows of the mean of two cross-entropies, in nats: of the first and of the last token."""
    from torch.nn.functional import cross_entropy

    logits = pointed(model, batch.inputs)
    wanted = batch.targets["first"], batch.targets["last"]
    both = [cross_entropy(one, target, reduction="sum") for one, target in zip(logits, wanted, strict=True)]
    return (both[0] + both[1]) / 2


def pointed(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of each position to be the first and the last of the answer, in float32; padding can be neither."""
    import torch

    said = model(**inputs)
    padding = inputs["attention_mask"] == 0
    least = torch.finfo(torch.float32).min
    first, last = (one.float().masked_fill(padding, least) for one in (said.start_logits, said.end_logits))
    return first, last
