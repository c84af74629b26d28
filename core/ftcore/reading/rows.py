"""What comes out of a file: rows and running text, each with the place where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Row: TypeAlias = "tuple[int, int, object]"  # line, column or 0, the value or Problem that stands there


@dataclass(frozen=True)
class Record:
    """One row and the line it begins on (of a binary file or the Hub: its number); a column where rows share it."""

    fields: Mapping[str, object]
    source: str
    line: int
    column: int = 0

    @property
    def place(self) -> str:
        """The row's file and line, as an editor takes them."""
        return f"{self.source}:{self.line}:{self.column}" if self.column else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Document:
    """Running text, and the line it begins on."""

    text: str
    source: str
    line: int

    @property
    def place(self) -> str:
        """The document's file and line, as an editor takes them."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Layout:
    """What a table does not say of itself: the sheet to read, and the line with the names of its columns (0: none)."""

    sheet: str | None = None
    header_row: int | None = None
