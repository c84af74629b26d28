"""Sentences in batches, what wrong labels cost, and the labels that a model gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore import Batch
from ftcore.batches import IGNORED
from ftcore.texts import OUTSIDE, by_record, inputs_of, moved_to, padded

from ftcore_token_classify.entities import OUTSIDE as NONE
from ftcore_token_classify.entities import entities
from ftcore_token_classify.windows import Window

if TYPE_CHECKING:
    from torch import Tensor, nn

Said = list[list[int]]  # the words that a row answers, each with the number of its label


@dataclass(frozen=True, eq=False)
class Learning:
    """How rows are learned and answered; `told` is whether the model takes segments."""

    pad_id: int
    told: bool
    names: Sequence[str]

    def batch(self, rows: Sequence[Window]) -> Batch:
        """The rows padded to the longest; a batch weighs as much as it has labels."""
        ids, segments = [row.input_ids for row in rows], [row.segments for row in rows]
        labels = padded([row.labels for row in rows], IGNORED)
        tokens, places = sum(row.size for row in rows), tuple(row.place for row in rows)
        inputs = inputs_of(ids, segments, self.pad_id, told=self.told)
        return Batch(inputs, {"labels": labels}, float((labels != IGNORED).sum()), tokens, places)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the cross-entropies of the labels, in nats, computed in float32."""
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs).logits.float().flatten(0, 1)
        return cross_entropy(logits, batch.targets["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    def predict(self, model: nn.Module, rows: Sequence[Window]) -> list[Said]:
        """For each row its words with the likeliest label of each."""
        best = model(**moved_to(model, self.batch(rows))).logits.argmax(-1).tolist()
        return [
            [[place, number] for place, number in zip(row.places.tolist(), numbers, strict=False) if place != OUTSIDE]
            for row, numbers in zip(rows, best, strict=True)
        ]

    def lines(self, rows: Sequence[Window], answers: Sequence[Said]) -> list[Mapping[str, Any]]:
        """An object for each sentence: the entities found in it with their characters, and those that are right."""
        return [self._line(*zip(*group, strict=True)) for group in by_record(zip(rows, answers, strict=True))]

    def _line(self, rows: Sequence[Window], answers: Sequence[Said]) -> dict[str, Any]:
        row = rows[0]
        none = NONE if NONE in self.names else self.names[0]
        said = {place: self.names[number] for answer in answers for place, number in answer}
        given = [said.get(place, none) for place in range(len(row.words))]
        line = {"text": row.text, "prediction": _spans(row, given), "words": list(row.words), "predicted_tags": given}
        if not row.right:
            return line
        right = [self.names[number] for number in row.right]
        return {**line, "entities": _spans(row, right), "tags": right}


def _spans(row: Window, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The entities of a sentence as pieces of its text."""
    found = []
    for label, first, end in entities(labels):
        start, stop = row.starts[first], row.starts[end - 1] + len(row.words[end - 1])
        found.append({"label": label, "start": start, "end": stop, "text": row.text[start:stop]})
    return found
