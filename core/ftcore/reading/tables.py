"""Rows with cells: delimiters and quotes told by the file itself, names from its header, or numbers without one."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from ftcore.errors import Refused
from ftcore.problems import Problem, abridged
from ftcore.reading.encodings import Text
from ftcore.reading.rows import Layout, Row
from ftcore.reading.structured import unconflicted

LONGEST_CELL = 2**26
_SAMPLE = 200
Cells = tuple[int, Sequence[str]]  # the line where a row begins, and what is in it


@dataclass(frozen=True)
class Dialect:
    """What parts the cells of a row, and whether quotes enclose cells."""

    delimiter: str
    quoted: bool = True

    @property
    def name(self) -> str:
        """The delimiter in words."""
        return {",": "comma", ";": "semicolon", "\t": "tab"}[self.delimiter]


@dataclass(frozen=True)
class Shape:
    """The dialect under which the first rows agree best, how many cells most of them have, and the share of those."""

    dialect: Dialect
    width: int
    share: float
    rows: int


PLAIN = Dialect("\t", quoted=False)
_DIALECTS = (Dialect(","), Dialect(";"), Dialect("\t"), PLAIN)


def shape_of(text: Text, dialects: Sequence[Dialect] = _DIALECTS) -> Shape:
    """The shape that the first lines have; on a draw the earlier dialect holds."""
    lines = list(islice(text.lines(), _SAMPLE))
    shapes = [_under(dialect, lines) for dialect in dialects]
    return max(shapes, key=lambda shape: (shape.width > 1, shape.share, shape.width))


def _under(dialect: Dialect, lines: Sequence[str]) -> Shape:
    widths = Counter(_widths(lines, dialect))
    width, agreeing = widths.most_common(1)[0] if widths else (0, 0)
    return Shape(dialect, width, agreeing / max(1, widths.total()), widths.total())


def _widths(lines: Sequence[str], dialect: Dialect) -> Iterator[int]:
    """How many cells each row has, 0 for one whose quotes are misplaced."""
    with suppress(_Unclosed):
        for _, cells in _cells(lines, dialect):
            yield 0 if isinstance(cells, Problem) else len(cells)


def rows(text: Text, layout: Layout, note: Callable[[str], object]) -> Iterator[Row]:
    """Every row with the names of the header; one with more or fewer cells is a problem of its line."""
    dialect = shape_of(text).dialect
    try:
        yield from named(text.source, _cells(unconflicted(text), dialect), layout, note)
    except _Unclosed as error:
        place = f"{text.source}:{error.line}: a cell opens with a quote that is not closed"
        raise Refused(f'{place}, so that no row after it can be told; close it, or write "" for a quote.') from None


def headerless_rows(text: Text, layout: Layout, note: Callable[[str], object]) -> Iterator[Row]:
    """Rows parted by tabs alone, with names only where the layout says that a line holds them."""
    given = layout if layout.header_row is not None else replace(layout, header_row=0)
    return named(text.source, _cells(unconflicted(text), PLAIN), given, note)


class _Unclosed(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


def _cells(lines: Iterable[str], dialect: Dialect) -> Iterator[tuple[int, Sequence[str] | Problem]]:
    """Rows that are not blank; a problem where quotes are misplaced."""
    csv.field_size_limit(LONGEST_CELL)  # the module's own is met by any long document
    reader = (
        csv.reader(lines, delimiter=dialect.delimiter, strict=True)
        if dialect.quoted
        else csv.reader(lines, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE)
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _misplaced(str(error), line)
        else:
            if any(cell.strip() for cell in cells):
                yield line, cells


def _misplaced(error: str, line: int) -> Problem:
    """What is wrong with a row whose successors are sound; _Unclosed where they cannot be told."""
    if "new-line character" in error:
        return Problem("", "row", "has a carriage return in a cell", "enclose that cell in quotes, or take it out")
    if "expected after" not in error:
        raise _Unclosed(line) from None
    remedy = 'write a quote inside a cell twice, "", and enclose the whole cell in quotes'
    return Problem("", "row", "goes on behind the quote that ends a cell", remedy)


def named(
    source: str, rows: Iterable[tuple[int, Sequence[str] | Problem]], layout: Layout, note: Callable[[str], object]
) -> Iterator[Row]:
    """Cells under the names of the header's row, or under "1", "2", … without one."""
    names: list[str] = []
    empty = True
    for line, cells in rows:
        if layout.header_row and line < layout.header_row:
            continue
        if isinstance(cells, Problem):
            yield line, 0, cells
            continue
        if not names:
            names = _names(source, line, cells, layout, note)
            if layout.header_row != 0:
                continue
        empty = False
        yield line, 0, _fields(names, cells)
    if empty:
        raise Refused(f"{source} holds no row under its header; pass a file with rows.")


def _names(source: str, line: int, cells: Sequence[str], layout: Layout, note: Callable[[str], object]) -> list[str]:
    if layout.header_row == 0:
        return [str(number) for number in range(1, len(trimmed(cells)) + 1)]
    names = [cell.strip() or str(number) for number, cell in enumerate(trimmed(cells), start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        rename = "rename one; where the line is a row already, pass --header-row 0"
        raise Refused(f"{source}:{line}: the header names '{twice[0][:60]}' twice; {rename}.")
    odd = next((name for name in names if _looks_like_data(name)), None)
    if odd and layout.header_row is None:
        shown = odd if len(odd) <= 40 else odd[:39] + "…"
        note(f"{source}:{line}: '{shown}' is read as the name of a column; --header-row 0 reads that line as a row")
    return names


def _looks_like_data(name: str) -> bool:
    """Whether a name is long, a number, or a sentence."""
    number = name.removeprefix("-").replace(".", "", 1).isdecimal() and len(name) > 1
    return len(name) > 40 or number or (len(name) > 3 and name[-1] in ".!?。！？")


def trimmed(cells: Sequence[str]) -> Sequence[str]:
    """The cells without the empty ones at the end, which spreadsheets leave behind."""
    return cells[: max((n for n, cell in enumerate(cells, start=1) if cell.strip()), default=0)]


def _fields(names: Sequence[str], cells: Sequence[str]) -> dict[str, str] | Problem:
    if len(cells) > len(names):
        cells = [*cells[: len(names)], *trimmed(cells[len(names) :])]
    if len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    found = f"has {len(cells)} cell{'s' * (len(cells) > 1)} where there are {len(names)} columns ({abridged(names, 6)})"
    return Problem("", "row", found, "add or remove cells; one that holds the delimiter or a newline stands in quotes")
