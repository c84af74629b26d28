"""Entities in a sequence of labels: B and I, also E and S, or I alone, or names without a letter before them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ftcore.labels import ordered

OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIES])-(.+)", re.DOTALL)


class Entity(NamedTuple):
    """What a run of words is: its label, its first word, and the word after its last."""

    label: str
    first: int
    end: int


def completed(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels in order, with those of their scheme that some entity lacks: held-out rows may have them."""
    found = set(labels)
    parts = [match.groups() for label in found if (match := _PREFIXED.fullmatch(label))]
    letters = {letter for letter, _ in parts} | ({"I"} if parts else set())
    letters |= {"E", "S"} if letters & {"E", "S"} else set()
    return ordered(found | {f"{letter}-{name}" for letter in letters for _, name in parts})


def names_entities(labels: Iterable[str]) -> bool:
    """Whether labels name entities at all: one of them is that of words outside, or says where an entity begins."""
    return any(label == OUTSIDE or _PREFIXED.fullmatch(label) for label in labels)


def entities(labels: Sequence[str]) -> list[Entity]:
    """The entities of a sentence as seqeval finds them: one goes on from B or I to an I or E of its own name."""
    found: list[Entity] = []
    for start, end in _runs([_parted(label) for label in labels]):
        found.append(Entity(_parted(labels[start])[1], start, end))
    return found


def _parted(label: str) -> tuple[str, str]:
    """The letter and the name; a name alone is inside, as is all that is not outside."""
    match = _PREFIXED.fullmatch(label)
    if match is not None:
        return match[1], match[2]
    return (OUTSIDE, "") if label == OUTSIDE else ("I", label)


def _runs(parts: Sequence[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    start = 0
    for at, (letter, name) in enumerate(parts):
        after = parts[at + 1] if at + 1 < len(parts) else (OUTSIDE, "")
        goes_on = letter in "BI" and after[0] in "IE" and after[1] == name
        if letter != OUTSIDE and not goes_on:
            yield start, at + 1
        if not goes_on:
            start = at + 1
