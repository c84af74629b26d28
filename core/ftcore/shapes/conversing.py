"""The conversations, pairs and running text in rows of any shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn, TypeVar

from ftcore.problems import BadRow, abridged, filled, optional, refuse, shown
from ftcore.records import Document, Record
from ftcore.shapes.asking import (
    Asking,
    answer_texts,
    answer_turns,
    asking_of,
    question_text,
    question_turns,
    system_text,
)
from ftcore.shapes.dialogues import moss_turns, plain_turns, tree_turns, unasked_text, xtuner_turns
from ftcore.shapes.mending import mended
from ftcore.shapes.recognising import is_shape
from ftcore.shapes.turns import as_json, check_order, turns_of
from ftcore.shapes.values import Conversation, Message, Pair

Fields = Mapping[str, object]
T = TypeVar("T")


def read(record: Record, reader: Callable[[Fields], T]) -> T:
    """What the reader makes of the mended row; BadRow has the row's place."""
    try:
        return reader(mended(record.fields)[0])
    except BadRow as error:
        raise BadRow(replace(error.problem, place=record.place)) from None


def conversations_of(record: Record) -> tuple[Conversation, ...]:
    """The conversation in a row, the several of a tree, or BadRow, also for one that the row judges to be bad."""

    def reader(fields: Fields) -> tuple[Conversation, ...]:
        if fields.get("label") is False:
            refuse(
                "label", "is false, so that its answer is one not to learn", "remove the row, or learn by preference"
            )
        tools = tools_text(fields)
        return tuple(Conversation(tuple(path), record.place, tools) for path in _dialogues(fields, tools))

    return read(record, reader)


def pair_of(record: Record) -> Pair:
    """The text in a row and what it is to become, or BadRow."""
    return read(record, lambda fields: Pair(*_pair(fields), record.place))


def document_of(record: Record) -> Document:
    """The running text of a row, or BadRow."""
    return read(record, lambda fields: Document(_running(fields), record.source, record.line))


def _running(fields: Fields) -> str:
    """The `text`, or the outputs of XTuner's rows that ask nothing."""
    if "text" in fields or not is_shape("xtuner conversation", fields):
        return filled(fields, "text")
    return unasked_text(fields)


# --- conversations -----------------------------------------------------------------------------------------

_LISTS = ("messages", "conversations")


def _dialogues(fields: Fields, tools: str) -> list[list[Message]]:
    if is_shape("oasst tree", fields):
        return tree_turns(fields)
    messages, field = turns_and_field(fields)
    messages = with_system(messages, system_text(fields) or meta_text(fields), field)
    check_order(messages, field, tools=bool(tools))
    return [messages]


def turns_and_field(fields: Fields) -> tuple[list[Message], str]:
    """The turns of a row in whatever order, and the key that they stand under."""
    lists = [key for key in _LISTS if key in fields]
    if len(lists) > 1:
        refuse("row", 'has both "messages" and "conversations"', "keep one of the two")
    if lists:
        return turns_of(fields[lists[0]], lists[0]), lists[0]
    if is_shape("xtuner conversation", fields):
        return xtuner_turns(fields), "conversation"
    if "chat" in fields:
        return moss_turns(fields), "chat"
    if "plain_text" in fields:
        return plain_turns(fields), "plain_text"
    return _asked(fields)


def _asked(fields: Fields) -> tuple[list[Message], str]:
    asking = asking_of(fields)
    if asking is None:
        refuse_unknown(fields)
    answers = answer_turns(fields, asking)
    return [*question_turns(fields, asking), *answers], asking.ask


def meta_text(fields: Fields) -> str:
    """MOSS's instruction to itself, under whichever name."""
    return optional(fields, "meta_instruction") or (optional(fields, "prefix") if "plain_text" in fields else "")


def with_system(messages: list[Message], system: str, field: str) -> list[Message]:
    """The messages with the row's system text first, and without system turns that say nothing."""
    if system.strip() and messages and messages[0].role == "system":
        refuse("system", f"stands beside a system turn in {field}", "keep one of the two")
    everything = [Message("system", system), *messages]
    return [message for message in everything if message.role != "system" or message.content.strip()]


def tools_text(fields: Fields) -> str:
    """The description of the row's tools as JSON text, empty when it has none."""
    for key in ("tools", "functions"):
        value = fields.get(key)
        if isinstance(value, list | dict) and value:
            return as_json(value)
        if isinstance(value, str) and value.strip() not in ("", "[]"):
            return _json_text(value, key)
        if value and not isinstance(value, str):
            refuse(key, f"is {shown(value)}", "make it a list of tools, or JSON text of one")
    return ""


def _json_text(value: str, key: str) -> str:
    try:
        json.loads(value)
    except ValueError:
        refuse(key, f"is {shown(value)}", "make it JSON text, such as a list of tools")
    return value


# --- pairs -------------------------------------------------------------------------------------------------


def _pair(fields: Fields) -> tuple[str, tuple[str, ...]]:
    asking = asking_of(fields)
    if not any(key in fields for key in _LISTS) and asking and isinstance(fields[asking.ask], str):
        return _asked_pair(fields, asking)
    messages = [message for path in _dialogues(fields, "") for message in path]
    asked = [message.text for message in messages[:-1]]
    if [message.role for message in messages if message.role != "system"] != ["user", "assistant"]:
        refuse("row", f"has {len(messages)} turns", "give a task of text to text one question and one answer")
    return "\n".join(asked), (messages[-1].text,)


def _asked_pair(fields: Fields, asking: Asking) -> tuple[str, tuple[str, ...]]:
    if fields.get("history"):
        refuse("history", "is not empty", "give a task of text to text one question and one answer")
    asked = [system_text(fields), question_text(fields, asking)]
    return "\n".join(part for part in asked if part.strip()), answer_texts(fields, asking)


def refuse_unknown(fields: Fields, remedy: str = 'name them "instruction" and "output", give "messages"') -> NoReturn:
    """BadRow that names the keys there are."""
    keys = abridged([json.dumps(key[:60], ensure_ascii=False) for key in fields], limit=6)
    found = f"has the keys {keys}" if fields else "is an empty object"
    text = '; a row of "text" is for a task that reads running text' if "text" in fields else ""
    refuse("row", found, f"{remedy}, or map them with --columns{text}")
