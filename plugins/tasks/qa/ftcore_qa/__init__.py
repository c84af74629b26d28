"""Extractive question answering: an encoder learns to point at the answer's first and last token in a text."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ftcore import Data, Example, Loaded, Piece, Run, Scoring, hookimpl, options
from ftcore.problems import BadRow
from ftcore.rows import Reading, read, records_of
from ftcore.shapes import question_of
from ftcore.texts import Reader, takes_segments
from pydantic import Field

from ftcore_qa.answering import Answering
from ftcore_qa.learning import batcher, span_loss
from ftcore_qa.scores import Metric, scored
from ftcore_qa.windows import OUT, Window, Windowing

SAMPLE = Path(__file__).parent / "sample"


@options
class Qa:
    """SQuAD and files like it: the answer to a question is a piece of the text, or there is none."""

    head: ClassVar[str] = "question-answering"
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {
                "context": "The cat sat by the door. A small dog ran over the hill.",
                "question": "Where did the dog run?",
                "answers": {"text": ["over the hill"], "answer_start": [41]},
            }
        ),
        Example(
            {
                "id": "2",
                "context": "小猫在门口看雨。",
                "question": "小猫在哪里？",
                "answers": [{"text": "门口", "answer_start": 3}],
            }
        ),
        Example(
            {"context": "Lily said hello.", "question": "Who ran?", "answers": [], "is_impossible": True},
        ),
    )

    window: Annotated[
        int, Field(description="Tokens of a row; longer contexts have several. At most --max-length.", ge=8)
    ] = 384
    doc_stride: Annotated[int, Field(description="Tokens of the context that a window shares with the next.", ge=0)] = (
        128
    )
    max_query_length: Annotated[
        int, Field(description="Tokens of a question that are kept, at most half of the window; cut ones count.", ge=1)
    ] = 64
    max_answer_length: Annotated[int, Field(description="Tokens that a predicted answer may have.", ge=1)] = 30
    unanswerable: Annotated[
        Literal["auto", "yes", "no"],
        Field(description="Whether a question may have no answer; auto is whether a training row has none."),
    ] = "auto"
    null_threshold: Annotated[
        float,
        Field(description="How much the score of having no answer must exceed that of the best to be predicted."),
    ] = 0.0
    metric: Annotated[
        Metric, Field(description="Official script to score as; auto is cmrc where most questions are Chinese.")
    ] = "auto"

    @hookimpl
    def fill_options(self, run: Run) -> Mapping[str, str] | None:
        """Whether questions may have no answer, if the rows are to say it."""
        if self.unanswerable != "auto":
            return None
        return {"unanswerable": "yes" if _any_unanswerable(run) else "no"}

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """A row for each window of each question's context; rows that cannot be used are refused or counted."""
        reader = Reader.of(loaded)
        length = min(self.window, run.settings.max_length, loaded.max_positions)
        windowing = Windowing(reader, length, self.doc_stride, self.max_query_length, run.intent == "predict")
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, windowing.rows, Window, sample, Window.counted))
        given = rows.train.total("unanswerable") + rows.eval.total("unanswerable")
        may_be_none = self.unanswerable == "yes" or (self.unanswerable == "auto" and given > 0)
        batch_of = batcher(reader.pad_id, told=takes_segments(loaded.model))
        answering = Answering(batch_of, self.max_answer_length, self.null_threshold if may_be_none else None)
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=batch_of,
            loss=span_loss,
            counts=rows.counts,
            sample=_pieces(reader, rows.train[0]) if len(rows.train) else (),
            shares=rows.shares,
            scoring=Scoring(answering.predict, answering.lines, lambda lines: scored(lines, self.metric)),
        )


def _any_unanswerable(run: Run) -> bool:
    for record in records_of(run, SAMPLE / "train.jsonl"):
        with suppress(BadRow):
            if question_of(record).impossible:
                return True
    return False


def _pieces(reader: Reader, row: Window) -> tuple[Piece, ...]:
    """The window token by token, the answer's marked, or what stands for having none."""
    return tuple(_piece(reader, row, position) for position in range(row.size))


def _piece(reader: Reader, row: Window, position: int) -> Piece:
    learned = row.first <= position <= row.last
    if row.starts[position] != OUT:
        return Piece(row.context[row.starts[position] : row.ends[position]], learned, "context")
    return Piece(reader.backend.decode([int(row.input_ids[position])], skip_special_tokens=False), learned, "question")
