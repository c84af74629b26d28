"""Instructions and conversations for a causal language model: the loss is on what the assistant says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from ftcore import Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import collator, token_loss
from ftcore.conversations import to_conversation
from ftcore.problems import BadRow, Problems
from ftcore.records import Record, iter_records, weighted
from ftcore.rows import Reading, read
from ftcore.settings import Settings
from ftcore.templates import Template, Turns
from pydantic import Field

SAMPLE = Path(__file__).parent / "sample"
SHOWN = ("Is an elephant big or small?", "Say good night to Ben.", "Answer yes or no: can a pig fly?")


@options
class Causal:
    """Supervised fine-tuning on alpaca rows, `messages` or `conversations`, in the tokenizer's own chat template."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({"instruction": "Where is the cat?", "output": "By the door."}, ("By the door.",)),
        Example(
            {
                "system": "Be kind.",
                "history": [["Hi!", "Hello!"]],
                "instruction": "Add.",
                "input": "1 + 1",
                "output": "2.",
            },
            ("Hello!", "2."),
        ),
        Example(
            {
                "messages": [
                    {"role": "system", "content": "Answer in a word."},
                    {"role": "user", "content": "Where is the dog?"},
                    {"role": "assistant", "content": "Outside."},
                    {"role": "user", "content": "And the cat?"},
                    {"role": "assistant", "content": "Inside."},
                ]
            },
            ("Outside.", "Inside."),
        ),
        Example(
            {"conversations": [{"from": "human", "value": "小猫在哪里？"}, {"from": "gpt", "value": "在门口看雨。"}]},
            ("在门口看雨。",),
        ),
    )

    template: Annotated[
        str | None,
        Field(description="File with a Jinja chat template to use instead of the tokenizer's own."),
    ] = None
    show: Annotated[
        tuple[str, ...], Field(description="Questions to answer before and after training; separated by commas.")
    ] = ()

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Each conversation rendered, tokenised and masked; rows that cannot be used are refused or counted."""
        template = Template.of(loaded, self.template, run.say)
        length = min(run.settings.max_length, loaded.max_positions)

        def encode(record: Record) -> Iterator[Turns]:
            yield template.encode(to_conversation(record), length)

        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, encode, Turns, sample, Turns.counted))
        _stops_are_taught(rows.train)
        questions = self.show or (SHOWN if rows.built_in else _questions(run.settings))
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=collator(loaded, run.settings),
            loss=token_loss,
            counts=rows.counts,
            sample=template.pieces(rows.train[0]) if len(rows.train) else (),
            probes=tuple(Probe(text, tuple(template.question(text))) for text in questions),
            stop_ids=tuple(sorted({row.stop_id for row in (*rows.train[:1], *rows.eval[:1])})),
            shares=rows.shares,
        )


def _questions(settings: Settings) -> tuple[str, ...]:
    """The opening question of the first conversation that has nothing before it."""
    for record in iter_records([weighted(spec)[0] for spec in (*settings.eval_data, *settings.data)], Problems()):
        try:
            first = to_conversation(record).messages[0]
        except BadRow:
            continue
        if first.role == "user":
            return (first.content,)
    return ()


def _stops_are_taught(rows: Sequence[Turns]) -> None:
    """Refused when truncation took the stop token from every answer: such a model would never stop."""
    if len(rows) and not any(row.stopped for row in rows):
        raise Refused("no row keeps the stop token of an answer, so the model would never stop; raise --max-length")
