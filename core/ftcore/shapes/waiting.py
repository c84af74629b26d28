"""Conversations that wait for an answer: rows of any shape without the answer that they would be learnt with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ftcore.records import Record
from ftcore.shapes.asking import ASKINGS
from ftcore.shapes.conversing import conversations_of
from ftcore.shapes.values import Conversation

_LISTS = {"messages": ("role", "content", "assistant"), "conversations": ("from", "value", "gpt")}
_STANDS_IN = "…"


def unanswered_of(record: Record) -> tuple[Conversation, ...]:
    """The conversations of a row; one that lacks its answer ends with the question, and BadRow says what is wrong."""
    fields = _answered(record.fields)
    found = conversations_of(replace(record, fields=fields))
    if fields == record.fields:
        return found
    return tuple(replace(one, messages=one.messages[:-1]) for one in found)


def _answered(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The row with something in the place of the answer that it lacks."""
    for key, (role, content, answers) in _LISTS.items():
        turns = fields.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get(role) != answers:
            return {**fields, key: [*turns, {role: answers, content: _STANDS_IN}]}
    asked = [asking for asking in ASKINGS if asking.ask in fields]
    if any(key in fields for key in _LISTS) or not asked or any(fields.get(one.answer) for one in asked):
        return fields
    return {**fields, asked[0].answer: _STANDS_IN}
