"""Tables of encoded rows, in memory or in a file that is read row by row, and views of several of them."""

from __future__ import annotations

import json
import os
import tempfile
import typing
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from ftcore.batches import row_key
from ftcore.hooks import Row

R = TypeVar("R", bound=Row)
KEY = 16  # bytes of a row's key, enough that no two rows ever share one by chance
ROWS, INDEX, META = "rows.bin", "index.npz", "meta.json"
Encoded = tuple[int, Any]  # the number of the record that a row came from, and the row


@dataclass(frozen=True)
class Table(Generic[R]):
    """Encoded rows: `read` gives one, the arrays tell of each its size, key, record and what is counted of it."""

    read: Callable[[int], R]
    sizes: np.ndarray[Any, Any]
    keys: np.ndarray[Any, Any]
    records: np.ndarray[Any, Any]
    facts: Mapping[str, np.ndarray[Any, Any]]

    def __len__(self) -> int:
        return len(self.sizes)


class View(Sequence[R]):
    """Some rows of some tables, in an order of their own; none is read before it is asked for."""

    def __init__(self, tables: Sequence[Table[R]], table: np.ndarray[Any, Any], row: np.ndarray[Any, Any]) -> None:
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

    def where(self, chosen: np.ndarray[Any, Any]) -> View[R]:
        """The rows that an array of truths, or of numbers, picks."""
        return View(self.tables, self.table[chosen], self.row[chosen])

    def column(self, of: Callable[[Table[R]], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """What the tables hold of each row under `of`."""
        columns = [of(table) for table in self.tables]
        if not columns:
            return np.empty(0, dtype=np.int64)
        made = np.empty(len(self), dtype=columns[0].dtype)
        for number, column in enumerate(columns):
            mine = self.table == number
            made[mine] = column[self.row[mine]]
        return made

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        return typing.cast("Sequence[int]", self.column(lambda table: table.sizes))

    def keys(self) -> Sequence[bytes]:
        """The key of each row."""
        return [key.tobytes() for key in self.column(lambda table: table.keys)]

    def total(self, fact: str) -> int:
        """The sum of what is counted of each row under that name."""
        zero = np.zeros
        found = self.column(lambda table: table.facts.get(fact, zero(len(table), dtype=np.int32)))
        return int(found.sum(dtype=np.int64))

    @property
    def facts(self) -> tuple[str, ...]:
        """The names of what is counted."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.facts))


def all_of(tables: Sequence[Table[R]]) -> View[R]:
    """Every row of the tables, one table after the other."""
    lengths = [len(table) for table in tables]
    table = np.repeat(np.arange(len(tables), dtype=np.int16), lengths)
    row = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]) if lengths else np.empty(0, dtype=np.int64)
    return View(tables, table, row)


class _Columns:
    """The arrays of a table while it grows."""

    def __init__(self, facts: Callable[[Any], Mapping[str, int]]) -> None:
        self.of, self.sizes, self.records = facts, array("i"), array("i")
        self.keys = bytearray()
        self.facts: dict[str, array[int]] = {}

    def add(self, record: int, row: Row) -> None:
        counted = self.of(row)
        for name in counted.keys() - self.facts.keys():
            self.facts[name] = array("i", [0] * len(self.sizes))
        for name, column in self.facts.items():
            column.append(counted.get(name, 0))
        self.sizes.append(row.size)
        self.records.append(record)
        self.keys += row_key(row)[:KEY]

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        made = {f"fact_{name}": np.frombuffer(column, dtype=np.int32) for name, column in self.facts.items()}
        columns = {"sizes": self.sizes, "records": self.records}
        made |= {name: np.frombuffer(column, dtype=np.int32) for name, column in columns.items()}
        return {**made, "keys": np.frombuffer(bytes(self.keys), dtype=f"V{KEY}")}


def in_memory(rows: Iterable[Encoded], facts: Callable[[Any], Mapping[str, int]]) -> Table[Any]:
    """A table that holds its rows."""
    columns, kept = _Columns(facts), []
    for record, row in rows:
        columns.add(record, row)
        kept.append(row)
    return _table(kept.__getitem__, columns.arrays())


def write(folder: Path, rows: Iterable[Encoded], facts: Callable[[Any], Mapping[str, int]]) -> None:
    """`folder` holds the rows and what `opened` needs to read them one by one."""
    columns, offsets = _Columns(facts), array("q", [0])
    with (folder / ROWS).open("wb") as file:
        for record, row in rows:
            columns.add(record, row)
            offsets.append(offsets[-1] + file.write(as_bytes(row)))
    arrays: dict[str, Any] = {"offsets": np.frombuffer(offsets, dtype=np.int64), **columns.arrays()}
    np.savez(folder / INDEX, **arrays)


def opened(folder: Path, kind: type[R]) -> Table[R]:
    """The table that was written to `folder`, of rows of one kind; its file stays open as long as the table lives."""
    with np.load(folder / INDEX, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    offsets = arrays.pop("offsets")
    file = os.open(folder / ROWS, os.O_RDONLY)

    def read(index: int) -> R:
        start, end = int(offsets[index]), int(offsets[index + 1])
        return from_bytes(os.pread(file, end - start, start), kind)

    weakref.finalize(read, os.close, file)
    return _table(read, arrays)


def passing(rows: Iterable[Encoded], kind: type[R], facts: Callable[[Any], Mapping[str, int]]) -> Table[R]:
    """A table in a file that is gone with it."""
    with tempfile.TemporaryDirectory(prefix="ftcore-rows-") as folder:
        write(Path(folder), rows, facts)
        return opened(Path(folder), kind)  # an open file outlives its name


def _table(read: Callable[[int], Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> Table[Any]:
    counted = {name.removeprefix("fact_"): column for name, column in arrays.items() if name.startswith("fact_")}
    return Table(read, arrays["sizes"], arrays["keys"], arrays["records"], counted)


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
