"""Tables of encoded rows, in memory or in a file that is read row by row, and views of several of them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import typing
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar, overload

import numpy as np

from ftcore.batches import row_key
from ftcore.errors import Refused
from ftcore.hooks import Row

R = TypeVar("R", bound=Row)
Array: TypeAlias = "np.ndarray[Any, Any]"
KEY = 16  # bytes of a row's key, enough that no two rows ever share one by chance
ROWS, META = "rows.bin", "meta.json"
OFFSETS, SIZES, RECORDS, KEYS, FACT = "offsets", "sizes", "records", "keys", "fact_"  # columns, a file each
DTYPES = {OFFSETS: np.dtype(np.int64), KEYS: np.dtype(f"V{KEY}")}
COUNT = np.dtype(np.int32)  # of all other columns
CHUNK = 2**18  # rows of which a column is gathered at once
Encoded = tuple[int, Any]  # the number of the record that a row came from, and the row


@dataclass(frozen=True)
class Table(Generic[R]):
    """Encoded rows: `read` gives one, `column` a number or a key of each, read when it is asked for.

    The columns are the rows' sizes, keys and records, and what is counted of them, which `facts` names.
    """

    read: Callable[[int], R]
    sizes: Array
    column: Callable[[str], Array]
    facts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sizes)


class View(Sequence[R]):
    """Some rows of some tables, in an order of their own; none is read before it is asked for."""

    def __init__(self, tables: Sequence[Table[R]], table: Array, row: Array) -> None:
        self.tables, self.table, self.row = tuple(tables), table, row

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> View[R]: ...
    def __getitem__(self, index: int | slice) -> R | View[R]:
        if isinstance(index, slice):
            return View(self.tables, self.table[index], self.row[index])
        row: R = self.tables[self.table[index]].read(int(self.row[index]))
        return row

    def where(self, chosen: Array) -> View[R]:
        """The rows that an array of truths, or of numbers, picks."""
        return View(self.tables, self.table[chosen], self.row[chosen])

    def column(self, name: str) -> Array:
        """What the tables hold of each row under that name; 0 where a table does not count it."""
        return self._gathered(name, DTYPES.get(name, COUNT))

    def briefs(self) -> Array:
        """The first half of each row's key, as a number."""
        return self._gathered(KEYS, np.dtype("<u8"))

    def _gathered(self, name: str, dtype: np.dtype[Any]) -> Array:
        made = np.zeros(len(self), dtype=dtype)
        for number, table in enumerate(self.tables):
            if name.startswith(FACT) and name.removeprefix(FACT) not in table.facts:
                continue
            column = table.column(name)
            column = column.view(dtype)[:: column.itemsize // dtype.itemsize]
            for part in (slice(start, start + CHUNK) for start in range(0, len(self), CHUNK)):
                mine = self.table[part] == number
                made[part][mine] = column[self.row[part][mine]]
        return made

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        return typing.cast("Sequence[int]", self.column(SIZES))

    def keys(self) -> Sequence[bytes]:
        """The key of each row."""
        return Keys(self.column(KEYS))

    def total(self, fact: str) -> int:
        """The sum of what is counted of each row under that name."""
        return int(self.column(FACT + fact).sum(dtype=np.int64))

    @property
    def facts(self) -> tuple[str, ...]:
        """The names of what is counted."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.facts))


@dataclass(frozen=True, eq=False)
class Keys(Sequence[bytes]):
    """The keys of rows, `KEY` bytes each, in one array."""

    array: Array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return Keys(self.array[index]) if isinstance(index, slice) else self.array[index].tobytes()


def all_of(tables: Sequence[Table[R]]) -> View[R]:
    """Every row of the tables, one table after the other."""
    lengths = [len(table) for table in tables]
    table = np.repeat(np.arange(len(tables), dtype=np.int16), lengths)
    return View(tables, table, np.concatenate([np.arange(n, dtype=COUNT) for n in [0, *lengths]]))


def in_memory(rows: Iterable[Encoded], facts: Callable[[Any], Mapping[str, int]]) -> Table[Any]:
    """A table that holds its rows."""
    kept: list[Any] = []
    columns: dict[str, bytearray] = defaultdict(bytearray)
    for record, row in rows:
        for name, value in _described(record, row, facts):
            columns[name] += value
        kept.append(row)
    _refuse_uneven({name: len(column) for name, column in columns.items()})

    def column(name: str) -> Array:
        return np.frombuffer(columns[name], dtype=DTYPES.get(name, COUNT))

    return _table(kept.__getitem__, column, columns)


def write(folder: Path, rows: Iterable[Encoded], facts: Callable[[Any], Mapping[str, int]]) -> None:
    """`folder` holds the rows and what `opened` needs to read them one by one; no column was held in memory."""
    with ExitStack() as open_files:
        files: dict[str, BinaryIO] = {}

        def put(name: str, value: bytes) -> None:
            if name not in files:
                files[name] = open_files.enter_context((folder / name).open("wb"))
            files[name].write(value)

        for name in (SIZES, RECORDS, KEYS):
            put(name, b"")
        put(OFFSETS, _number(0, 8))
        with (folder / ROWS).open("wb") as file:
            for record, row in rows:
                for name, value in _described(record, row, facts):
                    put(name, value)
                file.write(as_bytes(row))
                put(OFFSETS, _number(file.tell(), 8))
        _refuse_uneven({name: file.tell() for name, file in files.items()})


def opened(folder: Path, kind: type[R]) -> Table[R]:
    """The table that was written to `folder`, of rows of one kind; its files stay open as long as the table lives."""
    files = {file.name: os.open(file, os.O_RDONLY) for file in folder.iterdir() if file.name != META}

    def column(name: str) -> Array:
        dtype = DTYPES.get(name, COUNT)
        array = np.empty(os.fstat(files[name]).st_size // dtype.itemsize, dtype=dtype)
        _fill(memoryview(array.view(np.uint8).data), files[name])
        return array

    offsets = column(OFFSETS)

    def read(index: int) -> R:
        start, end = int(offsets[index]), int(offsets[index + 1])
        return from_bytes(os.pread(files[ROWS], end - start, start), kind)

    weakref.finalize(column, _close, tuple(files.values()))
    return _table(read, column, files)


def passing(rows: Iterable[Encoded], kind: type[R], facts: Callable[[Any], Mapping[str, int]]) -> Table[R]:
    """A table in files that are gone with it."""
    with tempfile.TemporaryDirectory(prefix="ftcore-rows-") as folder:
        write(Path(folder), rows, facts)
        return opened(Path(folder), kind)  # an open file outlives its name


def _table(read: Callable[[int], Any], column: Callable[[str], Array], names: Iterable[str]) -> Table[Any]:
    facts = tuple(sorted(name.removeprefix(FACT) for name in names if name.startswith(FACT)))
    return Table(read, column(SIZES), column, facts)


def _described(record: int, row: Row, facts: Callable[[Any], Mapping[str, int]]) -> Iterator[tuple[str, bytes]]:
    """What is kept of a row in each column."""
    yield SIZES, _number(row.size)
    yield RECORDS, _number(record)
    yield KEYS, row_key(row)[:KEY]
    for name, value in facts(row).items():
        yield FACT + name, _number(value)


def _refuse_uneven(lengths: Mapping[str, int]) -> None:
    """What is counted of one row must be counted of all, or columns would tell of other rows."""
    for name, length in lengths.items():
        if name.startswith(FACT) and length != lengths[SIZES]:
            raise Refused(f"'{name.removeprefix(FACT)}' is counted of some rows and not of others; count it of each")


def _number(value: int, width: int = COUNT.itemsize) -> bytes:
    return value.to_bytes(width, sys.byteorder, signed=True)


def _fill(room: memoryview, file: int) -> None:
    at = 0
    while at < len(room):
        at += os.preadv(file, [room[at : at + 2**30]], at)


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


# --- one row ---------------------------------------------------------------------------------------------


def as_bytes(row: Any) -> bytes:
    """A row, a frozen dataclass of arrays and plain values, as bytes: a line of JSON, then the arrays."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    shapes = {name: [value.dtype.str, list(value.shape)] for name, value in arrays.items()}
    plain = {name: value for name, value in values.items() if name not in arrays}
    head = json.dumps([shapes, plain], ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *(array.tobytes() for array in arrays.values())])


def from_bytes(data: bytes, kind: type[R]) -> R:
    """The row again, its lists as tuples."""
    start = 4 + int.from_bytes(data[:4], "little")
    shapes, plain = json.loads(data[4:start])
    values = {name: _frozen(value) for name, value in plain.items()}
    return kind(**values, **dict(_arrays(data, shapes, start)))


def _arrays(
    data: bytes, shapes: Mapping[str, tuple[str, list[int]]], start: int
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name, (dtype, shape) in shapes.items():
        made = np.frombuffer(data, dtype=dtype, count=int(np.prod(shape)), offset=start).reshape(shape)
        start += made.nbytes
        yield name, made


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
