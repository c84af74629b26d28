"""The one conversation of a row whose turns alternate, for what renders neither tools nor several conversations."""

from __future__ import annotations

from ftcore.problems import BadRow, Problem
from ftcore.records import Record
from ftcore.shapes import Conversation, Message, conversations_of

__all__ = ["Conversation", "Message", "to_conversation"]


def to_conversation(record: Record) -> Conversation:
    """The row's only conversation, without tools and with every answer learnt, or BadRow says why not."""
    first, *others = conversations_of(record)
    if others:
        raise _unread(record, f"holds {len(others) + 1} conversations", "give one a row")
    if first.tools or any(message.role == "tool" or message.calls for message in first.messages):
        raise _unread(record, "uses tools", "leave it out, as this task does not read them")
    if any(message.learned is False for message in first.messages):
        raise _unread(record, "keeps an answer from being learnt", "leave it out, as this task learns every answer")
    return first


def _unread(record: Record, found: str, remedy: str) -> BadRow:
    return BadRow(Problem(record.place, "row", found, remedy))
