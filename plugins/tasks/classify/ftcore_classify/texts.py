"""A text or a pair as one row of tokens with the numbers of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ftcore.labels import number_of
from ftcore.problems import refuse
from ftcore.records import Record
from ftcore.shapes import Labelled, labelled_of
from ftcore.texts import Numbers, Reader

# The columns that hold labels; "2" is the second column of a table without names.
LABELS = {"label", "labels", "category", "2"}


@dataclass(frozen=True, eq=False)
class Text:
    """What the model reads of a text or a pair, and the numbers of its labels, if they are `known`."""

    input_ids: Numbers
    segments: Numbers
    labels: tuple[int, ...]
    known: bool
    cut: bool
    text: str
    second: str
    place: str

    @property
    def size(self) -> int:
        """Tokens that the model reads."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """The tokens, their segments, and the labels."""
        return self.input_ids.tobytes() + self.segments.tobytes() + repr(self.labels).encode()

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        return {"tokens": self.size, "rows_cut": int(self.cut)}


@dataclass(frozen=True, eq=False)
class Encoding:
    """How records become rows of at most `length` tokens; `unknown` is whether a row may lack its label."""

    reader: Reader
    length: int
    names: Sequence[str]
    several: bool
    unknown: bool

    def rows(self, record: Record) -> Iterator[Text]:
        """The row of a record; BadRow when it is none, or has a label that is none of the names."""
        known = not self.unknown or bool(LABELS & record.fields.keys())
        found = labelled_of(record if known else _unlabelled(record))
        labels = self._numbers(found) if known else ()
        texts = [self.reader.tokens(text).ids for text in (found.text, found.second) if text]
        kept = _fitting(texts, self.reader.room(self.length, *(() if len(texts) == 1 else (0,))))
        cut = sum(map(len, kept)) < sum(map(len, texts))
        laid = self.reader.laid_out(*kept)
        yield Text(laid.ids, laid.segments, labels, known, cut, found.text, found.second, found.place)

    def _numbers(self, found: Labelled) -> tuple[int, ...]:
        if len(found.labels) != 1 and not self.several:
            refuse("label", f"has {len(found.labels)} entries", "give it one, or set the task's option multi_label")
        return tuple(sorted({number_of(label, self.names, "label") for label in found.labels}))


def _unlabelled(record: Record) -> Record:
    """The record with a label that is not looked at."""
    text = {} if "1" not in record.fields else {"text": record.fields["1"]}
    return replace(record, fields={**record.fields, **text, "label": "?"})


def _fitting(texts: Sequence[Numbers], room: int) -> list[Numbers]:
    """As much of the texts as there is room for: what is too long is cut at its end, the longer text first."""
    if room < len(texts) or not all(map(len, texts)):
        refuse("text", f"has {sum(map(len, texts))} tokens, and there is room for {room}", "raise --max-length")
    if len(texts) == 1:
        return [texts[0][:room]]
    sizes = [len(text) for text in texts]
    if sum(sizes) > room:
        less = min(*sizes, room // 2)
        sizes = [room - less, less] if sizes[0] > sizes[1] else [less, room - less]
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]
