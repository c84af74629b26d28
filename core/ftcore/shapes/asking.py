"""Rows that ask in one column and answer in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ftcore.problems import checked, filled, optional, refuse, shown
from ftcore.shapes.turns import listed, turns_of
from ftcore.shapes.values import Message


@dataclass(frozen=True)
class Asking:
    """The column that asks, the one that answers, and one more that may stand before or after the question."""

    ask: str
    answer: str
    before: str = ""
    after: str = ""

    @property
    def name(self) -> str:
        """What people call the shape."""
        return "alpaca" if self == ALPACA else f"{self.ask}/{self.answer}"


ALPACA = Asking("instruction", "output", after="input")
# The first whose two columns a row has is meant.
ASKINGS = (
    ALPACA,
    Asking("instruction", "response", after="context"),
    Asking("prompt", "completion"),
    Asking("prompt", "response"),
    Asking("query", "response"),
    Asking("question", "answer", before="context"),
    Asking("question", "answers", before="context"),
    Asking("question", "response", before="context"),
    Asking("query", "answer", before="context"),
    Asking("ask", "answer"),
    Asking("input", "output"),
    Asking("source", "target"),
    Asking("dialogue", "summary"),
    Asking("document", "summary"),
    Asking("article", "highlights"),
    Asking("text", "summary"),
    Asking("mr", "ref"),
    Asking("1", "2"),
)
_SYSTEMS = ("system", "system_prompt")


def asking_of(fields: Mapping[str, object]) -> Asking | None:
    """The first pair of columns that the row has; a lone `instruction` is alpaca's."""
    found = [asking for asking in ASKINGS if asking.ask in fields and asking.answer in fields]
    return next(iter(found), ALPACA if "instruction" in fields else None)


def question_turns(fields: Mapping[str, object], asking: Asking) -> list[Message]:
    """The turns before the answer: history and the question, or the messages that stand in its place."""
    if isinstance(fields[asking.ask], list):
        return turns_of(fields[asking.ask], asking.ask)
    return [*_history(fields.get("history")), Message("user", question_text(fields, asking))]


def question_text(fields: Mapping[str, object], asking: Asking) -> str:
    """What is asked, with what stands before and after it on lines of their own."""
    asked = optional(fields, asking.ask, required=True)
    around = [optional(fields, key) if key else "" for key in (asking.before, asking.after)]
    if not asked.strip() and not around[1].strip():
        also = f", and so is {asking.after}" if asking.after else ""
        refuse(asking.ask, f"is empty{also}", "give it text")
    return "\n".join(part for part in (around[0], asked, around[1]) if part.strip())


def answer_turns(fields: Mapping[str, object], asking: Asking) -> list[Message]:
    """The answer as a turn of the assistant, or the messages that stand in its place."""
    value = fields.get(asking.answer)
    if isinstance(fields[asking.ask], list) and isinstance(value, list):
        return turns_of(value, asking.answer)
    several = asking.answer == "answers"
    return [Message("assistant", answer_texts(fields, asking)[0] if several else filled(fields, asking.answer))]


def system_text(fields: Mapping[str, object]) -> str:
    """The row's system text, empty when it has none."""
    return next((text for key in _SYSTEMS if (text := optional(fields, key)).strip()), "")


def answer_texts(fields: Mapping[str, object], asking: Asking) -> tuple[str, ...]:
    """All the answers that are right, once each."""
    value = fields.get(asking.answer)
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list):
        return (filled(fields, asking.answer),)
    texts = dict.fromkeys(checked(_inner(text), f"{asking.answer}[{at}]") for at, text in enumerate(value))
    if not texts:
        refuse(asking.answer, "is an empty list", "give it text, or remove the row")
    return tuple(texts)


def _inner(answer: object) -> object:
    return answer.get("text") if isinstance(answer, dict) else answer


def _history(value: object) -> Iterator[Message]:
    for index, pair in enumerate(listed(value, "history") if value is not None else []):
        if not isinstance(pair, list) or len(pair) != 2:
            refuse(f"history[{index}]", f"is {shown(pair)}", "make it a pair [question, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield Message(role, checked(text, f"history[{index}]"))
