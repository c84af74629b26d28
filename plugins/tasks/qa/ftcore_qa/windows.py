"""A question with its context as rows: windows that overlap, and the answer's characters as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from ftcore.problems import refuse
from ftcore.records import Record
from ftcore.shapes import Question, question_of
from ftcore.texts import Laid, Reader, Tokens, windows

OUT = -1  # where a token is of no context
Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


@dataclass(frozen=True)
class Window:
    """A question with as much of its context as fits: `starts` and `ends` are each token's characters in the context.

    `first` and `last` are the positions of the answer, both `null` where this window holds none. `part` counts the
    windows of one question. `answers` are all that are right, if `known`; no answer at all is right too.
    """

    input_ids: Numbers
    segments: Numbers
    starts: Numbers
    ends: Numbers
    first: int
    last: int
    null: int
    part: int
    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    known: bool
    cut: bool
    widened: bool
    place: str

    @property
    def size(self) -> int:
        """Tokens that the model reads."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """The tokens, their segments, and the answer's place."""
        return self.input_ids.tobytes() + self.segments.tobytes() + repr((self.first, self.last)).encode()

    def counted(self) -> dict[str, int]:
        """What is counted of the row; of a question, in the first of its windows."""
        opens = self.part == 0
        return {
            "questions": int(opens),
            "tokens": self.size,
            "unanswerable": int(opens and self.known and not self.answers),
            "windows_without_answer": int(self.first == self.null and bool(self.answers)),
            "rows_cut": int(opens and self.cut),
            "answers_widened": int(opens and self.widened),
        }


@dataclass(frozen=True, eq=False)
class Windowing:
    """How questions become rows of at most `length` tokens; `unknown` is whether a row may lack its answers."""

    reader: Reader
    length: int
    shared: int
    longest_question: int
    unknown: bool

    def rows(self, record: Record) -> Iterator[Window]:
        """The windows of the question in a record; BadRow when there is none or its answer is in none of them."""
        known = not self.unknown or bool({"answers", "answer", "is_impossible"} & record.fields.keys())
        question = question_of(record if known else replace(record, fields={**record.fields, "answers": []}))
        asked, context = self.reader.tokens(question.question), self.reader.tokens(question.context)
        kept = asked.ids[: max(1, min(self.longest_question, self.reader.room(self.length, 0) // 2))]
        room = self.reader.room(self.length, len(kept))
        if room < 1 or not len(context):
            refuse("context", f"has {len(context)} tokens, and there is room for {room}", "raise --max-length")
        target = _target(question, context)
        spans = list(windows(len(context), room, self.shared))
        if target and not self.unknown and not any(begin <= target[0] and target[1] < end for begin, end in spans):
            found = f"has {target[1] - target[0] + 1} tokens, and no window holds all of them"
            refuse("answers", found, "raise --qa.window and --max-length, or --qa.doc_stride")
        for part, (begin, end) in enumerate(spans):
            laid = self.reader.laid_out(kept, context.ids[begin:end])
            facts = _facts(question, known, len(kept) < len(asked), _widened(question, context, target))
            yield Window(**_placed(laid, context, begin, self.reader.summary(laid), target), part=part, **facts)


def _facts(question: Question, known: bool, cut: bool, widened: bool) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "context": question.context,
        "answers": tuple(dict.fromkeys(text for text, _ in question.answers)),
        "known": known,
        "cut": cut,
        "widened": widened,
        "place": question.place,
    }


def _target(question: Question, context: Tokens) -> tuple[int, int] | None:
    """The first and last token of the first answer; BadRow where no token holds any of it."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    covering = context.covering(start, start + len(text))
    if covering is None:
        refuse("answers", f"has {text!r}, for which the tokenizer has no token", "mend the answer")
    return covering


def _widened(question: Question, context: Tokens, target: tuple[int, int] | None) -> bool:
    """Whether the tokens of the answer hold more than the answer, white space aside."""
    if target is None:
        return False
    held = question.context[context.starts[target[0]] : context.ends[target[1]]]
    return held.strip() != question.answers[0][0].strip()


def _placed(laid: Laid, context: Tokens, begin: int, null: int, target: tuple[int, int] | None) -> dict[str, Any]:
    """The tokens of one window, where they stand in the context, and where the answer is among them."""
    inside = laid.places >= 0
    places = np.where(inside, laid.places + begin, 0)
    first, last = (np.flatnonzero(inside & (places == at)) for at in target or (OUT, OUT))
    found = (int(first[0]), int(last[0])) if len(first) and len(last) else (null, null)
    return {
        "input_ids": laid.ids,
        "segments": laid.segments,
        "starts": np.where(inside, context.starts[places], OUT).astype(np.int32),
        "ends": np.where(inside, context.ends[places], OUT).astype(np.int32),
        "first": found[0],
        "last": found[1],
        "null": null,
    }
