"""Documents as tokens that know which word they are of, cut between words to fit a row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from ftcore.problems import BadRow, Problem

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Numbers: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32]]
UNKNOWN = -1
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@dataclass(frozen=True, eq=False)
class Text:
    """A part of a document without special tokens; `words` numbers each token's word, UNKNOWN where it has none.

    `opens` says that it is the first part.
    """

    ids: Numbers
    words: Numbers
    place: str
    opens: bool = False

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.ids)

    def identity(self) -> bytes:
        """The tokens and their words."""
        return self.ids.tobytes() + self.words.tobytes()

    def counted(self) -> Mapping[str, int]:
        """What is counted of it."""
        return {"documents": int(self.opens)}

    @property
    def borders(self) -> Numbers:
        """Where a word begins, but for the first."""
        fresh = (self.words[1:] != self.words[:-1]) | (self.words[1:] == UNKNOWN)
        return np.flatnonzero(fresh).astype(np.int32) + 1

    @property
    def apart(self) -> Numbers:
        """The words as they would be if each token were one."""
        each = np.arange(len(self.words), dtype=np.int32)
        return np.where(self.words == UNKNOWN, UNKNOWN, each).astype(np.int32)


def texts_in(tokenizer: PreTrainedTokenizerBase, text: str, place: str, room: int) -> list[Text]:
    """A document in texts of at most `room` tokens with a word to predict; BadRow when it holds none."""
    encoding = (tokenizer([text], add_special_tokens=False).encodings or [])[0]
    whole = Text(np.asarray(encoding.ids, dtype=np.int32), word_numbers(text, encoding), place)
    parts = [part for part in _cut(_known(whole, tokenizer.unk_token_id), room) if (part.words != UNKNOWN).any()]
    if not parts:
        remedy = "take the document out, or use a tokenizer for its language"
        raise BadRow(Problem(place, "text", "holds no word that the tokenizer knows", remedy))
    return [replace(parts[0], opens=True), *parts[1:]]


def word_numbers(text: str, encoding: Encoding) -> Numbers:
    """The word of each token: the tokenizer's own, in which blanks and Chinese characters begin new ones."""
    numbers, before, reached = [UNKNOWN], None, 0
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        fresh = word != before or (start >= reached and _begins(text, start))
        numbers.append(numbers[-1] + fresh)
        before, reached = word, max(reached, end)
    return np.asarray(numbers[1:], dtype=np.int32)


def _begins(text: str, start: int) -> bool:
    """Whether a word begins at `start`, whatever came before it."""
    around = text[max(0, start - 1) : start + 1]
    return text[start : start + 1].isspace() or bool(CHINESE.search(around))


def _known(text: Text, unknown_id: int | None) -> Text:
    """The text, in which no word holds a token for what the tokenizer does not know."""
    strange = np.isin(text.words, text.words[text.ids == (UNKNOWN if unknown_id is None else unknown_id)])
    return Text(text.ids, np.where(strange, UNKNOWN, text.words).astype(np.int32), text.place)


def _cut(text: Text, room: int) -> Iterator[Text]:
    """Parts of at most `room` tokens that end where a word does, unless one word is longer."""
    ends, borders = [0], [*text.borders.tolist(), len(text.ids)]
    for last, border in pairwise([0, *borders]):
        while border - ends[-1] > room:
            ends.append(last if last > ends[-1] else ends[-1] + room)
    for start, end in pairwise([*ends, len(text.ids)]):
        yield Text(text.ids[start:end], text.words[start:end], text.place)
