"""Token classification: each word of a sentence gets a label, and neighbours with one label are an entity."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ftcore import Data, Example, Loaded, Piece, Run, Scoring, hookimpl, options
from ftcore.batches import IGNORED
from ftcore.labels import known_to, told
from ftcore.problems import BadRow
from ftcore.rows import Reading, read, records_of
from ftcore.shapes import tagged_of
from ftcore.texts import Reader, takes_segments
from pydantic import Field

from ftcore_token_classify.entities import completed
from ftcore_token_classify.learning import Learning
from ftcore_token_classify.scores import scored
from ftcore_token_classify.windows import Window, Windowing

SAMPLE = Path(__file__).parent / "sample"


@options
class TokenClassify:
    """Words with a label each, as in CoNLL files, and texts in which entities are marked."""

    head: ClassVar[str] = "token-classification"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"tokens": ["Elizabeth", "sat", "by", "the", "door", "."], "tags": ["B-PER", "O", "O", "O", "O", "O"]}),
        Example({"text": "小猫在门口看雨。", "entities": [{"start": 3, "end": 5, "label": "LOC"}]}),
        Example({"tokens": ["He", "smiled", "at", "Elizabeth"], "tags": ["O", "O", "O", "B-PER"]}),
    )

    labels: Annotated[
        tuple[str, ...],
        Field(description="Labels in their order, from 0; without them those of the training rows."),
    ] = ()
    label_all_subwords: Annotated[
        bool, Field(description="Learn a word's label at all of its tokens; otherwise at its first.")
    ] = False
    stride: Annotated[int, Field(description="Tokens that two rows of one long sentence share as context.", ge=0)] = 32

    @hookimpl
    def fill_options(self, run: Run) -> Mapping[str, Any] | None:
        """The labels of the training rows, where they are not given."""
        return None if self.labels else {"labels": completed(_labels(run))}

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any] | None:
        """As many labels as there are, under their names."""
        return told(self.labels)

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """A row for each sentence, more for one that is too long; what cannot be used is refused or counted."""
        reader, names = Reader.of(loaded), self.labels or known_to(loaded.model)
        length = min(run.settings.max_length, loaded.max_positions)
        everywhere, unknown = self.label_all_subwords, run.intent == "predict"
        windowing = Windowing(reader, length, self.stride, names, everywhere, unknown)
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, windowing.rows, Window, sample, Window.counted))
        learning = Learning(reader.pad_id, takes_segments(loaded.model), names)
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


def _labels(run: Run) -> set[str]:
    found: set[str] = set()
    for record in records_of(run, SAMPLE / "train.jsonl"):
        with suppress(BadRow):
            found.update(tagged_of(record).tags)
    return found


def _pieces(reader: Reader, row: Window, names: tuple[str, ...]) -> tuple[Piece, ...]:
    """The sentence token by token, each label behind the token where it is learned."""
    said = [reader.backend.decode([token], skip_special_tokens=False) for token in row.input_ids.tolist()]
    learned = [names[number] if number != IGNORED else False for number in row.labels.tolist()]
    return tuple(map(Piece, said, learned))
