"""Rows of tokens, laid end to end or padded, the order they come in, and the loss over what is supervised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from ftcore.hooks import Batch, Loaded, Row
from ftcore.seeds import permuted
from ftcore.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100
Numbers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"
T = TypeVar("T")


@dataclass(frozen=True)
class TokenRow:
    """Tokens with their labels; `lengths` are the documents inside, which never look at each other.

    `labels[i]` is the token that position i is, if the model is taught to predict it, else -100.
    """

    input_ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    labels: np.ndarray[tuple[int], np.dtype[np.int32]]
    lengths: tuple[int, ...]
    place: str

    @property
    def size(self) -> int:
        """Tokens in the row."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """The tokens, the labels and the borders."""
        return self.input_ids.tobytes() + self.labels.tobytes() + repr(self.lengths).encode()

    @property
    def supervised(self) -> int:
        """Tokens that the model is taught to predict; the first of a document has nothing to be predicted from."""
        return int((self.targets != IGNORED).sum())

    @property
    def targets(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """What each position predicts: the label of the next one, -100 at the end of each document."""
        shifted = np.full_like(self.labels, IGNORED)
        shifted[:-1] = self.labels[1:]
        shifted[np.cumsum(self.lengths) - 1] = IGNORED
        return shifted

    @property
    def weights(self) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
        """What the loss of each position's label counts; None where each counts 1."""
        return None


def token_row(input_ids: Sequence[int], labels: Sequence[int], place: str, lengths: Sequence[int] = ()) -> TokenRow:
    """A row from plain lists; without `lengths` it is one document."""
    ids, wanted = np.asarray(input_ids, dtype=np.int32), np.asarray(labels, dtype=np.int32)
    return TokenRow(ids, wanted, tuple(lengths) or (len(ids),), place)


def pack(rows: Sequence[TokenRow]) -> Batch:
    """One batch of shape (1, tokens) without padding: positions start anew in every document.

    Logits are asked for only where there is a target.
    """
    import torch

    lengths = [length for row in rows for length in row.lengths]
    targets = torch.from_numpy(np.concatenate([row.targets for row in rows]).astype(np.int64))
    keep = torch.nonzero(targets != IGNORED).squeeze(1)
    ends = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate([row.input_ids for row in rows]).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        # A mask of four dimensions is handed on as it is: packed attention needs none, so none is built.
        "attention_mask": torch.empty(1, 1, 0, 0),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "logits_to_keep": keep,
    }
    weights = _weights(rows)
    places = tuple(row.place for row in rows)
    if weights is None:
        return Batch(inputs, {"labels": targets[keep]}, float(len(keep)), sum(lengths), places)
    counted = torch.from_numpy(weights)[keep]
    return Batch(inputs, {"labels": targets[keep], "weights": counted}, float(counted.sum()), sum(lengths), places)


def pad(rows: Sequence[TokenRow], pad_id: int) -> Batch:
    """One batch of shape (documents, longest document), padded on the right."""
    import torch

    parts = [part for row in rows for part in _documents(row)]
    width = max(len(ids) for ids, _ in parts)
    input_ids = torch.full((len(parts), width), pad_id)
    attention = torch.zeros(len(parts), width, dtype=torch.long)
    targets = torch.full((len(parts), width), IGNORED)
    for index, (ids, wanted) in enumerate(parts):
        input_ids[index, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        attention[index, : len(ids)] = 1
        targets[index, : len(ids)] = torch.from_numpy(wanted.astype(np.int64))
    keep = torch.nonzero((targets != IGNORED).any(0)).squeeze(1)
    inputs = {"input_ids": input_ids, "attention_mask": attention, "logits_to_keep": keep}
    made = {"labels": targets[:, keep].reshape(-1)}
    weight, tokens, weights = float((targets != IGNORED).sum()), sum(row.size for row in rows), _weights(rows)
    if weights is not None:
        counted = torch.zeros(len(parts), width)
        for line, (start, end) in zip(counted, _borders(rows), strict=True):
            line[: end - start] = torch.from_numpy(weights[start:end])
        counted *= targets != IGNORED
        made["weights"], weight = counted[:, keep].reshape(-1), float(counted.sum())
    return Batch(inputs, made, weight, tokens, tuple(row.place for row in rows))


def _documents(row: TokenRow) -> Iterator[tuple[np.ndarray[tuple[int], np.dtype[np.int32]], ...]]:
    for start, end in _borders([row]):
        yield row.input_ids[start:end], row.targets[start:end]


def _borders(rows: Sequence[TokenRow]) -> Iterator[tuple[int, int]]:
    """Where each document begins and ends when the rows are laid end to end."""
    return pairwise(np.cumsum([0, *(length for row in rows for length in row.lengths)]).tolist())


def _weights(rows: Sequence[TokenRow]) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
    """What the loss of each position's target counts, over all rows; None where every target counts 1."""
    found = [row.weights for row in rows]
    if all(weights is None for weights in found):
        return None
    ones = [np.ones(row.size, np.float32) if own is None else own for row, own in zip(rows, found, strict=True)]
    return np.concatenate([np.append(weights[1:], np.float32(0)) for weights in ones])


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of cross-entropies, in nats, over the supervised tokens of `batch`, computed in float32.

    Where they have weights, each counts as much as its own.
    """
    from torch.nn.functional import cross_entropy

    logits = model(**batch.inputs, use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1]).float()
    if "weights" not in batch.targets:
        return cross_entropy(logits, batch.targets["labels"], ignore_index=IGNORED, reduction="sum")
    each = cross_entropy(logits, batch.targets["labels"], ignore_index=IGNORED, reduction="none")
    return (each * batch.targets["weights"]).sum()


def moved(batch: Batch, device: object) -> Batch:
    """`batch` with its tensors on `device`."""
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}  # type: ignore[call-overload]
    targets = {name: tensor.to(device) for name, tensor in batch.targets.items()}  # type: ignore[call-overload]
    return Batch(inputs, targets, batch.weight, batch.tokens, batch.places)


@dataclass(frozen=True)
class Order:
    """Which rows make up each step: a function of the sizes, the seed and the step, and of nothing else."""

    sizes: Sequence[int]
    seed: int
    batch_size: int
    batch_tokens: int | None
    accumulate: int
    by_length: bool = False
    shares: tuple[tuple[int, int], ...] = ()

    def epoch(self, epoch: int) -> list[list[list[int]]]:
        """The steps of one epoch, each a list of micro-batches, each a list of row numbers."""
        return list(self._steps(epoch))

    @property
    def rows(self) -> int:
        """Rows in one epoch."""
        return sum(taken for _, taken in self.shares) if self.shares else len(self.sizes)

    def steps(self, epochs: int) -> int:
        """Optimizer steps in that many epochs."""
        if self.batch_tokens is None:
            batches = -(-self.rows // self.batch_size)
            return epochs * -(-batches // self.accumulate)
        return sum(len(self._steps(epoch)) for epoch in range(epochs))

    def after(self, done: int) -> Iterator[list[list[int]]]:
        """The micro-batches of step done+1, done+2, … without end."""
        epoch = 0
        while True:
            steps = self._steps(epoch)
            yield from (steps[number] for number in range(done, len(steps)))
            done, epoch = max(0, done - len(steps)), epoch + 1

    def in_order(self) -> list[list[int]]:
        """All rows once, as micro-batches, unshuffled: the order of an evaluation."""
        return [batch for step in self._dealt(np.arange(len(self.sizes)), accumulate=1) for batch in step]

    @cached_property
    def largest(self) -> int:
        """Tokens in the largest micro-batch of the first epoch."""
        dealt = self._steps(0)
        return int(np.add.reduceat(self._sizes[dealt.order], dealt.starts).max()) if len(dealt) else 0

    @cached_property
    def _sizes(self) -> Numbers:
        return np.asarray(self.sizes, dtype=None if len(self.sizes) else np.int64)

    def _steps(self, epoch: int) -> _Dealt:
        if not self.by_length:
            return self._dealt(self._drawn(epoch), self.accumulate)
        dealt = self._dealt(self._sorted_in_windows(self._drawn(epoch)), self.accumulate)
        return replace(dealt, turns=permuted(len(dealt.starts), self.seed, "batches", epoch))

    def _drawn(self, epoch: int) -> Numbers:
        """The rows of an epoch, shuffled: all of them, or of each run of rows its share, drawn anew each time."""
        if not self.shares:
            return permuted(len(self.sizes), self.seed, "order", epoch)
        chosen = np.concatenate(list(self._shared(epoch)))
        return chosen[permuted(len(chosen), self.seed, "order", epoch)]

    def _shared(self, epoch: int) -> Iterator[Numbers]:
        start = 0
        for number, (count, taken) in enumerate(self.shares):
            rest = permuted(count, self.seed, "share", number, epoch)[: taken % max(1, count)]
            yield start + np.concatenate([np.tile(np.arange(count), taken // max(1, count)), rest])
            start += count

    def _dealt(self, order: Numbers, accumulate: int) -> _Dealt:
        """The order parted into micro-batches that are as large as asked for."""
        if self.batch_tokens is None:
            starts = np.arange(0, len(order), self.batch_size)
        else:
            starts = np.fromiter(self._filled(order, self.batch_tokens), dtype=np.int64)
        return _Dealt(order, starts, np.arange(len(starts)), accumulate)

    def _filled(self, order: Numbers, tokens: int) -> Iterator[int]:
        """Where each micro-batch begins, if it takes rows for as long as they fit."""
        ends, start = np.cumsum(self._sizes[order]), 0
        while start < len(order):
            yield start
            room = tokens + (ends[start - 1] if start else 0)
            start = max(start + 1, int(np.searchsorted(ends, room, side="right")))

    def _sorted_in_windows(self, order: Numbers) -> Numbers:
        """Rows of like length near each other, so that padding is small, without losing the shuffle."""
        window = 64 * self.batch_size
        parts = [order[i : i + window] for i in range(0, len(order), window)]
        return np.concatenate([part[np.argsort(self._sizes[part], kind="stable")] for part in parts or [order]])


@dataclass(frozen=True)
class _Dealt(Sequence[list[list[int]]]):
    """The steps of an epoch, made when asked for: `turns` are its micro-batches in the order they come in."""

    order: Numbers
    starts: Numbers
    turns: Numbers
    accumulate: int

    def __len__(self) -> int:
        return -(-len(self.turns) // self.accumulate)

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < len(self):
            raise IndexError(step)
        turns = self.turns[step * self.accumulate : (step + 1) * self.accumulate]
        return [self.order[self.starts[turn] : self._end(turn)].tolist() for turn in turns.tolist()]

    def _end(self, turn: int) -> int:
        return int(self.starts[turn + 1]) if turn + 1 < len(self.starts) else len(self.order)


def row_key(row: Row) -> bytes:
    """32 bytes that differ whenever what the model learns from the row differs."""
    import hashlib

    return hashlib.sha256(row.identity()).digest()


def digest(rows: Sequence[Row]) -> str:
    """A fingerprint of the rows, in order."""
    import hashlib

    hashed = hashlib.sha256()
    for key in rows.keys() if isinstance(rows, Indexed) else map(row_key, rows):
        hashed.update(key)
    return hashed.hexdigest()


def sizes_of(rows: Sequence[Row]) -> Sequence[int]:
    """Tokens in each row."""
    return rows.sizes() if isinstance(rows, Indexed) else [row.size for row in rows]


@runtime_checkable
class Indexed(Protocol):
    """Rows that know of each its size and its key without reading it."""

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""

    def keys(self) -> Sequence[bytes]:
        """The `row_key` of each row."""


def collator(loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
    """How rows become a batch: packed where the family can, else padded to the longest."""
    if not loaded.unpackable and settings.packing == "auto":
        return pack
    assert loaded.tokenizer is not None
    pad_id = loaded.tokenizer.pad_token_id
    return partial(pad, pad_id=0 if pad_id is None else pad_id)
