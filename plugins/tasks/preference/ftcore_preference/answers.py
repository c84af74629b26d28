"""Rows of answers: a prompt with each of its answers is a document, and what the base makes of them stands beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from ftcore.batches import IGNORED, Indexed, Order, TokenRow, moved, row_key, sizes_of
from ftcore.hooks import Batch
from ftcore.problems import refuse
from ftcore.records import Record
from ftcore.seeds import permutation
from ftcore.shapes import Conversation, Message, conversations_of, judged_of, preference_of
from ftcore.templates import Template, Turns

from ftcore_preference.losses import Said

if TYPE_CHECKING:
    from torch import nn

WORSE, BETTER, STRANGE, UNJUDGED = 0, 1, 2, 3
JUDGEMENTS = ("label", "kto_tag")


@dataclass(frozen=True)
class Answers(TokenRow):
    """Answers to one prompt, each a document with the prompt before it, of which only the answer is labelled.

    `worth` says of each document whether its answer is better or worse, strange to its prompt, or not judged. `texts`
    are the answers. `halved` tells that the other answer of the same record has a row of its own, and `reference`,
    where it is known, the log-probability of each answer in the base.
    """

    worth: tuple[int, ...]
    texts: tuple[str, ...]
    cut: bool
    merged: int
    halved: bool = False
    reference: tuple[float, ...] = ()

    def identity(self) -> bytes:
        """The tokens, the labels, the borders and the judgements."""
        return super().identity() + repr(self.worth).encode()

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        return {
            "rows_cut": int(self.cut),
            "answers": len(self.worth),
            "tokens": self.size,
            "supervised_tokens": self.supervised,
            "merged_with_prompt": self.merged,
        }

    @property
    def documents(self) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Tokens and labels of each."""
        for start, end in pairwise(np.cumsum([0, *self.lengths]).tolist()):
            yield self.input_ids[start:end], self.labels[start:end]


# --- from records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """How records become rows: rendered by the template, each answer's document no longer than `length`."""

    template: Template
    length: int

    def pairs(self, record: Record) -> Iterator[Answers]:
        """One row of the better and the worse answer, or BadRow."""
        both, texts = self._both(record)
        yield _row(both, (BETTER, WORSE), texts)

    def judged(self, record: Record) -> Iterator[Answers]:
        """A row for the answer that is judged, or one each for the better and the worse answer, or BadRow."""
        if not record.fields.keys() & set(JUDGEMENTS):
            both, texts = self._both(record)
            yield _row(both[:1], (BETTER,), texts[:1], halved=True)
            yield _row(both[1:], (WORSE,), texts[1:], halved=True)
            return
        one = judged_of(record)
        turns = self._turns(one.prompt, one.answer, one.place, one.tools)
        yield _row([turns], (BETTER if one.good else WORSE,), (_text(one.answer),))

    def any(self, record: Record) -> Iterator[Answers]:
        """A row for whatever answers there are, judged or not, or BadRow."""
        keys = record.fields.keys()
        if keys & set(JUDGEMENTS):
            yield from self.judged(record)
        elif "chosen" in keys or "rejected" in keys or isinstance(record.fields.get("output"), list):
            yield from self.pairs(record)
        else:
            last = conversations_of(record)[-1]
            asked = max(at for at, message in enumerate(last.messages) if message.role == "user") + 1
            said = last.messages[asked:]
            turns = self._turns(last.messages[:asked], said, last.place, last.tools)
            yield _row([turns], (UNJUDGED,), (_text(said),))

    def _both(self, record: Record) -> tuple[list[Turns], tuple[str, ...]]:
        one = preference_of(record)
        both = [self._turns(one.prompt, answer, one.place, one.tools) for answer in (one.chosen, one.rejected)]
        if both[0].input_ids.tobytes() == both[1].input_ids.tobytes():
            found = f"is the same as chosen in the first {self.length} tokens"
            refuse("rejected", found, "raise --max-length, or remove the row")
        return both, (_text(one.chosen), _text(one.rejected))

    def _turns(self, prompt: Sequence[Message], answer: Sequence[Message], place: str, tools: str) -> Turns:
        before = (replace(message, learned=False) for message in prompt)
        return self.template.encode(Conversation((*before, *answer), place, tools), self.length)


def _text(answer: Sequence[Message]) -> str:
    return "\n".join(message.text for message in answer)


def _row(turns: Sequence[Turns], worth: tuple[int, ...], texts: tuple[str, ...], *, halved: bool = False) -> Answers:
    return Answers(
        input_ids=np.concatenate([one.input_ids for one in turns]),
        labels=np.concatenate([one.labels for one in turns]),
        lengths=tuple(one.size for one in turns),
        place=turns[0].place,
        worth=worth,
        texts=texts,
        cut=any(one.cut for one in turns),
        merged=sum(one.merged for one in turns),
        halved=halved,
    )


def prompt_of(record: Record) -> tuple[Message, ...]:
    """What is asked in a record, or BadRow."""
    return (judged_of if record.fields.keys() & set(JUDGEMENTS) else preference_of)(record).prompt


# --- made when they are read -----------------------------------------------------------------------------


class Made(Sequence[Answers]):
    """Rows that are each made into another one when it is read; their keys stay those of the rows they come from."""

    def __init__(self, rows: Sequence[Answers], make: Callable[[int], Answers], sizes: Sequence[int]) -> None:
        self.rows, self.make, self._sizes = rows, make, sizes

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Answers: ...
    @overload
    def __getitem__(self, index: slice) -> list[Answers]: ...
    def __getitem__(self, index: int | slice) -> Answers | list[Answers]:
        if isinstance(index, slice):
            return [self.make(at) for at in range(len(self))[index]]
        return self.make(range(len(self))[index])

    def sizes(self) -> Sequence[int]:
        """Tokens in each row."""
        return self._sizes

    def keys(self) -> Sequence[bytes]:
        """The key of each row."""
        return self.rows.keys() if isinstance(self.rows, Indexed) else [row_key(row) for row in self.rows]


def with_strange_answers(rows: Sequence[Answers], length: int, seed: int) -> Sequence[Answers]:
    """Each row with one more document: its prompt with the answer of the row after it in a circle that `seed` draws."""
    circle = permutation(len(rows), seed, "strange answers")
    after = dict(zip(circle, [*circle[1:], *circle[:1]], strict=True))

    def make(at: int) -> Answers:
        return _with_answer_of(rows[at], rows[after[at]], length)

    return Made(rows, make, [make(at).size for at in range(len(rows))])


def _with_answer_of(row: Answers, other: Answers, length: int) -> Answers:
    (ids, labels), (others, taught) = next(row.documents), next(other.documents)
    begin, start = int(np.argmax(labels != IGNORED)), int(np.argmax(taught != IGNORED))
    strange = np.concatenate([ids[:begin], others[start:]])[:length]
    masked = np.concatenate([np.full(begin, IGNORED, dtype=np.int32), taught[start:]])[:length]
    return replace(
        row,
        input_ids=np.concatenate([row.input_ids, strange]),
        labels=np.concatenate([row.labels, masked]),
        lengths=(*row.lengths, len(strange)),
        worth=(*row.worth, STRANGE),
    )


def with_reference(
    rows: Sequence[Answers], collate: Callable[[Sequence[Answers]], Batch], model: nn.Module, order: Order
) -> Sequence[Answers]:
    """The rows with the log-probability that `model`, as it is now, gives each answer."""
    import torch

    device = next(model.parameters()).device
    found: list[float] = []
    ends = [0]
    for batch in order.in_order():
        read = [rows[at] for at in batch]
        with torch.no_grad():
            found += said(model, moved(collate(read), device)).total.tolist()
        for row in read:
            ends.append(ends[-1] + len(row.lengths))
    totals = np.asarray(found, dtype=np.float32)

    def make(at: int) -> Answers:
        return replace(rows[at], reference=tuple(totals[ends[at] : ends[at + 1]].tolist()))

    return Made(rows, make, sizes_of(rows))


# --- in batches ------------------------------------------------------------------------------------------


def collated(laid: Callable[[Sequence[TokenRow]], Batch], rows: Sequence[Answers]) -> Batch:
    """The batch that `laid` makes of the rows, with what tells of each target and each document whose it is.

    Its weight is the number of rows: of pairs, or of judged answers.
    """
    import torch

    batch = laid(rows)
    counts = torch.tensor([int((labels[1:] != IGNORED).sum()) for row in rows for _, labels in row.documents])
    numbers = torch.arange(len(counts))
    labels = batch.targets["labels"]
    packed = len(labels) == int(counts.sum())
    document = numbers.repeat_interleave(counts) if packed else numbers.repeat_interleave(len(labels) // len(counts))
    worth = torch.tensor([one for row in rows for one in row.worth])
    reference = torch.tensor([one for row in rows for one in row.reference or (0.0,) * len(row.lengths)])
    targets = {"labels": labels, "document": document, "worth": worth, "reference": reference}
    return Batch(batch.inputs, targets, float(len(rows)), batch.tokens, batch.places)


def said(model: nn.Module, batch: Batch) -> Said:
    """What the model makes of each answer of a batch, in float32."""
    import torch
    from torch.nn.functional import cross_entropy

    logits = model(**batch.inputs, use_cache=False).logits
    labels, document = batch.targets["labels"], batch.targets["document"].clamp(min=0)
    costs = cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels, ignore_index=IGNORED, reduction="none")
    none = torch.zeros_like(batch.targets["reference"])
    total = none.index_add(0, document, -costs)
    tokens = none.index_add(0, document, (labels != IGNORED).float())
    return Said(total, tokens.clamp(min=1.0), batch.targets["reference"])
