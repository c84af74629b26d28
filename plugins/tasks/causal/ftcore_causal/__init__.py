"""Instructions and conversations for a causal language model: the loss is on what the assistant says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ftcore import Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import collator, token_loss
from ftcore.problems import BadRow, Problems
from ftcore.records import Record, iter_records, weighted
from ftcore.rows import Reading, read
from ftcore.settings import Settings, form_of, layout_of
from ftcore.shapes import conversations_of, reshaped, unanswered_of
from ftcore.templates import Template, Turns
from ftcore.textual import Figure
from pydantic import Field

from ftcore_causal.answering import Answering

SAMPLE = Path(__file__).parent / "sample"
SHOWN = ("Is an elephant big or small?", "Say good night to Ben.", "Answer yes or no: can a pig fly?")


@options
class Causal:
    """Supervised fine-tuning on conversations in any shape of row, in the tokenizer's own chat template."""

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
        Example(
            {
                "messages": [
                    {"role": "user", "content": "How warm is it?"},
                    {"role": "assistant", "content": "I will look.", "tool_calls": [{"name": "look", "arguments": {}}]},
                    {"role": "tool", "content": "21 degrees"},
                    {"role": "assistant", "content": "It is warm."},
                ],
                "tools": [{"name": "look", "description": "Reads the thermometer."}],
            },
            ('I will look.\n{"name": "look", "arguments": {}}', "It is warm."),
        ),
    )

    template: Annotated[
        str | None,
        Field(description="File with a Jinja chat template to use instead of the tokenizer's own."),
    ] = None
    train_on: Annotated[
        Literal["all-turns", "last-turn"],
        Field(description="Learn every answer of a conversation, or only what follows the last turn of the user."),
    ] = "all-turns"
    prompt_weight: Annotated[
        float,
        Field(ge=0, le=1, description="What a token of the system's and the user's turns counts in the loss."),
    ] = 0.0
    metrics: Annotated[
        tuple[Figure, ...],
        Field(
            description="Figures of written answers to measure too: exact_match, bleu, chrf, rouge, nist, meteor, "
            "cider; separated by commas."
        ),
    ] = ()
    max_new_tokens: Annotated[int, Field(ge=1, description="Longest answer that is written, in tokens.")] = 128
    show: Annotated[
        tuple[str, ...], Field(description="Questions to answer before and after training; separated by commas.")
    ] = ()

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Each conversation rendered, tokenised and masked; rows that cannot be used are refused or counted."""
        template = Template.of(loaded, self.template, run.say, self.train_on, self.prompt_weight)
        length = min(run.settings.max_length, loaded.max_positions)
        encode = partial(_rows, template, length, waiting=run.intent == "predict")
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, encode, Turns, sample, Turns.counted))
        _stops_are_taught(rows.train)
        questions = self.show or (SHOWN if rows.built_in else _questions(run.settings))
        stops = tuple(sorted({row.stop_id for row in (*rows.train[:1], *rows.eval[:1]) if row.stop_id >= 0}))
        answering = Answering(loaded, stops, self.max_new_tokens, self.metrics)
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=collator(loaded, run.settings),
            loss=token_loss,
            counts=rows.counts,
            sample=template.pieces(rows.train[0]) if len(rows.train) else (),
            probes=tuple(Probe(text, tuple(template.question(text))) for text in questions),
            stop_ids=stops,
            scoring=answering.scoring() if self.metrics or run.intent == "predict" else None,
            shares=rows.shares,
        )


def _rows(template: Template, length: int, record: Record, *, waiting: bool) -> Iterator[Turns]:
    """A row for each conversation of a record; one that is `waiting` for an answer may have none."""
    for conversation in unanswered_of(record) if waiting else conversations_of(record):
        if conversation.messages[-1].role == "assistant":
            yield template.encode(conversation, length)
        else:
            yield template.unanswered(conversation, length)


def _questions(settings: Settings) -> tuple[str, ...]:
    """The opening question of the first conversation that has nothing before it."""
    sources = [weighted(spec)[0] for spec in (*settings.eval_data, *settings.data)]
    for record in iter_records(sources, Problems(), layout_of(settings)):
        try:
            first = unanswered_of(reshaped(record, form_of(settings)))[0].messages[0]
        except BadRow:
            continue
        if first.role == "user":
            return (first.content,)
    return ()


def _stops_are_taught(rows: Sequence[Turns]) -> None:
    """Refused when truncation took the stop token from every answer: such a model would never stop."""
    if len(rows) and not any(row.stopped for row in rows):
        raise Refused("no row keeps the stop token of an answer, so the model would never stop; raise --max-length")
