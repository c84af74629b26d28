"""Texts as rows for models that read a row whole: what stands around them, windows that overlap, and padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from ftcore.errors import Refused
from ftcore.hooks import Batch, Loaded

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor, nn

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"
OUTSIDE = -1  # what stands for a token that is of no text


class Part(Protocol):
    """A row that is one of several of its record, or the only one."""

    @property
    def part(self) -> int:
        """Its number among them, from 0."""


P = TypeVar("P", bound=Part)
A = TypeVar("A")


class Slot(NamedTuple):
    """What stands somewhere in a row: a text, counted from 0, or a special token; and its segment."""

    text: int | None
    token: int
    segment: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a text, for each the characters that it covers, and its word where words were given."""

    ids: Numbers
    starts: Numbers
    ends: Numbers
    words: Numbers

    def __len__(self) -> int:
        return len(self.ids)

    def covering(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last token of the fewest that hold all of these characters; None where none holds any."""
        held = np.flatnonzero((self.ends > start) & (self.starts < end) & (self.ends > self.starts))
        return (int(held[0]), int(held[-1])) if len(held) else None


@dataclass(frozen=True, eq=False)
class Laid:
    """A row as the model reads it; `places` is for each position the number of its token in the last text."""

    ids: Numbers
    segments: Numbers
    places: Numbers


@dataclass(frozen=True, eq=False)
class Reader:
    """A tokenizer that neither cuts nor pads nor takes what a text spells out for a special token.

    It is a copy: the tokenizer itself is saved with the run, and stays as it is.
    """

    backend: Tokenizer
    pad_id: int
    summary_id: int | None

    @classmethod
    def of(cls, loaded: Loaded) -> Reader:
        """The reader of a model's tokenizer; Refused when it has none."""
        from tokenizers import Tokenizer

        tokenizer: Any = loaded.tokenizer
        if tokenizer is None:
            raise Refused(f"the checkpoint '{loaded.checkpoint}' has no tokenizer; add its tokenizer.json")
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return cls(backend, tokenizer.pad_token_id or 0, tokenizer.cls_token_id)

    def tokens(self, text: str) -> Tokens:
        """The text's tokens, without special ones."""
        return _tokens(self.backend.encode(text, add_special_tokens=False))

    def tokens_of(self, words: Sequence[str]) -> Tokens:
        """The tokens of words that stand one after the other; one that begins with a space is parted from the last."""
        spelt = words if self._spaced else [word.lstrip(" ") for word in words]
        return _tokens(self.backend.encode(spelt, is_pretokenized=True, add_special_tokens=False))

    @cached_property
    def _spaced(self) -> bool:
        """Whether the space before a word is in the word's first token, and not put there where words are given."""
        running, bare, spaced = "a a", ["a", "a"], ["a", " a"]
        wanted, plain, parted = (
            self.backend.encode(text, is_pretokenized=text is not running, add_special_tokens=False).ids
            for text in (running, bare, spaced)
        )
        return bool(plain != wanted == parted)

    @cached_property
    def single(self) -> tuple[Slot, ...]:
        """What stands around one text."""
        return _layout(self.backend.encode("a"))

    @cached_property
    def pair(self) -> tuple[Slot, ...]:
        """What stands around two texts."""
        return _layout(self.backend.encode("a", "a"))

    def room(self, length: int, *texts: int) -> int:
        """Tokens that a row of `length` has for one more text beside texts of that many tokens."""
        layout = self.pair if texts else self.single
        return length - sum(texts) - sum(slot.text is None for slot in layout)

    def laid_out(self, *texts: Numbers) -> Laid:
        """One text, or two, among the special tokens that the tokenizer lays around them."""
        last = len(texts) - 1
        parts = [_part(slot, texts, last) for slot in (self.pair if last else self.single)]
        ids, segments, places = (np.concatenate(found).astype(np.int32) for found in zip(*parts, strict=True))
        return Laid(ids, segments, places)

    def summary(self, laid: Laid) -> int:
        """The position that stands for the whole row: that of the classification token, else the first."""
        found = np.flatnonzero((laid.ids == self.summary_id) & (laid.places == OUTSIDE))
        return int(found[0]) if self.summary_id is not None and len(found) else 0


def _layout(made: Encoding) -> tuple[Slot, ...]:
    slots = [Slot(*found) for found in zip(made.sequence_ids, made.ids, made.type_ids, strict=True)]
    before = [None, *(slot.text for slot in slots)]
    return tuple(slot for slot, text in zip(slots, before, strict=False) if slot.text is None or slot.text != text)


def _part(slot: Slot, texts: Sequence[Numbers], last: int) -> tuple[Any, Any, Any]:
    """The ids, the segments and the places of one slot."""
    if slot.text is None:
        return [slot.token], [slot.segment], [OUTSIDE]
    ids = texts[slot.text]
    places = np.arange(len(ids)) if slot.text == last else np.full(len(ids), OUTSIDE)
    return ids, np.full(len(ids), slot.segment), places


def _tokens(read: Encoding) -> Tokens:
    starts, ends = zip(*read.offsets, strict=True) if read.offsets else ((), ())
    words = [OUTSIDE if word is None else word for word in read.word_ids]
    return Tokens(*(np.asarray(column, dtype=np.int32) for column in (read.ids, starts, ends, words)))


def windows(count: int, room: int, shared: int) -> Iterator[tuple[int, int]]:
    """Where windows of at most `room` tokens begin and end so that each shares `shared` tokens with the next."""
    start = 0
    while start + room < count:
        yield start, start + room
        start += room - min(shared, room - 1)
    yield start, count


# --- batches ---------------------------------------------------------------------------------------------


def by_record(pairs: Iterable[tuple[P, A]]) -> Iterator[list[tuple[P, A]]]:
    """The rows of each record with what is said of them; the first of a record has the `part` 0."""
    group: list[tuple[P, A]] = []
    for pair in pairs:
        if group and pair[0].part == 0:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def takes_segments(model: nn.Module) -> bool:
    """Whether the model can be told which segment a token is of."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


def padded(columns: Sequence[Numbers], filling: int) -> Tensor:
    """The columns as the rows of one tensor, filled up on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.from_numpy(column.astype(np.int64)) for column in columns]
    return pad_sequence(tensors, batch_first=True, padding_value=filling)


def inputs_of(ids: Sequence[Numbers], segments: Sequence[Numbers], pad_id: int, *, told: bool) -> dict[str, Tensor]:
    """What a model reads of padded rows; `told` is whether it takes segments."""
    inputs = {"input_ids": padded(ids, pad_id), "attention_mask": padded([np.ones_like(row) for row in ids], 0)}
    return {**inputs, "token_type_ids": padded(segments, 0)} if told else inputs


def moved_to(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The inputs of a batch where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.inputs.items()}
