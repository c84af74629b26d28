"""Which shape a row has, told by its keys, and the conversations and pairs in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from ftcore.problems import KNOWN_KEYS, BadRow, abridged, alike, filled, optional, refuse, shown
from ftcore.records import Document, Record
from ftcore.shapes.asking import (
    ALPACA,
    ASKINGS,
    Asking,
    answer_texts,
    answer_turns,
    asking_of,
    question_text,
    question_turns,
    system_text,
)
from ftcore.shapes.dialogues import moss_turns, plain_turns, tree_turns, unasked_text, xtuner_turns
from ftcore.shapes.turns import as_json, check_order, turns_of
from ftcore.shapes.values import Conversation, Message, Pair

Fields = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """A name for people, the keys that a row of it has, and what more must hold of them."""

    name: str
    keys: frozenset[str]
    fits: Callable[[Fields], bool] = lambda fields: True

    def holds(self, fields: Fields) -> bool:
        """The row is of this shape."""
        return fields.keys() >= self.keys and self.fits(fields)


def _shape(name: str, *keys: str, fits: Callable[[Fields], bool] = lambda fields: True) -> Shape:
    return Shape(name, frozenset(keys), fits)


def _is_tree(fields: Fields) -> bool:
    return isinstance(fields["prompt"], dict)


def _has_rounds(fields: Fields) -> bool:
    held = fields["conversation"]
    return isinstance(held, list) and all(isinstance(one, dict) and "input" in one for one in held[:1])


# The first that holds names the row.
SHAPES = (
    _shape("chosen/rejected", "chosen", "rejected"),
    _shape("messages", "messages"),
    _shape("sharegpt", "conversations"),
    _shape("xtuner conversation", "conversation", fits=_has_rounds),
    _shape("oasst tree", "prompt", fits=_is_tree),
    _shape("moss", "chat"),
    _shape("moss plain_text", "plain_text"),
    _shape("ranked answers", "instruction", "output", fits=lambda fields: isinstance(fields["output"], list)),
    _shape("squad", "context", "question", "answers"),
    _shape("tokens/tags", "tokens", "tags"),
    _shape("tokens/tags", "tokens", "ner_tags"),
    _shape("tokens/tags", "words", "tags"),
    _shape("tokens/tags", "words", "labels"),
    _shape("tokens/tags", "tokens", "labels"),
    _shape("text/entities", "text", "entities"),
    *(_shape(asking.name, asking.ask, asking.answer) for asking in ASKINGS),
    _shape("sentence pair", "sentence1", "sentence2"),
    _shape("sentence pair", "premise", "hypothesis"),
    _shape("sentence pair", "question1", "question2"),
    _shape("sentence pair", "text1", "text2"),
    _shape("sentence pair", "text_a", "text_b"),
    _shape("sentence pair", "question", "sentence"),
    _shape("text/label", "text", "label"),
    _shape("text/labels", "text", "labels"),
    _shape("text/label", "sentence", "label"),
    _shape("text", "text"),
)
UNKNOWN = "unknown"


def shape_of(fields: Fields) -> str:
    """What people call the shape that these keys have, or `unknown`."""
    return next((shape.name for shape in SHAPES if shape.holds(fields)), UNKNOWN)


# --- from one row to what a task reads ---------------------------------------------------------------------


def read(record: Record, reader: Callable[[Fields, str], T]) -> T:
    """What the reader makes of the mended row and the note of what was mended; BadRow has the row's place."""
    try:
        return reader(*mended(record.fields))
    except BadRow as error:
        raise BadRow(replace(error.problem, place=record.place)) from None


def conversations_of(record: Record) -> tuple[Conversation, ...]:
    """The conversation in a row, the several of a tree, or BadRow."""

    def reader(fields: Fields, note: str) -> tuple[Conversation, ...]:
        tools = tools_text(fields)
        paths = _dialogues(fields, tools)
        return tuple(Conversation(tuple(path), record.place, tools, note) for path in paths)

    return read(record, reader)


def pair_of(record: Record) -> Pair:
    """The text in a row and what it is to become, or BadRow."""

    def reader(fields: Fields, note: str) -> Pair:
        asked, outputs = _pair(fields)
        return Pair(asked, outputs, record.place, note)

    return read(record, reader)


def document_of(record: Record) -> Document:
    """The running text of a row, or BadRow."""
    return read(record, lambda fields, note: Document(_running(fields), record.source, record.line))


def _running(fields: Fields) -> str:
    """The `text`, or the outputs of XTuner's rows that ask nothing."""
    if "text" in fields or not _is("xtuner conversation", fields):
        return filled(fields, "text")
    return unasked_text(fields)


# --- conversations -----------------------------------------------------------------------------------------

_LISTS = ("messages", "conversations")


def _dialogues(fields: Fields, tools: str) -> list[list[Message]]:
    if _is("oasst tree", fields):
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
    if _is("xtuner conversation", fields):
        return xtuner_turns(fields), "conversation"
    if "chat" in fields:
        return moss_turns(fields), "chat"
    if "plain_text" in fields:
        return plain_turns(fields), "plain_text"
    return _asked(fields)


def _is(name: str, fields: Fields) -> bool:
    return any(shape.name == name and shape.holds(fields) for shape in SHAPES)


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


# --- keys that are nearly right ----------------------------------------------------------------------------

_MENDED = ("instruction", "input", "output", "system", "messages", "conversations")


def mended(fields: Fields) -> tuple[Fields, str]:
    """The row with its misspelt keys spelt right where only one thing can be meant, and a note that says so."""
    if shape_of(fields) not in (ALPACA.name, "input/output", UNKNOWN):
        return fields, ""
    renamed = _respelt(fields)
    if not renamed:
        return fields, ""
    note = ", ".join(f'"{old}" read as "{new}"' for old, new in renamed.items())
    return {renamed.get(key, key): value for key, value in fields.items()}, note


def _respelt(fields: Fields) -> dict[str, str]:
    unread = [key for key in fields if key not in KNOWN_KEYS]
    plain = {key: key.strip().lower() for key in unread}
    found = {key: right for key, right in plain.items() if right in KNOWN_KEYS and right not in fields}
    for right in _MENDED:
        near = [key for key in unread if key not in found and alike(key, right)]
        if right not in fields and right not in found.values() and len(near) == 1:
            found[near[0]] = right
    return found if len(set(found.values())) == len(found) else {}


def refuse_unknown(fields: Fields, remedy: str = 'name them "instruction" and "output", give "messages"') -> NoReturn:
    """BadRow that names the keys there are."""
    keys = abridged([json.dumps(key[:60], ensure_ascii=False) for key in fields], limit=6)
    found = f"has the keys {keys}" if fields else "is an empty object"
    text = '; a row of "text" is for a task that reads running text' if "text" in fields else ""
    refuse("row", found, f"{remedy}, or map them with --columns{text}")
