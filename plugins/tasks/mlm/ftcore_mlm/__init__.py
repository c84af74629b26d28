"""Masked language modelling: words are hidden from an encoder, which learns to fill them in from both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Data, Example, Loaded, Run, Scoring, hookimpl, options
from ftcore.batches import IGNORED, held_out
from ftcore.problems import Problem, Problems, settle
from ftcore.records import Document, read_documents
from pydantic import Field

from ftcore_mlm.masking import MaskedRow, Masking, batch_of, copies, found, masked_loss, takes_segments
from ftcore_mlm.words import texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = Path(__file__).parent / "sample"
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
        problems = Problems()
        data, eval_data = self._sources(run)
        training, apart = held_out(
            self._read(data, tokenizer, problems), self._read(eval_data, tokenizer, problems), settings
        )
        texts = texts_of(tokenizer, training, room, problems)
        held = texts_of(tokenizer, apart, room, problems)
        notice = settle(problems, settings.on_bad_row, len(training) + len(apart)) if data or eval_data else None
        if notice:
            run.say(notice)
        train = copies(texts, masking, self.duplicates)
        collate = partial(batch_of, pad_id=tokenizer.pad_token_id or 0, segments=takes_segments(loaded.model))
        return Data(
            train=train,
            eval=copies(held, masking, 1),
            collate=collate,
            loss=masked_loss,
            counts={
                "documents": len(training),
                "rows": len(train),
                "rows_left_out": len(problems),
                "tokens": sum(row.size for row in train),
                "supervised_tokens": sum(row.supervised for row in train),
            },
            sample=tuple(pieces(train[0], tokenizer)) if train else (),
            metrics=metrics,
            scoring=Scoring(partial(found, collate=collate), partial(lines, tokenizer=tokenizer), score),
        )

    def _sources(self, run: Run) -> tuple[Sequence[str], Sequence[str]]:
        """The files to train on and those held out; the built-in sample's where the run names none."""
        settings = run.settings
        if settings.data or (run.intent in ("infer", "predict") and settings.eval_data):
            return settings.data, settings.eval_data
        run.say("no --data given: the task's built-in sample is used; pass --data FILE for your own text")
        apart = () if settings.eval_share else (str(SAMPLE / "heldout.jsonl"),)
        return (str(SAMPLE / "train.jsonl"),), settings.eval_data or apart

    def _read(self, sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, problems: Problems) -> list[Document]:
        """The documents of `sources` that can be used; one that spells out a special token is among the problems."""
        documents = read_documents(sources, self.separator, problems) if sources else []
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        found = [(document, next((s for s in specials if s in document.text), "")) for document in documents]
        for document, special in found:
            if special:
                problems.add(Problem(document.place, "text", f"holds the special token '{special}'", REMEDY))
        return [document for document, special in found if not special]


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
