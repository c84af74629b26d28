"""Texts written from texts by an encoder-decoder: translation, summarisation, data-to-text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ftcore import Data, Example, Loaded, Probe, Run, hookimpl, options
from ftcore.batches import IGNORED, token_loss
from ftcore.hooks import Scoring
from ftcore.records import Record
from ftcore.rows import Reading, read
from ftcore.shapes import pair_of
from ftcore.textual import Figure
from pydantic import Field

from ftcore_seq2seq.pairs import unanswered
from ftcore_seq2seq.rows import PairRow, Writer, collate, writer_of
from ftcore_seq2seq.scoring import Search, lines, score, written

SAMPLE = Path(__file__).parent / "sample"


@options
class Seq2Seq:
    """An output is learned from its input, token by token, each from the right ones before it (teacher forcing)."""

    head: ClassVar[str] = "seq2seq-lm"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"input": "The cat sat by the door.", "output": "小猫在门口。"}, ("小猫在门口。",)),
        Example({"source": "name: Tim | kind: dog", "target": "Tim is a dog."}, ("Tim is a dog.",)),
        Example(
            {"instruction": "Where is it?", "input": "The ball lay by the door.", "output": "By the door."},
            ("By the door.",),
        ),
    )

    prefix: Annotated[str, Field(description="Text before every input, such as 'translate English to Chinese: '.")] = ""
    max_target_length: Annotated[
        int | None,
        Field(
            ge=2,
            description="Longest output in tokens, its end included; a longer one is refused. Without it --max-length.",
        ),
    ] = None
    sentinels: Annotated[
        bool, Field(description="Read <extra_id_0> and its like in a row as the model's marks of left-out spans.")
    ] = False
    num_beams: Annotated[int, Field(ge=1, description="Beams that an output is searched with; 1 is greedy.")] = 1
    length_penalty: Annotated[
        float, Field(description="Above 0 a search with several beams prefers long outputs, below 0 short ones.")
    ] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, description="Longest output that is generated, in tokens.")] = 128
    metrics: Annotated[
        tuple[Figure, ...],
        Field(description="Figures of what is written: exact_match, bleu, chrf, rouge, nist, meteor, cider."),
    ] = ("bleu", "chrf", "rouge")
    bleu_tokenizer: Annotated[
        Literal["auto", "13a", "zh", "intl", "char", "none"],
        Field(description="Words of BLEU as sacrebleu cuts them; auto is zh where references are Chinese, else 13a."),
    ] = "auto"

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Each pair as tokens; inputs are cut and counted, outputs never, and rows that cannot be used are refused."""
        writer = writer_of(loaded, run.settings.max_length, self.max_target_length, self.prefix, self.sentinels)
        pair = unanswered if run.intent == "predict" else pair_of

        def encode(record: Record) -> Iterator[PairRow]:
            yield writer.row(pair(record))

        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, encode, PairRow, sample, PairRow.counted))
        search = Search(self.num_beams, self.length_penalty, self.max_new_tokens, loaded.stop_ids)
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=partial(collate, pad_id=writer.pad),
            loss=token_loss,
            counts=rows.counts,
            sample=_pieces(writer, rows.train[0]) if len(rows.train) else (),
            probes=_probes(rows.eval if len(rows.eval) else rows.train, 3 if rows.built_in else 1),
            stop_ids=(writer.stop,),
            metrics=of_loss,
            scoring=Scoring(
                predict=partial(written, writer=writer, search=search),
                lines=lines,
                score=partial(score, figures=self.metrics, bleu_tokenizer=self.bleu_tokenizer),
                generates=True,
            ),
            shares=rows.shares,
        )


def _pieces(writer: Writer, row: PairRow) -> tuple[tuple[str, bool], ...]:
    """What is read, and what is learned from it."""
    parts = row.input_ids, row.labels[row.labels != IGNORED]
    read, taught = (str(writer.tokenizer.decode(ids.tolist())) for ids in parts)
    return (read, False), (taught, True)


def _probes(rows: Sequence[PairRow], count: int) -> tuple[Probe, ...]:
    return tuple(Probe(row.text, tuple(row.input_ids.tolist())) for row in rows[:count] if not row.cut)


def of_loss(loss: float) -> Mapping[str, float]:
    """Loss in nats per token of the outputs, and perplexity."""
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
