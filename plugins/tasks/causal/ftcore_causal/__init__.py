"""Instructions and conversations for a causal language model: the loss is on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from ftcore import Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import collator, held_out, token_loss
from ftcore.conversations import Conversation, Message, to_conversation
from ftcore.problems import BadRow, Problems, settle
from ftcore.records import read_records
from pydantic import Field

from ftcore_causal.template import Encoded, Template

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
        settings = run.settings
        template = Template.of(loaded, self.template, run.say)
        problems = Problems()
        built_in = not settings.data and not (run.intent == "infer" and settings.eval_data)
        if built_in:
            run.say("no --data given: the task's built-in sample is used; pass --data FILE for your own rows")
        training = self._read((str(SAMPLE / "train.jsonl"),) if built_in else settings.data, problems)
        sample_held = (str(SAMPLE / "heldout.jsonl"),) if built_in and not settings.eval_share else ()
        named = self._read(settings.eval_data or sample_held, problems)
        training, apart = held_out(training, named, settings)
        length = min(settings.max_length, loaded.max_positions)
        train = template.encode_all(training, length, problems)
        held = template.encode_all(apart, length, problems)
        read = len(training) + len(apart) + len(problems)
        notice = settle(problems, settings.on_bad_row, len(train) + len(held)) if read else None
        if notice:
            run.say(notice)
        _stops_are_taught(train)
        questions = self.show or (SHOWN if built_in else _questions((*apart, *training)))
        return Data(
            train=[one.row for one in train],
            eval=[one.row for one in held],
            collate=collator(loaded, settings),
            loss=token_loss,
            counts=_counts(train, len(problems)),
            sample=template.pieces(train[0]) if train else (),
            probes=tuple(Probe(text, tuple(template.question(text))) for text in questions),
            stop_ids=tuple(sorted({one.stop_id for one in (*train, *held)})),
        )

    def _read(self, sources: Sequence[str], problems: Problems) -> list[Conversation]:
        conversations = []
        for record in read_records(sources, problems) if sources else []:
            try:
                conversations.append(to_conversation(record))
            except BadRow as bad:
                problems.add(bad.problem)
        return conversations


def _questions(conversations: Sequence[Conversation]) -> tuple[str, ...]:
    """The opening question of the first conversation that has nothing before it."""
    for conversation in conversations:
        first: Message = conversation.messages[0]
        if first.role == "user":
            return (first.content,)
    return ()


def _stops_are_taught(rows: Sequence[Encoded]) -> None:
    """Refused when truncation took the stop token from every answer: such a model would never stop."""
    if rows and not any(one.stopped for one in rows):
        raise Refused("no row keeps the stop token of an answer, so the model would never stop; raise --max-length")


def _counts(rows: Sequence[Encoded], left_out: int) -> dict[str, int]:
    return {
        "rows": len(rows),
        "rows_left_out": left_out,
        "rows_cut": sum(one.cut for one in rows),
        "tokens": sum(one.row.size for one in rows),
        "supervised_tokens": sum(one.row.supervised for one in rows),
        "merged_with_prompt": sum(one.merged for one in rows),
    }
