"""Which words of a row are to be predicted and what stands in their place: a function of the seed and of the text."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
from ftcore import Batch, Refused
from ftcore.batches import IGNORED, moved
from ftcore.seeds import mix
from ftcore.tables import View

from ftcore_mlm.words import UNKNOWN, Numbers, Text

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

# Of the tokens that are to be predicted, the shares that are hidden and that are replaced by another (BERT, 3.1).
HIDDEN, REPLACED = 0.8, 0.1
FIRST, SECOND = -1, -2  # the places of the texts in a layout

Layout: TypeAlias = "tuple[tuple[int, int], ...]"  # special tokens and places of texts, each with its segment


@dataclass(frozen=True)
class Laid:
    """A row as the model reads it, and the token that is to be predicted at each position, or IGNORED."""

    ids: Numbers
    segments: Numbers
    labels: Numbers


@dataclass(frozen=True, eq=False)
class Masking:
    """How texts become rows: what stands around them, how many words are chosen, and what may replace a token."""

    single: Layout
    pair: Layout
    mask_id: int
    ordinary: Numbers
    seed: int
    share: float
    pairs: float
    whole_words: bool

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, seed: int, share: float, pairs: float, *, whole_words: bool
    ) -> Masking:
        """The masking with a tokenizer's own special tokens; Refused when it has none to hide words behind."""
        if tokenizer.mask_token_id is None:
            raise Refused(
                f"the tokenizer in '{tokenizer.name_or_path}' has no mask token to hide words behind; "
                "use the checkpoint of an encoder that was trained with one"
            )
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        ordinary = np.asarray(sorted(set(tokenizer.get_vocab().values()) - special), dtype=np.int32)
        single, pair = layout(tokenizer, "a"), layout(tokenizer, "a", "a")
        return cls(single, pair, tokenizer.mask_token_id, ordinary, seed, share, pairs, whole_words)

    def room(self, length: int) -> int:
        """Tokens of text in a row of `length`; Refused when the special tokens leave none."""
        around = max(len(self.single) - 1, len(self.pair) - 2 if self.pairs else 0)
        if length <= around:
            raise Refused(f"--max-length {length} leaves no room beside {around} special tokens; raise it")
        return length - around

    @cached_property
    def fingerprint(self) -> bytes:
        """Bytes that differ whenever other rows would be made of the same texts."""
        return (
            repr((self.single, self.pair, self.mask_id, self.share, self.whole_words)).encode()
            + self.ordinary.tobytes()
        )


def layout(tokenizer: PreTrainedTokenizerBase, *texts: str) -> Layout:
    """The tokens that the tokenizer lays around one text, or around two."""
    made = (tokenizer(*texts).encodings or [])[0]
    kinds = [
        ((FIRST, SECOND)[place] if place is not None else token, segment)
        for token, place, segment in zip(made.ids, made.sequence_ids, made.type_ids, strict=True)
    ]
    return tuple(kind for kind, run in groupby(kinds) for kind in (run if kind[0] >= 0 else [kind]))


@dataclass(frozen=True, eq=False)
class MaskedRow:
    """A text with some of its words chosen by `number`; `parted` is where the second segment begins, 0 without one."""

    text: Text
    masking: Masking
    number: int
    parted: int

    @property
    def layout(self) -> Layout:
        """What stands around the text or the two halves of it."""
        return self.masking.pair if self.parted else self.masking.single

    @property
    def size(self) -> int:
        """Tokens that the model reads."""
        return len(self.text.ids) + sum(token >= 0 for token, _ in self.layout)

    @property
    def place(self) -> str:
        """The file and line of the document."""
        return self.text.place

    def identity(self) -> bytes:
        """The text, its words, and what chooses among them."""
        chosen = repr((self.number, self.parted)).encode()
        return self.text.ids.tobytes() + self.text.words.tobytes() + chosen + self.masking.fingerprint

    @property
    def supervised(self) -> int:
        """Tokens that are to be predicted."""
        return int(self._picked(np.random.default_rng(self.number)).sum())

    def laid_out(self) -> Laid:
        """The row with most chosen tokens hidden, some replaced and some left as they are."""
        generator = np.random.default_rng(self.number)
        picked, ids = self._picked(generator), self.text.ids.copy()
        labels = np.where(picked, ids, IGNORED)
        dice = generator.random(len(ids))
        others = generator.choice(self.masking.ordinary, len(ids))
        ids = np.where(picked & (dice < HIDDEN + REPLACED), others, ids)
        ids = np.where(picked & (dice < HIDDEN), self.masking.mask_id, ids)
        return self._framed(ids, labels)

    def _picked(self, generator: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        words = self.text.words if self.masking.whole_words else self.text.apart
        known = np.unique(words[words != UNKNOWN])
        count = max(1, round(self.masking.share * len(known)))
        return np.isin(words, generator.choice(known, count, replace=False))

    def _framed(self, ids: Numbers, labels: Numbers) -> Laid:
        """The tokens among the special ones, which are not predicted."""
        cut = self.parted or len(ids)
        halves = {FIRST: slice(0, cut), SECOND: slice(cut, None)}
        parts = []
        for token, segment in self.layout:
            one = (ids[halves[token]], labels[halves[token]]) if token < 0 else ([token], [IGNORED])
            parts.append((*one, [segment] * len(one[0])))
        read, wanted, segments = (np.concatenate(found).astype(np.int32) for found in zip(*parts, strict=True))
        return Laid(read, segments, wanted)


class Masked(Sequence[MaskedRow]):
    """All texts as rows, and again, as often as asked; the same text is masked otherwise each time that it comes."""

    def __init__(self, texts: View[Text], masking: Masking, duplicates: int) -> None:
        self.texts, self.masking = texts, masking
        self.text_keys = list(texts.keys())
        seen: Counter[bytes] = Counter()
        self.times = [self._next(seen, key) for _ in range(duplicates) for key in self.text_keys]

    @staticmethod
    def _next(seen: Counter[bytes], key: bytes) -> int:
        seen[key] += 1
        return seen[key] - 1

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, index: int) -> MaskedRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MaskedRow]: ...
    def __getitem__(self, index: int | slice) -> MaskedRow | Sequence[MaskedRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        text = self.texts[number % len(self.texts)]
        drawn = self._number(number)
        return MaskedRow(text, self.masking, drawn, _parted(text, self.masking, mix(drawn, "pair")))

    def _number(self, index: int) -> int:
        key = self.text_keys[index % len(self.text_keys)]
        return mix(self.masking.seed, "masks", key.hex(), self.times[index])

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        if self.masking.pairs:
            return [row.size for row in self]
        around = sum(token >= 0 for token, _ in self.masking.single)
        return [int(size) + around for size in self.texts.sizes()] * (len(self) // max(1, len(self.texts)))

    def keys(self) -> Sequence[bytes]:
        """A key for each row: of its text, and of what chooses among its words."""
        own = (self.masking.fingerprint, self.masking.pairs)
        made = (repr((own, self.text_keys[i % len(self.text_keys)], self._number(i))) for i in range(len(self)))
        return [hashlib.sha256(one.encode()).digest() for one in made]

    def shares(self, of_texts: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """The shares of the sources in an epoch, in which each text comes as often as asked."""
        return of_texts * (len(self) // max(1, len(self.texts)))


def _parted(text: Text, masking: Masking, number: int) -> int:
    """The beginning of a word, drawn for the share of the texts that are to be pairs."""
    if not masking.pairs:
        return 0
    generator, borders = np.random.default_rng(number), text.borders
    return int(generator.choice(borders)) if generator.random() < masking.pairs and len(borders) else 0


def batch_of(rows: Sequence[MaskedRow], pad_id: int, *, segments: bool) -> Batch:
    """One batch of shape (rows, longest row), padded on the right; segments only where there is a second."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    made = [row.laid_out() for row in rows]

    def padded(parts: Iterator[Numbers], filling: int) -> Tensor:
        tensors = [torch.from_numpy(part.astype(np.int64)) for part in parts]
        return pad_sequence(tensors, batch_first=True, padding_value=filling)

    inputs = {
        "input_ids": padded((one.ids for one in made), pad_id),
        "attention_mask": padded((np.ones_like(one.ids) for one in made), 0),
    }
    if segments and any(one.segments.any() for one in made):
        inputs["token_type_ids"] = padded((one.segments for one in made), 0)
    labels = padded((one.labels for one in made), IGNORED)
    weight = float((labels != IGNORED).sum())
    return Batch(inputs, {"labels": labels}, weight, sum(row.size for row in rows), tuple(row.place for row in rows))


def takes_segments(model: nn.Module) -> bool:
    """Whether the model can be told which segment a token is of."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


def masked_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of cross-entropies, in nats, over the tokens that are to be predicted, computed in float32."""
    from torch.nn.functional import cross_entropy

    wanted = batch.targets["labels"]
    picked = wanted != IGNORED
    return cross_entropy(model(**batch.inputs).logits[picked].float(), wanted[picked], reduction="sum")


def found(
    model: nn.Module, rows: Sequence[MaskedRow], collate: Callable[[Sequence[MaskedRow]], Batch]
) -> list[list[int]]:
    """For each row the likeliest token at every position that is to be predicted."""
    batch = moved(collate(rows), next(model.parameters()).device)
    best, wanted = model(**batch.inputs).logits.argmax(-1), batch.targets["labels"] != IGNORED
    return [tokens[asked].tolist() for tokens, asked in zip(best, wanted, strict=True)]
