"""Texts in batches, what wrong labels cost, and the labels that a model gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore import Batch
from ftcore.batches import IGNORED
from ftcore.texts import inputs_of, moved_to

from ftcore_classify.texts import Text

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Learning:
    """How rows are learned and answered; `told` is whether the model takes segments, `several` labels may hold."""

    pad_id: int
    told: bool
    names: Sequence[str]
    several: bool

    def batch(self, rows: Sequence[Text]) -> Batch:
        """The rows padded to the longest; a batch weighs as much as it has rows."""
        ids, segments = [row.input_ids for row in rows], [row.segments for row in rows]
        inputs = inputs_of(ids, segments, self.pad_id, told=self.told)
        tokens = sum(row.size for row in rows)
        return Batch(
            inputs, {"labels": self._targets(rows)}, float(len(rows)), tokens, tuple(row.place for row in rows)
        )

    def _targets(self, rows: Sequence[Text]) -> Tensor:
        import torch

        if not self.several:
            return torch.tensor([row.labels[0] if row.labels else IGNORED for row in rows])
        return torch.tensor([[int(number in row.labels) for number in range(len(self.names))] for row in rows])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over rows, in nats: the cross-entropy of the label, or the mean of those of each label by itself."""
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        logits, wanted = model(**batch.inputs).logits.float(), batch.targets["labels"]
        if not self.several:
            return cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        counts = (wanted != IGNORED).float()
        each = binary_cross_entropy_with_logits(logits, wanted.clamp(min=0).float(), counts, reduction="sum")
        return each / len(self.names)

    def predict(self, model: nn.Module, rows: Sequence[Text]) -> list[list[float]]:
        """For each row the probability of each label: of them all together, or of each by itself."""
        logits = model(**moved_to(model, self.batch(rows))).logits.float()
        chances: list[list[float]] = (logits.sigmoid() if self.several else logits.softmax(-1)).tolist()
        return chances

    def lines(self, rows: Sequence[Text], answers: Sequence[Sequence[float]]) -> list[Mapping[str, Any]]:
        """An object for each text: the likeliest label, or all that are likelier than not, and those that are right."""
        return [self._line(row, chances) for row, chances in zip(rows, answers, strict=True)]

    def _line(self, row: Text, chances: Sequence[float]) -> dict[str, Any]:
        line: dict[str, Any] = {"text": row.text, **({"second": row.second} if row.second else {})}
        right = [self.names[number] for number in row.labels]
        if self.several:
            likely = [name for name, chance in zip(self.names, chances, strict=True) if chance > 0.5]
            line |= {"prediction": likely, "chances": dict(zip(self.names, chances, strict=True))}
            return {**line, "labels": right} if row.known else line
        best = max(range(len(chances)), key=chances.__getitem__)
        line |= {"prediction": self.names[best], "chance": chances[best]}
        return {**line, "label": right[0]} if row.known else line
