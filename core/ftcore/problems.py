"""What is wrong with rows: said in one sentence each, collected over all files, and settled by the run's policy."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NoReturn

from ftcore.errors import Refused

# Every key that some shape of row is recognised by, so that none is taken for another one misspelt.
_KEYS = """
    instruction input output system history messages conversations tools functions system_prompt context prompt
    completion response query question answer answers ask source target dialogue document article summary highlights
    mr ref chat meta_instruction plain_text prefix chosen rejected text label labels category tokens tags words
    ner_tags entities sentence sentence1 sentence2 premise hypothesis question1 question2 text1 text2 text_a text_b
    id title is_impossible role from content value 1 2
"""
KNOWN_KEYS = frozenset(_KEYS.split())
_UNTEXTUAL = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """What keeps one row from being used; rows with one remedy count as one kind."""

    place: str
    field: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.field} {self.found}; {self.remedy}"

    @property
    def kind(self) -> str:
        """What this problem shares with others of its sort, whatever the place and the value."""
        return f"{re.sub('[0-9]+', '', self.field)}: {self.remedy}"


class BadRow(Exception):
    """A row that cannot be used; the rest of its file may be sound."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Problems:
    """The problems of all files of one pass, and what was noticed on the way that keeps no row from being used."""

    MOST_LISTED = 10_000

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._kinds: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()

    def add(self, problem: Problem) -> None:
        """The problem is counted, and listed as long as the list is one that anyone might read."""
        self._kinds[problem.kind] += 1
        if len(self._found) < self.MOST_LISTED:
            self._found.append(problem)

    def note(self, notice: str) -> None:
        """The notice is among the notices once, with how many times it was noted."""
        self._notes[notice] += 1

    def notices(self) -> list[str]:
        """What was noted, in order; what was noted of several rows says of how many."""
        return [notice if count == 1 else f"{count} × {notice}" for notice, count in self._notes.items()]

    def __len__(self) -> int:
        return self._kinds.total()

    @property
    def everything(self) -> tuple[Problem, ...]:
        """All of them, in the order found."""
        return tuple(self._found)

    def kinds(self, limit: int = 6) -> list[str]:
        """How many problems there are of each kind, the most frequent first."""
        counts = self._kinds.most_common()
        shown = [f"{count} × {kind}" for kind, count in counts[:limit]]
        return shown + [f"{len(counts) - limit} more kinds"] * (len(counts) > limit)

    def summary(self, limit: int = 20) -> str:
        """The first problems, a line each, then the count of all by kind."""
        lines = [str(problem) for problem in self._found[:limit]]
        lines += [f"… and {len(self) - limit} more"] * (len(self) > limit)
        return "\n".join([*lines, "By kind:", *self.kinds()])


def settle(problems: Problems, policy: Literal["error", "skip"], kept: int) -> str | None:
    """Either the run goes on, with what was noticed and the rows left out, or it is refused with all that is wrong."""
    rows = f"{len(problems)} of {len(problems) + kept} rows cannot be used"
    if not len(problems):
        if not kept:
            raise Refused("The data holds no row; pass a file with rows.")
        return "\n".join(problems.notices()) or None
    if not kept:
        raise Refused(f"{rows}, so that none is left to train on:\n{problems.summary()}")
    if policy == "error":
        raise Refused(f"{rows}:\n{problems.summary()}\nMend them; `--on-bad-row skip` leaves them out.")
    left_out = f"{len(problems)} rows left out of {len(problems) + kept}: {'; '.join(problems.kinds())}"
    return "\n".join([*problems.notices(), left_out])


def optional(fields: Mapping[str, object], key: str, prefix: str = "", *, required: bool = False) -> str:
    """The text under `key`, empty when it is absent or null; BadRow for anything else, or for a misspelt key."""
    if key not in fields:
        refuse_misspelt(fields, key, prefix=prefix)
    if fields.get(key) is None and not required:
        return ""
    return _textual(fields[key], prefix + key)


def filled(fields: Mapping[str, object], key: str, prefix: str = "") -> str:
    """The text under `key`; BadRow when it is missing, blank or no text."""
    if key not in fields:
        refuse_misspelt(fields, key, prefix=prefix)
        refuse(f"{prefix}{key}", "is missing", f'add "{key}" with its text')
    return checked(fields[key], prefix + key)


def checked(value: object, field: str) -> str:
    """`value` when it is a text that says something, else BadRow."""
    text = _textual(value, field)
    if not text.strip():
        found = f"is blank: {text[:20]!r}" if text else "is empty"
        refuse(field, found, "give it text, or remove the row")
    return text


def _textual(value: object, field: str) -> str:
    if not isinstance(value, str):
        refuse(field, f"is {shown(value)}", "make it a text in double quotes")
    bad = _UNTEXTUAL.search(value)
    if bad:
        refuse(field, f"has {bad[0]!r} at position {bad.start()}", "remove that character, which no text has")
    return value


def refuse_misspelt(fields: Mapping[str, object], *expected: str, prefix: str = "") -> None:
    """BadRow when a key of the row is nearly one of `expected`."""
    for right in expected:
        for key in fields.keys() - KNOWN_KEYS:
            if alike(key, right):
                refuse(f"{prefix}{key[:60]!r}", "is not a key that is read", f'rename it to "{right}"')


@lru_cache(maxsize=4096)
def alike(key: str, right: str) -> bool:
    """`key` is so near to `right` that it is likely to be it, misspelt."""
    near = difflib.SequenceMatcher(None, key.lower(), right).ratio() >= 0.8
    return near and abs(len(key) - len(right)) <= 1


def shown(value: object) -> str:
    """A value as a message shows it: its kind and at most 60 characters."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "the text", int: "the number", float: "the number", list: "the list", dict: "the object"}
    shown = repr(value)
    return f"{names.get(type(value), 'the value')} {shown if len(shown) <= 60 else shown[:59] + '…'}"


def refuse(field: str, found: str, remedy: str) -> NoReturn:
    """BadRow, for the place that the caller adds."""
    raise BadRow(Problem("", field, found, remedy))


def abridged(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
