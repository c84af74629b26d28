"""Documents as they are kept, and the windows over them that a model reads, made when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from ftcore.batches import TokenRow
from ftcore.tables import KEY, RECORDS, View

Array = np.ndarray[Any, Any]
LONGEST = 2**14  # tokens of a document that are kept, and read, together


@dataclass(frozen=True)
class Text:
    """A document's tokens, or as many of them as are kept together; its first part has the count of characters."""

    input_ids: Array
    characters: int
    place: str

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """The tokens."""
        return self.input_ids.tobytes()

    def counted(self) -> Mapping[str, int]:
        """What is counted of it."""
        return {"characters": self.characters}


class Windows(Sequence[TokenRow]):
    """Rows of the tokens from each start to each end of documents laid end to end; none is held.

    A row's documents never look at each other.
    """

    def __init__(self, texts: View[Text], starts: Array, ends: Array) -> None:
        self.texts, self.starts, self.ends = texts, starts, ends
        self.offsets, self.borders = laid(texts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Windows(self.texts, self.starts[index], self.ends[index])
        start, end = int(self.starts[index]), int(self.ends[index])
        first, last = self._parts(start, end)
        parts = [self.texts[number] for number in range(first, last)]
        ids = np.concatenate([part.input_ids for part in parts])[start - self.offsets[first] :][: end - start]
        return TokenRow(ids, ids, self._lengths(start, end), parts[0].place)

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        sizes: Any = self.ends - self.starts
        return sizes  # type: ignore[no-any-return]

    def keys(self) -> Sequence[bytes]:
        """A key for each row: of the texts that it holds, and where it begins and ends in them."""
        keys = self.texts.keys()
        return [
            self._key(keys, start, end) for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        ]

    @property
    def supervised(self) -> int:
        """Tokens that are predicted: all but the first of each document in each row."""
        inner = np.searchsorted(self.borders, self.ends, "left") - np.searchsorted(self.borders, self.starts, "right")
        return int((self.ends - self.starts - 1 - inner).sum())

    def _parts(self, start: int, end: int) -> tuple[int, int]:
        """The first text that reaches into a window, and the first that does not any more."""
        first = int(np.searchsorted(self.offsets, start, "right")) - 1
        return first, int(np.searchsorted(self.offsets, end, "left"))

    def _lengths(self, start: int, end: int) -> tuple[int, ...]:
        inner = slice(np.searchsorted(self.borders, start, "right"), np.searchsorted(self.borders, end, "left"))
        return tuple(np.diff([start, *self.borders[inner], end]).tolist())

    def _key(self, keys: Sequence[bytes], start: int, end: int) -> bytes:
        first, last = self._parts(start, end)
        where = [start - int(self.offsets[first]), *self._lengths(start, end)]
        parts = [keys[number] for number in range(first, last)]
        return hashlib.sha256(b"".join([*parts, repr(where).encode()])).digest()[:KEY]


class Joined(Sequence[TokenRow]):
    """The rows of one sequence, then those of another."""

    def __init__(self, *sides: Any) -> None:
        self.sides = sides

    def __len__(self) -> int:
        return sum(map(len, self.sides))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        for side in self.sides:
            if 0 <= number < len(side):
                return side[number]
            number -= len(side)
        raise IndexError(index)

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        sizes: Any = np.concatenate([side.sizes() for side in self.sides])
        return sizes  # type: ignore[no-any-return]

    def keys(self) -> Sequence[bytes]:
        """The key of each row."""
        return list(chain.from_iterable(side.keys() for side in self.sides))


def laid(texts: View[Text]) -> tuple[Array, Array]:
    """Where each text begins when all are laid end to end, with the end of the last; and where documents begin."""
    offsets = np.concatenate([[0], np.cumsum(texts.sizes(), dtype=np.int64)])
    records, table = texts.column(RECORDS), texts.table
    begins = np.r_[True, (records[1:] != records[:-1]) | (table[1:] != table[:-1])][: len(texts)]
    return offsets, offsets[:-1][begins]


def filled(texts: View[Text], length: int, sources: int | None) -> list[Windows]:
    """Windows of exactly `length` tokens over all documents, or over each source's; a last one may be shorter."""
    offsets, _ = laid(texts)
    edges = [0, len(texts)] if sources is None else np.searchsorted(texts.table, np.arange(sources + 1)).tolist()
    return [_filled(texts, offsets[start], offsets[end], length) for start, end in pairwise(edges)]


def _filled(texts: View[Text], start: int, end: int, length: int) -> Windows:
    starts = np.arange(start, end, length)
    ends = np.minimum(starts + length, end)
    whole = ends - starts > 1  # a single token has nothing to be predicted from
    return Windows(texts, starts[whole], ends[whole])


def each_apart(texts: View[Text], length: int) -> Windows:
    """Each document in rows of at most `length` tokens that overlap by one, so that every token is predicted once."""
    offsets, borders = laid(texts)
    pairs = zip(borders.tolist(), [*borders[1:].tolist(), int(offsets[-1])], strict=False)
    spans = [(at, min(at + length, end)) for start, end in pairs for at in range(start, end - 1, length - 1)]
    table = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return Windows(texts, table[:, 0], table[:, 1])
