"""Classification: a text or a pair of sentences gets one label, or all that hold of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ftcore import Data, Example, Loaded, Piece, Run, Scoring, hookimpl, options
from ftcore.labels import known_to, ordered, told
from ftcore.problems import BadRow
from ftcore.rows import Reading, read, records_of
from ftcore.shapes import labelled_of
from ftcore.texts import Reader, takes_segments
from pydantic import Field

from ftcore_classify.learning import Learning
from ftcore_classify.scores import scored
from ftcore_classify.texts import Encoding, Text

SAMPLE = Path(__file__).parent / "sample"
PROBLEMS = {"yes": "multi_label_classification", "no": "single_label_classification"}


@options
class Classify:
    """Texts and sentence pairs with the label that holds of each, or with all that do."""

    head: ClassVar[str] = "sequence-classification"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"text": "The cat sat by the door.", "label": "inside"}),
        Example({"text": "小狗去找它的球。", "label": "outside"}),
        Example(
            {"sentence1": "It rains.", "sentence2": "The man took his hat and went over the hill.", "label": "outside"}
        ),
    )

    labels: Annotated[
        tuple[str, ...],
        Field(description="Labels in their order, from 0; without them those of the training rows."),
    ] = ()
    multi_label: Annotated[
        Literal["auto", "yes", "no"],
        Field(description="Whether several labels, or none, may hold; auto is what the training rows show."),
    ] = "auto"

    @hookimpl
    def fill_options(self, run: Run) -> Mapping[str, Any] | None:
        """The labels of the training rows and whether a row may have several, where they are not given."""
        if self.labels and self.multi_label != "auto":
            return None
        found = list(_labels(run))
        labels = self.labels or ordered(label for labels in found for label in labels)
        several = "yes" if any(len(labels) != 1 for labels in found) else "no"
        return {"labels": labels, "multi_label": several if self.multi_label == "auto" else self.multi_label}

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any] | None:
        """As many labels as there are, under their names."""
        return told(self.labels, PROBLEMS.get(self.multi_label))

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """A row for each text or pair; one that cannot be used is refused or counted."""
        reader, names = Reader.of(loaded), self.labels or known_to(loaded.model)
        several = self.multi_label == "yes"
        length = min(run.settings.max_length, loaded.max_positions)
        encoding = Encoding(reader, length, names, several, run.intent == "predict")
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, encoding.rows, Text, sample, Text.counted))
        learning = Learning(reader.pad_id, takes_segments(loaded.model), names, several)
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=learning.batch,
            loss=learning.loss,
            counts=rows.counts,
            sample=_pieces(reader, rows.train[0], names) if len(rows.train) else (),
            shares=rows.shares,
            scoring=Scoring(learning.predict, learning.lines, scored),
        )


def _labels(run: Run) -> Iterator[tuple[str, ...]]:
    for record in records_of(run, SAMPLE / "train.jsonl"):
        with suppress(BadRow):
            yield labelled_of(record).labels


def _pieces(reader: Reader, row: Text, names: tuple[str, ...]) -> tuple[Piece, ...]:
    """The text token by token, and its labels behind the last."""
    said = [reader.backend.decode([token], skip_special_tokens=False) for token in row.input_ids.tolist()]
    labels = ", ".join(names[number] for number in row.labels) or "none"
    return (*(Piece(text) for text in said[:-1]), Piece(said[-1], labels))
