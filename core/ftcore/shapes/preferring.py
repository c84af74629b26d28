"""Rows that say which of two answers is better, or whether one answer is good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from ftcore.problems import checked, filled, refuse, shown
from ftcore.records import Record
from ftcore.shapes.asking import ALPACA, ASKINGS, Asking, answer_texts, question_turns, system_text
from ftcore.shapes.conversing import read, refuse_unknown, tools_text, turns_and_field, with_system
from ftcore.shapes.dialogues import transcript_turns
from ftcore.shapes.turns import check_order, check_prompt_order, listed, turns_of, yes_or_no
from ftcore.shapes.values import Judged, Message, Preference

Fields = Mapping[str, object]
_ASKED = ("instruction", "prompt", "query", "question", "input")
_JUDGEMENTS = ("label", "kto_tag")


def preference_of(record: Record) -> Preference:
    """The prompt of a row and its better and worse answer, or BadRow; of ranked answers, the first and the last."""

    def reader(fields: Fields) -> Preference:
        prompt, chosen, rejected = _compared(fields)
        tools = tools_text(fields)
        for answer, name in ((chosen, "chosen"), (rejected, "rejected")):
            _check(prompt, answer, name, tools)
        if chosen == rejected:
            refuse("rejected", "is the same as chosen", "remove the row")
        return Preference(tuple(prompt), tuple(chosen), tuple(rejected), record.place, tools)

    return read(record, reader)


def judged_of(record: Record) -> Judged:
    """The prompt of a row, its last answer and whether that is good, or BadRow."""

    def reader(fields: Fields) -> Judged:
        judgement = next((key for key in _JUDGEMENTS if key in fields), None)
        if judgement is None:
            refuse("label", "is missing", "say with true or false whether the answer is good")
        tools = tools_text(fields)
        good = yes_or_no(fields[judgement], judgement)
        messages, field = turns_and_field(fields)
        messages = with_system(messages, system_text(fields), field)
        check_order(messages, field, tools=bool(tools))
        asked = _last_user(messages) + 1
        return Judged(tuple(messages[:asked]), tuple(messages[asked:]), good, record.place, tools)

    return read(record, reader)


_Compared = tuple[list[Message], list[Message], list[Message]]


def _compared(fields: Fields) -> _Compared:
    if "chosen" not in fields and isinstance(fields.get("output"), list) and "instruction" in fields:
        return _ranked(fields)
    for key in ("chosen", "rejected"):
        if key not in fields:
            filled(fields, key) if fields.keys() & {"chosen", "rejected"} else refuse_unknown(fields)
    prompt, field = _prompt(fields)
    both = [_answer(fields[key], key, transcript=not prompt) for key in ("chosen", "rejected")]
    if not prompt or all(answer[: len(prompt)] == prompt for answer in both):
        prompt, both = _parted(both)
    return with_system(prompt, system_text(fields), field), both[0], both[1]


def _ranked(fields: Fields) -> _Compared:
    answers = answer_texts(fields, ALPACA)
    if len(answers) < 2:
        refuse("output", f"is {shown(fields['output'])}", "give it a better and a worse answer")
    prompt = with_system(question_turns(fields, ALPACA), system_text(fields), "instruction")
    return prompt, [Message("assistant", answers[0])], [Message("assistant", answers[-1])]


def _prompt(fields: Fields) -> tuple[list[Message], str]:
    for key in ("messages", "conversations"):
        if key in fields:
            return turns_of(fields[key], key), key
    asked = next((key for key in _ASKED if key in fields), None)
    if asked is None:
        return [], "chosen"
    text = fields[asked]
    if asked == "prompt" and isinstance(text, str) and text.lstrip().startswith("Human:"):
        return _without_cue(transcript_turns(text, asked)), asked
    after = next((asking.after for asking in ASKINGS if asking.ask == asked and asking.after in fields), "")
    return question_turns(fields, Asking(asked, "chosen", after=after)), asked


def _without_cue(messages: list[Message]) -> list[Message]:
    """A prompt without the empty turn of the assistant that it may end with."""
    cued = messages[-1].role == "assistant" and not messages[-1].content
    return messages[:-1] if cued else messages


def _answer(value: object, field: str, *, transcript: bool) -> list[Message]:
    if isinstance(value, dict):
        return turns_of([value], field)
    if isinstance(value, list):
        return turns_of(listed(value, field), field)
    text = checked(value, field)
    return transcript_turns(text, field) if transcript else [Message("assistant", text)]


def _parted(both: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """What both conversations begin with, up to the user's last word in it, and how each goes on."""
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False))]
    asked = _last_user(shared) + 1
    if not asked:
        refuse("rejected", "does not begin with the question that chosen begins with", "give both the same prompt")
    return shared[:asked], [answer[asked:] for answer in both]


def _last_user(messages: Sequence[Message]) -> int:
    """The place of the last turn after which the assistant may speak first, or -1."""
    return max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)


def _check(prompt: Sequence[Message], answer: Sequence[Message], name: str, tools: str) -> None:
    """Prompt and answer make a conversation, in which the prompt leaves the word to the assistant."""
    if not prompt or prompt[-1].role not in ("user", "tool"):
        refuse("prompt", "does not end with a user turn", "end it before the answers that are compared")
    if not answer or any(not message.text.strip() for message in answer if message.role == "assistant"):
        refuse(name, "is empty", "give it text, or remove the row")
    check_prompt_order(prompt, "prompt", tools=bool(tools))
    check_order([*prompt, *answer], name, tools=bool(tools))
