"""Rows and running text from files, directories, patterns and the Hub, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ftcore.problems import Problem, Problems, shown
from ftcore.reading.formats import Content, content_of, documents_of, rows_of
from ftcore.reading.repeats import Repeats
from ftcore.reading.rows import Document, Layout, Record, Row
from ftcore.reading.sources import files_of, fingerprint, hub_rows, path_of, weighted
from ftcore.reading.unpacking import file_at

__all__ = [
    "Document",
    "Layout",
    "Record",
    "content_at",
    "fingerprint",
    "iter_records",
    "iter_texts",
    "read_records",
    "records_of",
    "weighted",
]


def read_records(sources: Sequence[str], problems: Problems, layout: Layout | None = None) -> list[Record]:
    """Sound rows are returned in order, the others are problems; a file that cannot be read is refused.

    What was found out about a file, and how many of its rows are repeated, are notices.
    """
    repeats, records = Repeats(), []
    for record in iter_records(sources, problems, layout):
        repeats.add(record.fields, record.place)
        records.append(record)
    if repeats.count:
        problems.note(str(repeats))
    return records


def iter_records(sources: Sequence[str], problems: Problems, layout: Layout | None = None) -> Iterator[Record]:
    """What `read_records` returns, one row after the other, and of a file of lines or batches no more than that."""
    for source in sources:
        files = files_of(source, problems.note)
        if files is None:
            yield from _kept(f"hub:{source}", hub_rows(source), problems)
        for file in files or ():
            content = content_at(file, problems)
            if content.format == "text" and file != source:
                problems.note(f"{file}: left out, as it is running text")
            else:
                yield from records_of(content, problems, layout)


def iter_texts(
    sources: Sequence[str], separator: str | None, problems: Problems, layout: Layout | None = None
) -> Iterator[Record]:
    """Rows as they are, and the documents of running text as rows that hold a `text`."""
    for source in sources:
        files = files_of(source, problems.note)
        if files is None:
            yield from _kept(f"hub:{source}", hub_rows(source), problems)
        for file in files or ():
            yield from _texts(content_at(file, problems, running_text=True), separator, problems, layout)


def records_of(content: Content, problems: Problems, layout: Layout | None = None) -> Iterator[Record]:
    """The sound rows of one file."""
    return _kept(content.source, rows_of(content, layout or Layout(), problems.note), problems)


def content_at(source: str, problems: Problems, *, running_text: bool = False) -> Content:
    """The file of that name with its format; an encoding other than UTF-8 is noted."""
    content = content_of(file_at(source, path_of(source)), running_text=running_text)
    if content.text and content.text.encoding != "UTF-8":
        problems.note(f"{source} is {content.text.encoding}, and is read as that")
    return content


def _kept(source: str, rows: Iterable[Row], problems: Problems) -> Iterator[Record]:
    for line, column, value in rows:
        if isinstance(value, dict):
            yield Record(value, source, line, column)
        elif _are_turns(value):
            yield Record({"messages": value}, source, line, column)
        else:
            place = Record({}, source, line, column).place
            problems.add(replace(_unusable(value), place=place))


def _are_turns(value: object) -> bool:
    """Whether a row is nothing but a list of messages, as openai's fine-tuning files have been."""
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)


def _unusable(value: object) -> Problem:
    if isinstance(value, Problem):
        return value
    key = '"messages": ' if isinstance(value, list) else '"text": '
    return Problem("", "row", f"is {shown(value)}", f"put it in an object: {{{key}…}}")


def _texts(content: Content, separator: str | None, problems: Problems, layout: Layout | None) -> Iterator[Record]:
    if content.format != "text":
        yield from records_of(content, problems, layout)
        return
    for line, part in documents_of(content, separator or ""):
        yield Record({"text": part}, content.source, line)
