"""Running text: documents cut into windows of full length, every token supervised, attention inside each document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeAlias

import numpy as np
from ftcore import Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import TokenRow, collator, token_loss
from ftcore.hooks import Piece
from ftcore.problems import BadRow, Problem, Problems
from ftcore.records import Layout, Record, iter_texts, weighted
from ftcore.rows import Reading, Rows, read, shares_of
from ftcore.shapes import conversations_of, document_of
from ftcore.templates import Template, Turns, pieces
from pydantic import Field

from ftcore_pretrain.measuring import measuring
from ftcore_pretrain.windows import LONGEST, Joined, Text, Windows, each_apart, filled, laid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = Path(__file__).parent / "sample" / "train.jsonl", Path(__file__).parent / "sample" / "heldout.jsonl"
SHOWN = ("The kettle", "Every morning")
Shares: TypeAlias = tuple[tuple[int, int], ...]
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
    instructions: Annotated[
        tuple[str, ...],
        Field(description="Files of conversations to mix in, learned as the task causal does; separated by commas."),
    ] = ()
    instruction_share: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Share of them among the rows of an epoch; without it each comes once."),
    ] = None
    show: Annotated[
        tuple[str, ...], Field(description="Openings to continue before and after training; separated by commas.")
    ] = ()

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Windows of `max_length` tokens for training; held-out documents each on their own."""
        settings, tokenizer = run.settings, loaded.tokenizer
        assert tokenizer is not None
        length = min(settings.max_length, loaded.max_positions)
        edges = self._edge(tokenizer, "bos"), self._edge(tokenizer, "eos")
        texts = read(run, loaded, self._reading(tokenizer, edges))
        weights = [weighted(spec)[1] for spec in settings.data] if texts.shares else []
        sources = filled(texts.train, length, len(weights) or None)
        held = each_apart(texts.eval, length)
        talks = self._conversations(run, loaded, length)
        train = Joined(*sources, *(talks.train for talks in talks))
        return Data(
            train=train,
            eval=held,
            collate=collator(loaded, settings),
            loss=token_loss,
            counts=_counts(texts, sources, talks),
            sample=_sample(tokenizer, train),
            probes=tuple(
                Probe(text, tuple(self._opening(tokenizer, edges[0], text)))
                for text in self.show or (SHOWN if texts.built_in else ())
            ),
            stop_ids=tuple(dict.fromkeys([*edges[1], *(row.stop_id for talk in talks for row in talk.train[:1])])),
            metrics=metrics(held.supervised, texts.eval.total("characters")),
            scoring=measuring(tokenizer) if run.intent == "predict" else None,
            shares=self._shares(weights, list(map(len, sources)), sum(len(talk.train) for talk in talks)),
        )

    def _reading(
        self, tokenizer: PreTrainedTokenizerBase, edges: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> Reading[Record, Text]:
        """Documents as tokens between their edges; one that spells out a special token is among the problems."""
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

        def encode(record: Record) -> Iterator[Text]:
            text = document_of(record).text
            special = next((special for special in specials if special in text), None)
            if special is not None:
                raise BadRow(Problem(record.place, "text", f"holds the special token '{special}'", REMEDY))
            ids = np.array([*edges[0], *tokenizer(text, add_special_tokens=False)["input_ids"], *edges[1]], np.int32)
            for start in range(0, len(ids), LONGEST):
                yield Text(ids[start : start + LONGEST], 0 if start else len(text), record.place)

        def records(sources: Sequence[str], problems: Problems, layout: Layout) -> Iterator[Record]:
            return iter_texts(sources, self.separator, problems, layout)

        return Reading(self, encode, Text, SAMPLES, Text.counted, records)

    def _conversations(self, run: Run, loaded: Loaded, length: int) -> list[Rows[Turns]]:
        """The rows to mix in, where a run trains on some."""
        if not self.instructions or run.intent not in ("train", "plan"):
            return []
        template = Template.of(loaded, None, run.say)

        def encode(record: Record) -> Iterator[Turns]:
            for conversation in conversations_of(record):
                yield template.encode(conversation, length)

        settings = replace(run.settings, data=self.instructions, eval_data=(), eval_share=0.0)
        return [read(replace(run, settings=settings), loaded, Reading(self, encode, Turns, facts=Turns.counted))]

    def _shares(self, weights: Sequence[float | None], windows: Sequence[int], talks: int) -> Shares:
        """For each source, and for the conversations, its rows and how many of them an epoch takes."""
        weighed = shares_of(weights, windows) if weights else ()
        if self.instruction_share is None or not talks:
            return (*weighed, (talks, talks)) if weighed and talks else weighed
        taken = round(sum(windows) * self.instruction_share / (1 - self.instruction_share))
        return (*(weighed or [(count, count) for count in windows]), (talks, taken))

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


def _counts(texts: Rows[Text], sources: Sequence[Windows], talks: Sequence[Rows[Turns]]) -> dict[str, int]:
    """What is counted of the rows to train on."""
    said = ("rows", "rows_left_out", "duplicates", "tokens", "supervised_tokens")
    counts = {
        "documents": len(laid(texts.train)[1]),
        "rows": sum(map(len, sources)),
        "rows_left_out": texts.counts["rows_left_out"],
        "duplicates": texts.counts["duplicates"],
        "held_out_rows_trained_on": texts.counts["held_out_rows_trained_on"],
        "tokens": sum(int(np.sum(source.sizes(), dtype=np.int64)) for source in sources),
        "supervised_tokens": sum(source.supervised for source in sources),
    }
    for talk in talks:
        counts = {name: count + talk.counts[name] if name in said else count for name, count in counts.items()}
        counts["conversations"] = len(talk.train)
    return counts


def _sample(tokenizer: PreTrainedTokenizerBase, train: Sequence[TokenRow]) -> tuple[Piece, ...]:
    """The first tokens of the first row."""
    if not len(train):
        return ()
    ids = train[0].input_ids[:64]
    return pieces(tokenizer, TokenRow(ids, ids, (len(ids),), ""))


def metrics(supervised: int, characters: int) -> Callable[[float], Mapping[str, float]]:
    """Loss in nats per token, perplexity, and bits per character of the held-out text."""

    def measured(loss: float) -> Mapping[str, float]:
        bits = loss * supervised / math.log(2) / max(1, characters)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_character": bits}

    return measured
