"""The best answer in a question's windows, cut from the context by its characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore import Batch
from ftcore.texts import by_record, moved_to, padded

from ftcore_qa.learning import pointed
from ftcore_qa.windows import OUT, Window

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a window says: the score of its best answer, where it begins and ends in the context, the score of having none.
Said = tuple[float, int, int, float]


@dataclass(frozen=True)
class Answering:
    """How answers are found: of at most `longest` tokens, and none by `threshold`, which is None where there is one."""

    batch_of: Callable[[Sequence[Window]], Batch]
    longest: int
    threshold: float | None

    def predict(self, model: nn.Module, rows: Sequence[Window]) -> list[Said]:
        """For each window the best of all answers that it can give."""
        first, last = pointed(model, moved_to(model, self.batch_of(rows)))
        null = [float(first[at, row.null] + last[at, row.null]) for at, row in enumerate(rows)]
        scores = _scores(first, last, padded([row.starts for row in rows], OUT).to(first.device) >= 0, self.longest)
        best = scores.flatten(1).max(1)
        found = zip(rows, best.values.tolist(), best.indices.tolist(), null, strict=True)
        return [_said(row, score, divmod(at, first.shape[1]), none) for row, score, at, none in found]

    def lines(self, rows: Sequence[Window], answers: Sequence[Said]) -> list[Mapping[str, Any]]:
        """An object for each question: its best answer in any window, and what is right where that is known."""
        return [self._line(*zip(*group, strict=True)) for group in by_record(zip(rows, answers, strict=True))]

    def _line(self, rows: Sequence[Window], answers: Sequence[Said]) -> dict[str, Any]:
        row = rows[0]
        score, start, end, _ = max(answers)
        margin = min(none for *_, none in answers) - score
        none = self.threshold is not None and margin > self.threshold
        line: dict[str, Any] = {"id": row.id, "question": row.question}
        line["prediction"] = "" if none else row.context[start:end].strip()
        if self.threshold is not None:
            line["null_score_diff"] = margin
        return {**line, "answers": list(row.answers)} if row.known else line


def _scores(first: Tensor, last: Tensor, inside: Tensor, longest: int) -> Tensor:
    """The sum of the logits of every answer in the context that is not too long, and of no other pair of positions."""
    import torch

    at = torch.arange(first.shape[1], device=first.device)
    length = at[None, :] - at[:, None] + 1
    sound = inside[:, :, None] & inside[:, None, :] & (length > 0) & (length <= longest)
    return (first[:, :, None] + last[:, None, :]).masked_fill(~sound, -torch.inf)


def _said(row: Window, score: float, place: tuple[int, int], none: float) -> Said:
    return score, int(row.starts[place[0]]), int(row.ends[place[1]]), none
