"""Rows of a sheet in an .xlsx workbook, as text."""

from __future__ import annotations

import datetime
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence

from ftcore.errors import Refused
from ftcore.problems import abridged
from ftcore.reading.rows import Layout, Row
from ftcore.reading.tables import named, trimmed
from ftcore.reading.unpacking import File


def rows(file: File, layout: Layout, note: Callable[[str], object]) -> Iterator[Row]:
    """Every row of the sheet under the names of its header, on the line that the program for sheets shows."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise Refused(f"{file.source} is a workbook; run `pip install openpyxl`, or save it as .csv.") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and validation, which rows do not have
            book = openpyxl.load_workbook(file.path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"{file.source} is no sound workbook ({error}); save it again, or as .csv.") from error
    try:
        sheet = book[_sheet(file, book.sheetnames, layout, note)]
        if hasattr(sheet, "reset_dimensions"):
            sheet.reset_dimensions()  # what other programs write there is often wrong
        yield from named(file.source, _filled(sheet.iter_rows(values_only=True), layout), layout, note)
    finally:
        book.close()


def _sheet(file: File, names: Sequence[str], layout: Layout, note: Callable[[str], object]) -> str:
    if layout.sheet is not None and layout.sheet not in names:
        raise Refused(f"{file.source} has no sheet '{layout.sheet}'; it has {abridged(names)}.")
    if layout.sheet is None and len(names) > 1:
        note(f"{file.source}: of the sheets {abridged(names)} the first is read; --sheet names another")
    return layout.sheet or names[0]


def _filled(rows: Iterator[Sequence[object]], layout: Layout) -> Iterator[tuple[int, Sequence[str]]]:
    """The rows from the header on that hold anything, none narrower than it, since a sheet leaves out what is empty."""
    width = 0
    for number, row in enumerate(rows, start=1):
        cells = trimmed([_shown(value) for value in row])
        if cells and number >= (layout.header_row or 0):
            width = width or len(cells)
            yield number, [*cells, *[""] * (width - len(cells))]


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value).replace("\r\n", "\n")
