"""Rows told apart by their keys and turned into conversations: alpaca, `messages`, and sharegpt's `conversations`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import NoReturn

from ftcore.problems import BadRow, abridged, checked, filled, optional, refuse, refuse_misspelt, shown
from ftcore.records import Record

_OPENAI = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT = {**_OPENAI, "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_FORMS = {"messages": ("role", "content", _OPENAI), "conversations": ("from", "value", _SHAREGPT)}


@dataclass(frozen=True)
class Message:
    """What one speaker said: the role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate user and assistant, end with the assistant, and may open with a system turn."""

    messages: tuple[Message, ...]
    place: str


def to_conversation(record: Record) -> Conversation:
    """The row's keys tell its messages (a list of them wins over `instruction`), or BadRow says why not."""
    try:
        messages = _conversation(record.fields)
    except BadRow as error:
        raise BadRow(replace(error.problem, place=record.place)) from None
    return Conversation(tuple(messages), record.place)


def _conversation(fields: Mapping[str, object]) -> list[Message]:
    forms = [form for form in _FORMS if form in fields]
    if len(forms) > 1:
        refuse("row", 'has both "messages" and "conversations"', "keep one of the two")
    messages = _listed(fields, forms[0]) if forms else _instruction(fields)
    system = optional(fields, "system")
    if system.strip() and messages[0].role == "system":
        refuse("system", f"stands beside a system turn in {forms[0]}", "keep one of the two")
    everything = [Message("system", system), *messages]
    return [message for message in everything if message.role != "system" or message.content.strip()]


def _instruction(fields: Mapping[str, object]) -> list[Message]:
    if "instruction" not in fields:
        refuse_misspelt(fields, "instruction", *_FORMS)
        _refuse_unknown(fields)
    output = filled(fields, "output")
    prompt = [optional(fields, "instruction", required=True), optional(fields, "input")]
    if not "".join(prompt).strip():
        refuse("instruction", "is empty, and so is input", "give it text")
    user = "\n".join(part for part in prompt if part.strip())
    return [*_history(fields.get("history")), Message("user", user), Message("assistant", output)]


def _history(value: object) -> Iterator[Message]:
    for index, pair in enumerate(_list(value, "history") if value is not None else []):
        if not isinstance(pair, list) or len(pair) != 2:
            refuse(f"history[{index}]", f"is {shown(pair)}", "make it a pair [question, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield Message(role, checked(text, f"history[{index}]"))


def _listed(fields: Mapping[str, object], form: str) -> list[Message]:
    role_key, content_key, roles = _FORMS[form]
    messages = []
    for index, entry in enumerate(_list(fields[form], form)):
        name = f"{form}[{index}]"
        if not isinstance(entry, dict):
            refuse(name, f"is {shown(entry)}", f'make it an object with "{role_key}" and "{content_key}"')
        given = filled(entry, role_key, f"{name}.")
        if given not in roles:
            refuse(f"{name}.{role_key}", f"is {shown(given)}", f"use one of {', '.join(roles)}")
        read = optional if given == "system" else filled
        messages.append(Message(roles[given], read(entry, content_key, f"{name}.")))
    _check_order(messages, form)
    return messages


def _check_order(messages: Sequence[Message], form: str) -> None:
    roles = [message.role for message in messages]
    opening = roles[:1].count("system")
    if "assistant" not in roles:
        refuse(form, "has no assistant turn", "add the answer to learn")
    if "system" in roles[1:]:
        at = roles.index("system", 1)
        refuse(f"{form}[{at}]", "is a system turn that is not first", "put the only system turn first")
    for index, expected in zip(range(opening, len(roles)), cycle(("user", "assistant")), strict=False):
        if roles[index] != expected:
            found = f"has the role {roles[index]} where a turn of the {expected} is due"
            refuse(f"{form}[{index}]", found, "alternate user and assistant, joining turns of the same")
    if roles[-1] == "user":
        refuse(form, "ends with a user turn", "add its answer or remove the turn")


def _list(value: object, field: str) -> list[object]:
    if not isinstance(value, list):
        refuse(field, f"is {shown(value)}", f"make {field} a list")
    return value


def _refuse_unknown(fields: Mapping[str, object]) -> NoReturn:
    keys = abridged([json.dumps(key[:60], ensure_ascii=False) for key in fields], limit=6)
    found = f"has the keys {keys}" if fields else "is an empty object"
    text = '; a row of "text" is for a task that reads running text' if "text" in fields else ""
    refuse("row", found, f'name them "instruction" and "output", or give "messages" or "conversations"{text}')
