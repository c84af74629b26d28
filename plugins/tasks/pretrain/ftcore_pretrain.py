"""Running text: documents cut into windows of full length, every token supervised, attention inside each document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import TokenRow, collator, held_out, token_loss, token_row
from ftcore.problems import Problem, Problems, settle
from ftcore.records import Document, read_documents
from ftcore.settings import layout_of
from pydantic import Field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "write it differently, take the document out, or name it as the separator of a .txt file"


@options
class Pretrain:
    """Continued or first pre-training on text files: next-token loss over every document."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({"text": "The cat sat by the door."}, ("The cat sat by the door.",)),
        Example({"text": "小狗去找它的球。\n\nIt ran over the hill."}, ("小狗去找它的球。\n\nIt ran over the hill.",)),
    )

    separator: Annotated[
        str | None, Field(description="Text that separates documents in a .txt file; without it a file is one.")
    ] = "<|endoftext|>"
    bos: Annotated[
        str | None, Field(description="Token before each document; auto is the tokenizer's own, none leaves it out.")
    ] = "auto"
    eos: Annotated[str | None, Field(description="Token after each document; auto is the tokenizer's own.")] = "auto"
    show: Annotated[
        tuple[str, ...], Field(description="Openings to continue before and after training; separated by commas.")
    ] = ()

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Windows of `max_length` tokens for training; held-out documents each on their own."""
        settings, tokenizer = run.settings, loaded.tokenizer
        if not settings.data and run.intent in ("train", "plan"):
            raise Refused("the task 'pretrain' has no built-in text; name a .txt file with --data")
        assert tokenizer is not None
        length = min(settings.max_length, loaded.max_positions)
        problems = Problems()
        training = self._read(settings.data, run, tokenizer, problems)
        named = self._read(settings.eval_data, run, tokenizer, problems)
        read = settings.data or settings.eval_data
        notice = settle(problems, settings.on_bad_row, len(training) + len(named)) if read else None
        if notice:
            run.say(notice)
        training, apart = held_out(training, named, settings)
        edges = self._edge(tokenizer, "bos"), self._edge(tokenizer, "eos")
        train = list(windows(encoded(tokenizer, training, edges), length))
        held = list(apart_from_each_other(encoded(tokenizer, apart, edges), length))
        return Data(
            train=train,
            eval=held,
            collate=collator(loaded, settings),
            loss=token_loss,
            counts={
                "documents": len(training),
                "rows": len(train),
                "rows_left_out": len(problems),
                "tokens": sum(row.size for row in train),
                "supervised_tokens": sum(row.supervised for row in train),
            },
            sample=tuple((tokenizer.decode(row.input_ids[:64].tolist()), True) for row in train[:1]),
            probes=tuple(Probe(text, tuple(self._opening(tokenizer, edges[0], text))) for text in self.show),
            stop_ids=edges[1],
            metrics=metrics(sum(row.supervised for row in held), sum(len(d.text) for d in apart)),
        )

    def _read(
        self, sources: Sequence[str], run: Run, tokenizer: PreTrainedTokenizerBase, problems: Problems
    ) -> list[Document]:
        """The documents of `sources` that can be used; one that spells out a special token is among the problems."""
        documents = read_documents(sources, self.separator, problems, layout_of(run.settings)) if sources else []
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        found = [(document, next((s for s in specials if s in document.text), "")) for document in documents]
        for document, special in found:
            if special:
                problems.add(Problem(document.place, "text", f"holds the special token '{special}'", REMEDY))
        return [document for document, special in found if not special]

    def _edge(self, tokenizer: PreTrainedTokenizerBase, which: str) -> tuple[int, ...]:
        """The token before or after a document, as a tuple of one or none."""
        text = getattr(self, which)
        if text is None:
            return ()
        if text == "auto":
            own = getattr(tokenizer, f"{which}_token_id")
            return () if own is None else (own,)
        token = tokenizer.convert_tokens_to_ids(text)
        if token is None or tokenizer.convert_ids_to_tokens(token) != text:
            raise Refused(f"task 'pretrain' option '{which}' is '{text}', which is no token of this tokenizer")
        return (token,)

    def _opening(self, tokenizer: PreTrainedTokenizerBase, bos: tuple[int, ...], text: str) -> list[int]:
        return [*bos, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def encoded(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], edges: tuple[tuple[int, ...], tuple[int, ...]]
) -> Iterator[tuple[str, list[int]]]:
    """Each document's place and tokens, between its first and its last token."""
    before, after = edges
    for start in range(0, len(documents), 256):
        part = documents[start : start + 256]
        ids = tokenizer([document.text for document in part], add_special_tokens=False)["input_ids"]
        for document, tokens in zip(part, ids, strict=True):
            yield document.place, [*before, *tokens, *after]


def windows(documents: Iterator[tuple[str, list[int]]], length: int) -> Iterator[TokenRow]:
    """Rows of exactly `length` tokens over the documents laid end to end; the last one may be shorter."""
    tokens: list[int] = []
    lengths: list[int] = []
    origin = ""
    for place, ids in documents:
        for piece in pieces(ids, length, length - len(tokens)):
            origin = origin or place
            tokens, lengths = tokens + piece, [*lengths, len(piece)]
            if len(tokens) == length:
                yield token_row(tokens, tokens, origin, lengths)
                tokens, lengths, origin = [], [], ""
    if len(tokens) > 1:
        yield token_row(tokens, tokens, origin, lengths)


def apart_from_each_other(documents: Iterator[tuple[str, list[int]]], length: int) -> Iterator[TokenRow]:
    """Each document in rows of at most `length` tokens that overlap by one, so that every token is predicted once."""
    for place, ids in documents:
        for start in range(0, max(1, len(ids) - 1), length - 1):
            piece = ids[start : start + length]
            yield token_row(piece, piece, place)


def pieces(ids: list[int], length: int, room: int) -> Iterator[list[int]]:
    """`ids` cut where a window ends: first after `room` tokens, then every `length`."""
    cuts = [0, *range(room, len(ids), length), len(ids)]
    for start, end in pairwise(cuts):
        if end > start:
            yield ids[start:end]


def metrics(supervised: int, characters: int) -> Callable[[float], Mapping[str, float]]:
    """Loss in nats per token, perplexity, and bits per character of the held-out text."""

    def measured(loss: float) -> Mapping[str, float]:
        bits = loss * supervised / math.log(2) / max(1, characters)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_character": bits}

    return measured
