"""What a model answers to conversations: written greedily, told with what would have been right, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore import Loaded
from ftcore.generation import generate_all
from ftcore.hooks import Scoring
from ftcore.templates import Turns
from ftcore.textual import measured

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Answering:
    """How answers are written and compared."""

    loaded: Loaded
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    figures: tuple[str, ...]

    def scoring(self) -> Scoring:
        """What the core asks of rows beside their loss."""
        return Scoring(self.predict, self.lines, self.score, generates=True)

    def predict(self, model: nn.Module, rows: Sequence[Turns]) -> list[str]:
        """What the model says in the last turn of each row, given all before it."""
        prompts = [row.input_ids[: row.asked].tolist() for row in rows]
        stops = (*self.stop_ids, *self.loaded.stop_ids)
        return generate_all(
            model, self.loaded.tokenizer, prompts, stops, self.max_new_tokens, self.loaded.max_positions
        )

    def lines(self, rows: Sequence[Turns], answers: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each row: what the model read, what it said and, where a row has it whole, what is right."""
        return [self._line(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The figures of all lines with a reference; lines of one prompt are one, with all their references."""
        found: dict[str, tuple[str, list[str]]] = {}
        for line in lines:
            if "reference" in line:
                found.setdefault(line["prompt"], (line["prediction"], []))[1].append(line["reference"])
        return measured(self.figures, [said for said, _ in found.values()], [known for _, known in found.values()])

    def _line(self, row: Turns, answer: str) -> dict[str, Any]:
        tokenizer = self.loaded.tokenizer
        assert tokenizer is not None
        line = {"prompt": tokenizer.decode(row.input_ids[: row.asked].tolist()), "prediction": answer}
        if row.said:
            said = tokenizer.decode(row.input_ids[row.asked : row.said].tolist(), skip_special_tokens=True)
            line["reference"] = str(said).strip()
        return line
