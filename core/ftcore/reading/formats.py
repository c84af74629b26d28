"""What kind of file a file is: told by its first bytes, its suffix, and then by what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

from ftcore.errors import Refused
from ftcore.reading import parquet, running, structured, tables, tagged, workbooks
from ftcore.reading.encodings import Text, text_of
from ftcore.reading.rows import Layout, Row
from ftcore.reading.unpacking import File, bytes_of

Format: TypeAlias = Literal["JSON", "table", "columns", "tokens", "Parquet", "workbook", "text"]

_TABLES = {".csv": "table", ".tsv": "table", ".tab": "table"}
_JSON = dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON")
_TAGGED = dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bioes"), "tokens")
_KNOWN: dict[str, Format] = {**_JSON, **_TABLES, **_TAGGED}  # type: ignore[dict-item]
ROW_SUFFIXES = (*_KNOWN, ".parquet", ".xlsx", ".txt")
_BINARY = {
    b"\xd0\xcf\x11\xe0": "an old workbook (.xls): save it as .xlsx or .csv",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"\x89HDF": "an HDF5 file: save it as Parquet or .jsonl",
    b"SQLite format 3": "a database: export its table as .csv",
    b"%PDF": "a PDF: save its text as .txt",
    b"7z\xbc\xaf": "packed with 7-Zip: unpack it",
    b"Rar!": "packed with RAR: unpack it",
}


@dataclass(frozen=True)
class Content:
    """A file with the format it is in, and the text that it is unless it is binary."""

    file: File
    format: Format
    text: Text | None

    @property
    def source(self) -> str:
        """The file as it was named."""
        return self.file.source

    @property
    def encoding(self) -> str:
        """The encoding of the text, if it is text."""
        return self.text.encoding if self.text else ""

    @property
    def newlines(self) -> str:
        """The newlines of the text, if it is text."""
        return self.text.newlines if self.text else ""

    @property
    def described(self) -> str:
        """The format in words."""
        names = {"columns": "columns parted by tabs", "tokens": "tokens with tags", "text": "running text"}
        if self.text is None or self.format in names:
            return names.get(self.format, self.format)
        if self.format == "table":
            return f"table, {tables.shape_of(self.text).dialect.name}"
        return "JSON lines" if structured.is_lines(self.text) else "JSON"


def content_of(file: File, *, running_text: bool = False) -> Content:
    """The file with its format; `running_text` says that what could be either is text rather than rows."""
    with bytes_of(file) as stream:
        head = stream.read(512)
    if head.startswith(b"PAR1"):
        return Content(file, "Parquet", None)
    if head.startswith(b"PK\x03\x04"):
        return Content(file, "workbook", None)
    if head[257:262] == b"ustar":
        raise Refused(f"{file.source} is an archive of files: unpack it, and pass the directory.")
    for opening, what in _BINARY.items():
        if head.startswith(opening):
            raise Refused(f"{file.source} is {what}, and pass that.")
    text = text_of(file)
    return Content(file, _KNOWN.get(file.suffix) or _told(text, running_text=running_text), text)


def _told(text: Text, *, running_text: bool) -> Format:
    plain = text.file.suffix == ".txt"
    if running_text and plain:
        return "text"
    first = next(line for line in text.lines() if line.strip())
    if first.lstrip()[0] in "[{" and _opens_json(text, first):
        return "JSON"
    return "text" if running_text else _told_as_rows(text, plain=plain)


def _opens_json(text: Text, first: str) -> bool:
    """Whether what begins with a bracket goes on as JSON does."""
    opening = "".join(islice(text.lines(), 3)).lstrip()[1:].lstrip()
    return first.strip() in ("[", "{") or opening[:1] in ('"', "'", "{", "[", "}", "]")


def _told_as_rows(text: Text, *, plain: bool) -> Format:
    if tagged.is_tagged(text):
        return "tokens"
    tabbed = tables.shape_of(text, (tables.PLAIN,))
    if tabbed.width > 1 and tabbed.share >= 0.9:
        return "columns"
    shape = tables.shape_of(text)
    if not plain and shape.width > 1 and shape.rows > 1 and shape.share == 1:
        return "table"
    return "text"


def rows_of(content: Content, layout: Layout, note: Callable[[str], object]) -> Iterator[Row]:
    """Every row of the file, with the line it begins on; Refused for running text."""
    if content.format == "workbook":
        return workbooks.rows(content.file, layout, note)
    if content.format == "Parquet" or content.text is None:
        return parquet.rows(content.file)
    if content.format == "table":
        return tables.rows(content.text, layout, note)
    if content.format == "columns":
        return tables.headerless_rows(content.text, layout, note)
    if content.format == "tokens":
        return tagged.rows(content.text)
    if content.format == "JSON":
        return structured.rows(content.text)
    kinds = "JSON, JSON lines, CSV, TSV, Parquet, .xlsx or columns parted by tabs"
    raise Refused(f"{content.source} holds running text, which is for a task that reads it; rows are {kinds}.")


def documents_of(content: Content, separator: str) -> Iterator[tuple[int, str]]:
    """The documents of running text, with the lines they begin on."""
    assert content.text is not None
    return running.parts(content.text, separator)
