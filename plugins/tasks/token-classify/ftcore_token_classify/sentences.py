"""A sentence as a text and its words, each where it stands in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ftcore.problems import filled
from ftcore.records import Record
from ftcore.shapes import tagged_of

MARKED = {"entities", "label", "labels"}
TAGS, WORDS = {"tags", "ner_tags", "labels"}, ("tokens", "words")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u3000-\u303f\uff00-\uffef]")


@dataclass(frozen=True)
class Sentence:
    """A text with its words, the character where each begins, and a label for each if they are `known`."""

    text: str
    words: tuple[str, ...]
    starts: tuple[int, ...]
    labels: tuple[str, ...]
    known: bool
    place: str

    @property
    def spelt(self) -> list[str]:
        """The words, each with the space before it, if there is one."""
        apart = [start > 0 and self.text[start - 1].isspace() for start in self.starts]
        return [f" {word}" if space else word for word, space in zip(self.words, apart, strict=True)]


def sentence_of(record: Record, *, unknown: bool) -> Sentence:
    """The sentence of a record; where labels may be `unknown`, also of one without any."""
    fields = record.fields
    given = next((key for key in WORDS if key in fields), None)
    known = not unknown or bool((TAGS if given else MARKED) & fields.keys())
    tagged = tagged_of(record if known else _untagged(record, given))
    text = _joined(tagged.words) if given else filled(fields, "text")
    return Sentence(text, tagged.words, _starts(tagged.words, text), tagged.tags, known, tagged.place)


def _untagged(record: Record, key: str | None) -> Record:
    """The record with labels that are not looked at."""
    held = record.fields.get(key or "")
    bare = {"tags": ["O"] * len(held) if isinstance(held, list) else []} if key else {"entities": []}
    return replace(record, fields={**record.fields, **bare})


def _joined(words: tuple[str, ...]) -> str:
    """The words as a text: with a space between two of them, unless both are written without."""
    text = ""
    for word in words:
        unspaced = not text or bool(_UNSPACED.match(text[-1]) and _UNSPACED.match(word))
        text += word if unspaced else f" {word}"
    return text


def _starts(words: tuple[str, ...], text: str) -> tuple[int, ...]:
    starts: list[int] = []
    reached = 0
    for word in words:
        starts.append(text.index(word, reached))
        reached = starts[-1] + len(word)
    return tuple(starts)
