"""Rows of answers to be scored: a prompt with each of its answers is a document of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from ftcore.hooks import Batch
from ftcore.problems import refuse, shown
from ftcore.records import Record
from ftcore.shapes import Conversation, Message, conversations_of, preference_of
from ftcore.templates import Template

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class Answers:
    """A prompt with its better and its worse answer, or with one, as documents; `texts` are the answers.

    `segment_ids` parts prompt and answer where the model is told, and is empty where it is not. `margin` is by how much
    the one is to be better than the other.
    """

    input_ids: Ids
    segment_ids: Ids
    lengths: tuple[int, ...]
    texts: tuple[str, ...]
    margin: float
    cut: bool
    place: str

    @property
    def size(self) -> int:
        """Tokens in the row."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """The tokens, the borders and the margin."""
        return self.input_ids.tobytes() + self.segment_ids.tobytes() + repr((self.lengths, self.margin)).encode()

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        return {"rows_cut": int(self.cut), "answers": len(self.lengths), "tokens": self.size}

    @property
    def documents(self) -> Iterator[tuple[Ids, Ids]]:
        """Tokens and segments of each."""
        for start, end in pairwise(np.cumsum([0, *self.lengths]).tolist()):
            yield self.input_ids[start:end], self.segment_ids[start:end]


@dataclass(frozen=True)
class Document:
    """A prompt with an answer, and whether some of the answer did not fit."""

    input_ids: Sequence[int]
    segment_ids: Sequence[int]
    cut: bool


class Encoder(Protocol):
    """How a prompt with an answer becomes tokens, at most so many."""

    def __call__(self, prompt: Sequence[Message], answer: Sequence[Message], place: str) -> Document:
        """The document, or BadRow when nothing of the answer fits."""


# --- from records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """How records become rows; `margin` is the column that says how much better the chosen answer is, if any."""

    encode: Encoder
    margin: str | None

    def pairs(self, record: Record) -> Iterator[Answers]:
        """One row of the better and the worse answer, or BadRow."""
        one = preference_of(record)
        answers = one.chosen, one.rejected
        documents = [self._document(one.prompt, answer, one.place, one.tools) for answer in answers]
        if documents[0].input_ids == documents[1].input_ids:
            refuse("rejected", "is the same as chosen as far as it is read", "raise --max-length, or remove the row")
        yield _row(documents, answers, self._margin(record), one.place)

    def any(self, record: Record) -> Iterator[Answers]:
        """A row for whatever answers there are, one or two, or BadRow."""
        if record.fields.keys() & {"chosen", "rejected"} or isinstance(record.fields.get("output"), list):
            yield from self.pairs(record)
            return
        last = conversations_of(record)[-1]
        asked = max(at for at, message in enumerate(last.messages) if message.role == "user") + 1
        answer = last.messages[asked:]
        document = self._document(last.messages[:asked], answer, last.place, last.tools)
        yield _row([document], [answer], 0.0, last.place)

    def _document(self, prompt: Sequence[Message], answer: Sequence[Message], place: str, tools: str) -> Document:
        if tools or any(message.calls or message.role == "tool" for message in (*prompt, *answer)):
            refuse("row", "uses tools", "leave it out, as this task does not read them")
        return self.encode(prompt, answer, place)

    def _margin(self, record: Record) -> float:
        if self.margin is None:
            return 0.0
        value = record.fields.get(self.margin)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            refuse(self.margin, f"is {shown(value)}", "make it a number that is not negative")
        return float(value)


def rendered(template: Template, length: int) -> Encoder:
    """By the tokenizer's chat template; what is longer than `length` is cut at its end."""

    def encode(prompt: Sequence[Message], answer: Sequence[Message], place: str) -> Document:
        before = (replace(message, learned=False) for message in prompt)
        turns = template.encode(Conversation((*before, *answer), place), length)
        return Document(turns.input_ids.tolist(), (), turns.cut)

    return encode


def separated(tokenizer: Any, length: int) -> Encoder:
    """As a pair of texts with the tokenizer's own marks around them, the answer cut where both are too long."""

    def encode(prompt: Sequence[Message], answer: Sequence[Message], place: str) -> Document:
        asked, said = ("\n".join(message.text for message in turns) for turns in (prompt, answer))
        for special in tokenizer.all_special_tokens:
            if special in asked or special in said:
                refuse("row", f"holds the special token '{special}' as text", "write it differently or take it out")
        read = tokenizer(asked, said)
        over = len(read["input_ids"]) - length
        room = len(tokenizer(said, add_special_tokens=False)["input_ids"])
        if over >= room:
            found = f"has {len(read['input_ids'])} tokens, and its first {length} hold no answer"
            refuse("row", found, "shorten the prompt or raise --max-length")
        if over > 0:
            read = tokenizer(asked, said, truncation="only_second", max_length=length)
        return Document(read["input_ids"], read.get("token_type_ids", ()), over > 0)

    return encode


def _row(documents: Sequence[Document], answers: Sequence[Sequence[Message]], margin: float, place: str) -> Answers:
    return Answers(
        input_ids=np.concatenate([np.asarray(one.input_ids, dtype=np.int32) for one in documents]),
        segment_ids=np.concatenate([np.asarray(one.segment_ids, dtype=np.int32) for one in documents]),
        lengths=tuple(len(one.input_ids) for one in documents),
        texts=tuple("\n".join(message.text for message in answer) for answer in answers),
        margin=margin,
        cut=any(one.cut for one in documents),
        place=place,
    )


# --- in batches ------------------------------------------------------------------------------------------


def padder(pad_id: int) -> Callable[[Sequence[Answers]], Batch]:
    """How rows become a batch: each answer a row of its own, padded on the right; the weight is that of the pairs."""
    import torch

    def laid(parts: Sequence[Ids], width: int, filling: int) -> torch.Tensor:
        made = torch.full((len(parts), width), filling)
        for at, part in enumerate(parts):
            made[at, : len(part)] = torch.from_numpy(part.astype(np.int64))
        return made

    def pad(rows: Sequence[Answers]) -> Batch:
        tokens, segments = zip(*(document for row in rows for document in row.documents), strict=True)
        width = max(map(len, tokens))
        mask = laid([np.ones_like(ids) for ids in tokens], width, 0)
        inputs = {"input_ids": laid(tokens, width, pad_id), "attention_mask": mask}
        if all(map(len, segments)):
            inputs["token_type_ids"] = laid(segments, width, 0)
        targets = {"pairs": torch.ones(len(rows)), "margin": torch.tensor([row.margin for row in rows])}
        return Batch(inputs, targets, float(len(rows)), sum(row.size for row in rows), tuple(row.place for row in rows))

    return pad
