"""Sentences as rows: each word's label at its first token, and in one row only where a sentence needs several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from ftcore.batches import IGNORED
from ftcore.labels import number_of
from ftcore.problems import refuse
from ftcore.records import Record
from ftcore.texts import OUTSIDE, Numbers, Reader, Tokens, windows

from ftcore_token_classify.sentences import Sentence, sentence_of


@dataclass(frozen=True, eq=False)
class Window:
    """As much of a sentence as fits: `labels` are the numbers that positions learn, `places` the words they
    answer.

    `part` counts the rows of one sentence, `unread` its words for which the tokenizer has no token; one is `cut` where
    a word is longer than a row, and its later tokens are in none.
    """

    input_ids: Numbers
    segments: Numbers
    labels: Numbers
    places: Numbers
    part: int
    text: str
    words: tuple[str, ...]
    starts: tuple[int, ...]
    right: tuple[int, ...]
    unread: int
    cut: bool
    place: str

    @property
    def size(self) -> int:
        """Tokens that the model reads."""
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Positions that learn a label."""
        return int((self.labels != IGNORED).sum())

    def identity(self) -> bytes:
        """The tokens, their segments, and their labels."""
        return self.input_ids.tobytes() + self.segments.tobytes() + self.labels.tobytes()

    def counted(self) -> dict[str, int]:
        """What is counted of the row; of a sentence, in the first of its rows."""
        opens = self.part == 0
        return {
            "sentences": int(opens),
            "tokens": self.size,
            "supervised_tokens": self.supervised,
            "words_without_tokens": self.unread if opens else 0,
            "rows_cut": int(opens and self.cut),
        }


@dataclass(frozen=True, eq=False)
class Windowing:
    """How sentences become rows of at most `length` tokens; `unknown` is whether a record may lack its labels."""

    reader: Reader
    length: int
    shared: int
    names: Sequence[str]
    everywhere: bool
    unknown: bool

    def rows(self, record: Record) -> Iterator[Window]:
        """The rows of a sentence; BadRow when it has a label that is none of the names, or no token."""
        sentence = sentence_of(record, unknown=self.unknown)
        right = [number_of(label, self.names, "tags") for label in sentence.labels] if sentence.known else []
        tokens = self.reader.tokens_of(sentence.spelt)
        room = self.reader.room(self.length)
        if room < 1 or not len(tokens):
            refuse("tokens", f"has {len(tokens)} tokens, and there is room for {room}", "raise --max-length")
        opening = np.diff(tokens.words, prepend=OUTSIDE) != 0
        spans = list(windows(len(tokens), room, self.shared))
        kept = [span for span in zip(spans, _owned(spans), strict=True) if opening[slice(*span[1])].any()]
        for part, (span, owned) in enumerate(kept):
            made = self._window(sentence, tokens, span, _mine(tokens, opening, owned), right)
            yield replace(made, part=part, cut=len(kept) < len(spans))

    def _window(
        self, sentence: Sentence, tokens: Tokens, span: tuple[int, int], mine: Numbers, right: Sequence[int]
    ) -> Window:
        laid = self.reader.laid_out(tokens.ids[slice(*span)])
        at = np.where(laid.places == OUTSIDE, 0, laid.places + span[0])
        words = np.where(laid.places == OUTSIDE, OUTSIDE, tokens.words[at])
        answers = np.where(laid.places == OUTSIDE, OUTSIDE, mine[at])
        learned = np.where(np.isin(words, mine[mine != OUTSIDE]), words, OUTSIDE) if self.everywhere else answers
        numbers = np.asarray([*right, IGNORED] if right else [IGNORED] * (len(sentence.words) + 1), dtype=np.int32)
        return Window(
            input_ids=laid.ids,
            segments=laid.segments,
            labels=numbers[learned],  # the last of the numbers stands for what is outside
            places=answers.astype(np.int32),
            part=0,
            text=sentence.text,
            words=sentence.words,
            starts=sentence.starts,
            right=tuple(right),
            unread=len(sentence.words) - len(np.unique(tokens.words)),
            cut=False,
            place=sentence.place,
        )


def _owned(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """For each row the tokens whose words it answers: what two rows share is parted in its middle."""
    cuts = [spans[0][0], *((after[0] + before[1]) // 2 for before, after in pairwise(spans)), spans[-1][1]]
    yield from pairwise(cuts)


def _mine(tokens: Tokens, opening: np.ndarray[tuple[int], np.dtype[np.bool_]], owned: tuple[int, int]) -> Numbers:
    """For each token the word that it is the first of, where this row answers it."""
    at = np.arange(len(tokens))
    return np.where(opening & (at >= owned[0]) & (at < owned[1]), tokens.words, OUTSIDE)
