"""What is in a file of rows, said without any model: what `ftcore data check` prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ftcore.discovery import declared_datum, find
from ftcore.errors import Refused
from ftcore.problems import BadRow, Problem, Problems, abridged
from ftcore.reading.formats import Content, documents_of
from ftcore.reading.repeats import Repeats
from ftcore.reading.sources import files_of
from ftcore.records import Layout, Record, content_at, records_of
from ftcore.shapes import (
    AS_IT_IS,
    UNKNOWN,
    Form,
    conversations_of,
    document_of,
    judged_of,
    labelled_of,
    mended,
    pair_of,
    preference_of,
    question_of,
    reshaped,
    shape_of,
    tagged_of,
)

Reader = Callable[[Record], object]
SEPARATOR = "<|endoftext|>"
_SHOWN = 300
# What reads a shape; any other is a conversation.
_READERS: Mapping[str, tuple[Reader, ...]] = {
    "chosen/rejected": (preference_of,),
    "ranked answers": (preference_of, pair_of),
    "squad": (question_of,),
    "tokens/tags": (tagged_of,),
    "text/entities": (tagged_of,),
    "sentence pair": (labelled_of,),
    "text/label": (labelled_of,),
    "text/labels": (labelled_of,),
    "text": (document_of,),
}


@dataclass(frozen=True)
class Look:
    """What there is to know of one file; `refused` says why it cannot be read, if it cannot."""

    file: str
    format: str = ""
    encoding: str = ""
    newlines: str = ""
    rows: int = 0
    cannot_be_used: int = 0
    shapes: Mapping[str, int] = field(default_factory=dict)
    keys: Sequence[str] = ()
    repeated: int = 0
    repeated_places: Sequence[str] = ()
    empty: Mapping[str, int] = field(default_factory=dict)
    longest: int = 0
    longest_place: str = ""
    first: Mapping[str, Any] | None = None
    notices: Sequence[str] = ()
    problems: Sequence[str] = ()
    refused: str = ""

    @property
    def sound(self) -> bool:
        """All of the file can be used."""
        return not self.refused and not self.cannot_be_used

    def plain(self) -> dict[str, Any]:
        """The look as JSON takes it."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]


def look(
    sources: Sequence[str], layout: Layout | None = None, task: str | None = None, form: Form = AS_IT_IS
) -> Iterator[Look]:
    """A look at each file of the sources, as a task of that name would read it, or as its own keys say."""
    readers = readers_of(task) if task else ()
    for source in sources:
        notices: list[str] = []
        try:
            files = files_of(source, notices.append)
        except Refused as refusal:
            yield Look(source, refused=str(refusal))
            continue
        if files is None:
            yield Look(source, refused=f"{source} is no file here; pass a file, a directory or a pattern.")
        for file in files or ():
            yield _looked(file, layout or Layout(), form, readers, notices)
            notices = []


def readers_of(task: str) -> tuple[Reader, ...]:
    """What reads the shapes of the examples that a task declares."""
    examples = declared_datum(find("task", task).load(), "examples")
    shapes = dict.fromkeys(shape_of(example.row) for example in examples)
    return tuple(dict.fromkeys(reader for shape in shapes for reader in _READERS.get(shape, _OTHERS)))


_OTHERS: tuple[Reader, ...] = (conversations_of, pair_of)
_JUDGED: tuple[Reader, ...] = (judged_of, *_OTHERS)


def _looked(file: str, layout: Layout, form: Form, readers: tuple[Reader, ...], notices: Sequence[str]) -> Look:
    problems = Problems()
    for notice in notices:
        problems.note(notice)
    known: dict[str, Any] = {"file": file}
    try:
        content = content_at(file, problems, running_text=readers == (document_of,))
        known.update(format=content.described, encoding=content.encoding, newlines=content.newlines)
        tally = _Tally(readers, problems, file)
        for record in _in_form(_records(content, layout, problems), form, problems):
            tally.add(record)
        known.update(tally.counted())
        known["rows"] = tally.rows + len(problems) - tally.bad
    except Refused as refusal:
        known["refused"] = str(refusal)
    bad = len(problems)
    listed = problems.summary().split("\n") if bad else ()
    return Look(**known, cannot_be_used=bad, problems=listed, notices=problems.notices())


def _records(content: Content, layout: Layout, problems: Problems) -> Iterator[Record]:
    if content.format != "text":
        yield from records_of(content, problems, layout)
        return
    for line, text in documents_of(content, SEPARATOR):
        yield Record({"text": text}, content.source, line)


def _in_form(records: Iterable[Record], form: Form, problems: Problems) -> Iterator[Record]:
    """Each row as the form makes it; one that it cannot be made of is a problem."""
    for record in records:
        try:
            yield record if form == AS_IT_IS else reshaped(record, form)
        except BadRow as bad:
            problems.add(bad.problem)


class _Tally:
    """Counts what there is in the rows as they pass."""

    def __init__(self, readers: tuple[Reader, ...], problems: Problems, file: str) -> None:
        self._readers, self._problems, self._file = readers, problems, file
        self._shapes: Counter[str] = Counter()
        self._keys: dict[str, None] = {}
        self._empty: Counter[str] = Counter()
        self._repeats = Repeats()
        self._longest = (0, "")
        self._first: Record | None = None
        self.bad = 0

    def add(self, record: Record) -> None:
        """The row is counted, and is a problem when it cannot be used."""
        self._first = self._first or record
        self._keys.update(dict.fromkeys(record.fields))
        fields, note = mended(record.fields)
        shape = shape_of(fields)
        self._shapes[shape] += 1
        if note:
            self._problems.note(f"{self._file}: {note}")
        self._empty.update(key for key, value in record.fields.items() if _is_empty(value))
        self._repeats.add(record.fields, record.place)
        self._longest = max(self._longest, (_characters(record.fields), record.place), key=lambda pair: pair[0])
        problem = self._problem(record, self._readers or _own_readers(shape, record.fields))
        if problem:
            self._problems.add(problem)
            self.bad += 1

    @property
    def rows(self) -> int:
        """How many rows passed."""
        return self._shapes.total()

    def _problem(self, record: Record, readers: tuple[Reader, ...]) -> Problem | None:
        """Why the row cannot be used; columns that nobody knows are no fault of a row where all rows have them."""
        problem = None
        for reader in readers:
            try:
                reader(record)
            except BadRow as bad:
                problem = problem or bad.problem
            else:
                return None
        return None if self._is_like_the_first(record, problem) else problem

    def _is_like_the_first(self, record: Record, problem: Problem | None) -> bool:
        assert self._first
        strange = not self._readers and problem is not None and problem.field == "row"
        return strange and bool(record.fields) and record.fields.keys() == self._first.fields.keys()

    def counted(self) -> dict[str, Any]:
        """The counts, by the fields of a look."""
        shapes = dict(self._shapes.most_common())
        if set(shapes) == {UNKNOWN} and not len(self._problems):
            columns = abridged(list(self._keys), 6)
            self._problems.note(f"{self._file}: no task reads the columns {columns} as they are; --columns names them")
        return {
            "shapes": shapes,
            "keys": list(self._keys),
            "repeated": self._repeats.count,
            "repeated_places": list(self._repeats.places or ()),
            "empty": dict(self._empty),
            "longest": self._longest[0],
            "longest_place": self._longest[1],
            "first": dict(self._first.fields) if self._first else None,
        }


def _own_readers(shape: str, fields: Mapping[str, object]) -> tuple[Reader, ...]:
    return _READERS.get(shape, _JUDGED if isinstance(fields.get("label"), bool) else _OTHERS)


def _is_empty(value: object) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _characters(value: object) -> int:
    """How many characters the texts in a value have together."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(_characters(one) for one in inner)


# --- as text -----------------------------------------------------------------------------------------------


def text(looked: Look) -> str:
    """The look in lines for people."""
    lines = [", ".join(filter(None, (f"{looked.file}: {looked.format}", looked.encoding, looked.newlines)))]
    lines = lines if looked.format else []
    lines += [f"  {name:<10}{said}" for name, said in _facts(looked)]
    lines += [f"  {'noticed':<10}{notice}" for notice in looked.notices]
    lines += [f"  {line}" for line in looked.problems]
    lines += [f"  {'refused':<10}{looked.refused}"] if looked.refused else []
    return "\n".join(lines)


def _facts(looked: Look) -> Iterator[tuple[str, str]]:
    if looked.rows or looked.cannot_be_used:
        bad = f", of which {looked.cannot_be_used} cannot be used" if looked.cannot_be_used else ""
        yield "rows", f"{looked.rows:,}{bad}"
    if looked.first is None:
        return
    yield "shape", ", ".join(f"{name} ({count:,})" for name, count in looked.shapes.items())
    yield "keys", abridged(looked.keys)
    if looked.repeated:
        yield "repeated", f"{looked.repeated:,}, first {' and '.join(looked.repeated_places)}"
    if looked.empty:
        yield "empty", ", ".join(f"{key} in {count:,}" for key, count in looked.empty.items())
    yield "longest", f"{looked.longest:,} characters at {looked.longest_place}"
    first = json.dumps(looked.first, ensure_ascii=False, default=str)
    yield "first", first if len(first) <= _SHOWN else first[: _SHOWN - 1] + "…"
