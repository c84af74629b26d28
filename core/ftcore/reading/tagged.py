"""One token a line with its tag last, and a blank line after each sentence: the files of CoNLL and their like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from ftcore.problems import Problem
from ftcore.reading.encodings import Text
from ftcore.reading.rows import Row
from ftcore.reading.structured import unconflicted

_TAG = re.compile(r"O|[BIESLUM]-\S+")
_SAMPLE = 400


def is_tagged(text: Text) -> bool:
    """Whether the first lines are tokens with tags of entities."""
    lines = [line for line in islice(text.lines(), _SAMPLE) if line.strip() and not _is_remark(line)]
    parts = [_parts(line) for line in lines]
    return len(lines) > 1 and all(len(part) > 1 and _TAG.fullmatch(part[-1]) for part in parts)


def rows(text: Text) -> Iterator[Row]:
    """A row of tokens and tags for each sentence, on the line of its first token."""
    tokens: list[str] = []
    tags: list[str] = []
    first, problem = 0, None
    for number, line in enumerate(_closed(text), start=1):
        if not line.strip():
            if first:
                yield problem or (first, 0, {"tokens": tokens, "tags": tags})
            tokens, tags, first, problem = [], [], 0, None
            continue
        if _is_remark(line):
            continue
        parts = _parts(line)
        first = first or number
        problem = problem or (number, 0, _untagged(line)) if len(parts) < 2 else problem
        tokens.append(parts[0])
        tags.append(parts[-1])


def _closed(text: Text) -> Iterator[str]:
    yield from unconflicted(text)
    yield ""


def _is_remark(line: str) -> bool:
    """Whether the line is said about the tokens; a token that is itself a number sign has a tag."""
    if line.startswith("-DOCSTART-"):
        return True
    return line.startswith("# ") and not _TAG.fullmatch(_parts(line)[-1])


def _parts(line: str) -> list[str]:
    tabbed = [part.strip() for part in line.split("\t") if part.strip()]
    return tabbed if len(tabbed) > 1 else line.split()


def _untagged(line: str) -> Problem:
    found = f"has no tag: {line.strip()[:40]!r}"
    return Problem("", "token", found, "write each token and its tag on a line, and a blank line after a sentence")
