"""Rows that are there more than once."""

from __future__ import annotations

from collections.abc import Mapping

MOST = 2_000_000


class Repeats:
    """Counts rows that equal an earlier one, among the first two million."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self.count = 0
        self.places: tuple[str, str] | None = None

    def add(self, fields: Mapping[str, object], place: str) -> None:
        """The row is counted when all its fields were seen before; the first such pair of places is kept."""
        key = hash(repr(sorted(fields.items())))
        earlier = self._first.get(key)
        if earlier is None:
            if len(self._first) < MOST:
                self._first[key] = place
            return
        self.count += 1
        self.places = self.places or (earlier, place)

    def __str__(self) -> str:
        where = f", first {self.places[0]} and {self.places[1]}" if self.places else ""
        return f"{self.count} row{'s' * (self.count != 1)} repeated{where}"
