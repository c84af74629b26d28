"""Masked language modelling: words are hidden from an encoder, which learns to fill them in from both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Data, Example, Loaded, Run, Scoring, hookimpl, options
from ftcore.batches import IGNORED
from ftcore.problems import BadRow, Problem, Problems
from ftcore.records import Layout, Record, iter_texts
from ftcore.rows import Reading, read
from ftcore.shapes import document_of
from pydantic import Field

from ftcore_mlm.masking import Masked, MaskedRow, Masking, batch_of, found, masked_loss, takes_segments
from ftcore_mlm.words import Text, texts_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = Path(__file__).parent / "sample" / "train.jsonl", Path(__file__).parent / "sample" / "heldout.jsonl"
REMEDY = "write it differently, take the document out, or name it as the separator of a .txt file"


@options
class Mlm:
    """BERT's masked language modelling on running text, whole words at a time."""

    head: ClassVar[str] = "masked-lm"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"text": "The cat sat by the door and looked at the rain."}),
        Example({"text": "小狗去找它的球。\n\nIt ran over the hill."}),
    )

    separator: Annotated[
        str | None, Field(description="Text that separates documents in a .txt file; without it a file is one.")
    ] = "<|endoftext|>"
    share: Annotated[
        float, Field(description="Share of the words of a row that are to be predicted; at least one is.", gt=0, lt=1)
    ] = 0.15
    whole_words: Annotated[
        bool, Field(description="Choose words with all their pieces; otherwise each token by itself.")
    ] = True
    duplicates: Annotated[
        int,
        Field(description="How often an epoch has each row, each time with other words chosen.", ge=1),
    ] = 1
    pairs: Annotated[
        float,
        Field(
            description="Share of the rows that are two segments, as the tokenizer joins a pair.",
            ge=0,
            le=1,
        ),
    ] = 0.0

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Documents in rows of at most `max_length` tokens, in each of which some words are to be predicted."""
        settings, tokenizer = run.settings, loaded.tokenizer
        assert tokenizer is not None
        masking = Masking.of(tokenizer, settings.seed, self.share, self.pairs, whole_words=self.whole_words)
        room = masking.room(min(settings.max_length, loaded.max_positions))
        texts = read(run, loaded, self._reading(tokenizer, room))
        train, held = Masked(texts.train, masking, self.duplicates), Masked(texts.eval, masking, 1)
        collate = partial(batch_of, pad_id=tokenizer.pad_token_id or 0, segments=takes_segments(loaded.model))
        counted = {
            "rows": len(train),
            "tokens": sum(train.sizes()),
            "supervised_tokens": sum(row.supervised for row in train),
        }
        return Data(
            train=train,
            eval=held,
            collate=collate,
            loss=masked_loss,
            counts={**texts.counts, **counted},
            sample=tuple(pieces(train[0], tokenizer)) if len(train) else (),
            metrics=metrics,
            scoring=Scoring(partial(found, collate=collate), partial(lines, tokenizer=tokenizer), score),
            shares=train.shares(texts.shares),
        )

    def _reading(self, tokenizer: PreTrainedTokenizerBase, room: int) -> Reading[Record, Text]:
        """Documents as texts that fit a row; one that spells out a special token is among the problems."""
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

        def encode(record: Record) -> list[Text]:
            text = document_of(record).text
            special = next((special for special in specials if special in text), None)
            if special is not None:
                raise BadRow(Problem(record.place, "text", f"holds the special token '{special}'", REMEDY))
            return texts_in(tokenizer, text, record.place, room)

        def records(sources: Sequence[str], problems: Problems, layout: Layout) -> Iterator[Record]:
            return iter_texts(sources, self.separator, problems, layout)

        return Reading(self, encode, Text, SAMPLES, Text.counted, records)


def pieces(row: MaskedRow, tokenizer: PreTrainedTokenizerBase, most: int = 64) -> Iterator[tuple[str, bool]]:
    """The first tokens of a row as text, and of each stretch whether it is to be predicted."""
    laid = row.laid_out()
    tokens = zip(laid.ids[:most].tolist(), laid.labels[:most].tolist(), strict=True)
    for wanted, stretch in groupby(tokens, key=lambda pair: pair[1] != IGNORED):
        yield str(tokenizer.decode([label if wanted else token for token, label in stretch])), wanted


def lines(
    rows: Sequence[MaskedRow], answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Of each row its text, the tokens that were to be predicted, and those that were."""
    told = []
    for row, answer in zip(rows, answers, strict=True):
        labels = row.laid_out().labels
        asked = tokenizer.convert_ids_to_tokens(labels[labels != IGNORED].tolist())
        text = tokenizer.decode(row.text.ids.tolist())
        told.append({"text": text, "hidden": asked, "found": tokenizer.convert_ids_to_tokens(list(answer))})
    return told


def score(told: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """The share of the tokens that were found."""
    pairs = [pair for line in told for pair in zip(line["hidden"], line["found"], strict=True)]
    return {"accuracy": sum(one == other for one, other in pairs) / len(pairs)} if pairs else {}


def metrics(loss: float) -> Mapping[str, float]:
    """Loss in nats per chosen token, and its perplexity."""
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
