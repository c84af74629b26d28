"""What is written otherwise than it can be meant: misspelt keys, characters with numbers, answers at a wrong start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ftcore.problems import KNOWN_KEYS, alike
from ftcore.shapes.asking import ALPACA
from ftcore.shapes.recognising import UNKNOWN, shape_of

Fields = Mapping[str, object]
# An alpaca row without its instruction still has an input and an output.
_DOUBTFUL = (ALPACA.name, "input/output", UNKNOWN)
_MENDED = ("instruction", "input", "output", "system", "messages", "conversations")


def mended(fields: Fields) -> tuple[Fields, str]:
    """The row with what can only be meant otherwise put right, and a note that says what, empty for a sound row."""
    fields, spelt = _respelt(fields)
    fields, taken = _unnumbered(fields)
    fields, moved = _moved(fields)
    return fields, ", ".join(note for note in (spelt, taken, moved) if note)


# --- keys --------------------------------------------------------------------------------------------------


def _respelt(fields: Fields) -> tuple[Fields, str]:
    """Misspelt keys spelt right where only one can be meant."""
    renamed = _renamed(fields) if shape_of(fields) in _DOUBTFUL else {}
    note = ", ".join(f'"{old}" read as "{new}"' for old, new in renamed.items())
    return {renamed.get(key, key): value for key, value in fields.items()} if renamed else fields, note


def _renamed(fields: Fields) -> dict[str, str]:
    unread = [key for key in fields if key not in KNOWN_KEYS]
    plain = {key: key.strip().lower() for key in unread}
    found = {key: right for key, right in plain.items() if right in KNOWN_KEYS and right not in fields}
    for right in _MENDED:
        near = [key for key in unread if key not in found and alike(key, right)]
        if right not in fields and right not in found.values() and len(near) == 1:
            found[near[0]] = right
    return found if len(set(found.values())) == len(found) else {}


# --- words of tagged sentences -----------------------------------------------------------------------------

_NUMBERED = re.compile(r"(.)(\d+)", re.DOTALL)


def _unnumbered(fields: Fields) -> tuple[Fields, str]:
    """Characters without their place in a word, which some Chinese corpora write behind each of them."""
    key = next((key for key in ("tokens", "words") if key in fields), None)
    words = fields[key] if key else None
    bare = _bare(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else []
    return ({**fields, str(key): bare}, "the numbers behind the characters left out") if bare else (fields, "")


def _bare(words: Sequence[str]) -> list[str]:
    """The characters before the numbers, if every word has one and they count as places do."""
    found = [match for word in words if (match := _NUMBERED.fullmatch(word))]
    places = [int(match[2]) for match in found]
    counted = all(now in (0, before + 1) for before, now in zip([-1, *places], places, strict=False))
    characters = [match[1] for match in found]
    chinese = any("\u4e00" <= one <= "\u9fff" for one in characters)
    return characters if len(found) == len(words) and counted and chinese else []


# --- answers in a text -------------------------------------------------------------------------------------


def _moved(fields: Fields) -> tuple[Fields, str]:
    """Answers that do not stand at their start, but in one other place of the context, given that start."""
    context, answers = fields.get("context"), fields.get("answers")
    if not isinstance(context, str):
        return fields, ""
    placed = _answers_placed(answers, context)
    if placed == answers:
        return fields, ""
    return {**fields, "answers": placed}, "an answer found where its start does not say"


def _answers_placed(answers: object, context: str) -> object:
    """A list of answers, or a list of texts beside a list of starts, with the starts that are sure."""
    if isinstance(answers, list):
        return [_placed(one, context) for one in answers]
    if not isinstance(answers, dict):
        return answers
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return answers
    return {**answers, "answer_start": [_start(text, at, context) for text, at in zip(texts, starts, strict=True)]}


def _placed(answer: object, context: str) -> object:
    if not isinstance(answer, dict) or "answer_start" not in answer:
        return answer
    return {**answer, "answer_start": _start(answer.get("text"), answer["answer_start"], context)}


def _start(text: object, start: object, context: str) -> object:
    """Where the text stands when the start is wrong and there is but one such place, else the start that is given."""
    if not text or not isinstance(text, str) or not isinstance(start, int):
        return start
    found = context.find(text)
    sound = start >= 0 and context.startswith(text, start)
    return start if sound or found < 0 or context.find(text, found + 1) >= 0 else found
