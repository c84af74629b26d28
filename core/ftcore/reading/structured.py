"""JSON: lists of rows, JSON lines, rows under a key or nested in articles, each with the line it begins on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NoReturn

from ftcore.errors import Refused
from ftcore.problems import BadRow, Problem, refuse, shown
from ftcore.reading.encodings import Text
from ftcore.reading.rows import Row

_CONFLICT = re.compile(r"^(<<<<<<<|>>>>>>>)", re.MULTILINE)
_ROW_KEYS = {
    "instruction", "output", "messages", "conversations", "text", "role", "from", "prompt", "chosen", "rejected",
    "question", "answers", "context", "tokens", "conversation", "chat", "history",
}  # fmt: skip


def rows(text: Text) -> Iterator[Row]:
    """A syntax error ends a list, whose later rows cannot be told apart, but of JSON lines only its line."""
    empty = True
    for row in _line_rows(text) if is_lines(text) else _value_rows(text):
        empty = False
        yield row
    if empty:
        raise Refused(f"{text.source} holds an empty list; pass a file with rows.")


def unconflicted(text: Text) -> Iterator[str]:
    """The lines; Refused at one that a merge left behind."""
    for number, line in enumerate(text.lines(), start=1):
        if line.startswith(("<<<<<<<", ">>>>>>>")):
            _refuse_conflict(text, number, line[:7])
        yield line


def _refuse_conflict(text: Text, line: int, marker: str) -> NoReturn:
    place = f"{text.source}:{line}: a merge conflict marker ({marker}) stands where a row should"
    raise Refused(f"{place}; keep one of the two sides and remove the markers.")


# --- lines, or one value? ----------------------------------------------------------------------------------


def is_lines(text: Text) -> bool:
    """Whether each line is a row, by as few lines as tell it."""
    lines = (line for line in text.lines() if line.strip())
    first = next(lines)
    following = next(lines, None)
    if following is None:
        return False
    if _is_value(first):
        return True
    return not first.lstrip().startswith("[") and _has_a_row(first, chain([following], lines))


def _has_a_row(first: str, lines: Iterator[str]) -> bool:
    """Whether a later line is a row, and is not one inside a value that began with the first."""
    passed, size, tried = [first], len(first), 0
    for line in lines:
        passed.append(line)
        size += len(line)
        if line.startswith("{") and size >= 2 * tried and _is_value(line):
            tried = size
            if not _may_go_on("".join(passed)):
                return True
    return False


def _is_value(text: str) -> bool:
    try:
        return isinstance(_whole(_LENIENT, text), dict | list)
    except json.JSONDecodeError:
        return False


def _may_go_on(text: str) -> bool:
    """Whether `text` is the beginning of one value, or all of it."""
    try:
        _whole(_LENIENT, text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    return True


# --- JSON lines --------------------------------------------------------------------------------------------


def _line_rows(text: Text) -> Iterator[Row]:
    for number, line in enumerate(unconflicted(text), start=1):
        if line.isspace():
            continue
        try:
            value = _whole(_STRICT, line.removesuffix("\n"))
        except BadRow as error:
            yield number, 0, error.problem
        except json.JSONDecodeError as error:
            yield number, error.colno, Problem("", "JSON", *_guess(error, "line"))
        else:
            yield from _rows_of_line(number, line, value)


def _rows_of_line(number: int, line: str, value: object) -> Iterator[Row]:
    if not _nests(value):
        yield number, 0, value
        return
    places = _questions(line, _skip(line, 0), value, {})
    yield from ((number, at + 1 if index else 0, row) for index, (at, row) in enumerate(places))


# --- one value ---------------------------------------------------------------------------------------------


def _value_rows(text: Text) -> Iterator[Row]:
    whole = text.whole()
    conflict = _CONFLICT.search(whole)
    if conflict:
        _refuse_conflict(text, whole.count("\n", 0, conflict.start()) + 1, conflict[0])
    try:
        yield from _placed(whole)
    except json.JSONDecodeError as error:
        place = f"{text.source}:{error.lineno}:{error.colno}"
        raise Refused(f"{Problem(place, 'JSON', *_guess(error, 'file'))}.") from None


def _placed(text: str) -> Iterator[Row]:
    line, newline, counted = 1, -1, 0
    for at, value in _values(text, _skip(text, 0)):
        passed = text.count("\n", counted, at)
        newline = text.rfind("\n", counted, at) if passed else newline
        yield line + passed, 0 if passed or not counted else at - newline, value
        line, counted = line + passed, at + 1


def _values(text: str, start: int) -> Iterator[tuple[int, object]]:
    if text.startswith("[", start):
        places = _items(text, start, outermost=True)
    else:
        places = _inside(text, start, _whole(_LENIENT, text))
    for at, value in places:
        yield from _questions(text, at, value, {}) if _nests(value) else ((at, value),)


def _inside(text: str, start: int, value: object) -> Iterator[tuple[int, object]]:
    """The rows of {"version": …, "data": [rows]} or {"id": row, …}; an object that is itself a row."""
    if not isinstance(value, dict) or _ROW_KEYS & value.keys() or _nests(value):
        return iter([(start, _item(text, start)[0])])
    lists = [key for key, held in value.items() if isinstance(held, list)]
    if len(lists) == 1 and _all_rows(value[lists[0]]):
        return _items(text, next(at for key, at in _members(text, start) if key == lists[0] and text[at] == "["))
    if len(value) > 1 and all(isinstance(held, dict) and held for held in value.values()):
        return ((at, _item(text, at)[0]) for _, at in _members(text, start))
    return iter([(start, _item(text, start)[0])])


def _all_rows(found: list[object]) -> bool:
    return bool(found) and all(isinstance(row, dict) and not {"role", "from"} & row.keys() for row in found)


def _members(text: str, at: int) -> Iterator[tuple[object, int]]:
    """The keys of an object that is sound, and where their values stand."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decode(_LENIENT, text, at)
        at = _skip(text, _skip(text, at) + 1)
        yield key, at
        at = _skip(text, _decode(_LENIENT, text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at


def _items(text: str, at: int, *, outermost: bool = False) -> Iterator[tuple[int, object]]:
    at = _skip(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        value, end = _item(text, at)
        yield at, value
        at = _skip(text, end)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1) if more else at
    if outermost and _skip(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, at + 1))


def _item(text: str, at: int) -> tuple[object, int]:
    try:
        return _decode(_STRICT, text, at)
    except BadRow as error:
        return error.problem, _decode(_LENIENT, text, at)[1]


# --- questions nested in the articles that answer them -----------------------------------------------------


def _nests(value: object) -> bool:
    """Whether the value is an article with paragraphs, or a paragraph with questions."""
    if not isinstance(value, dict):
        return False
    paragraphs, questions = value.get("paragraphs"), value.get("qas")
    return isinstance(questions, list) or (
        isinstance(paragraphs, list) and any(isinstance(part, dict) and "qas" in part for part in paragraphs)
    )


def _questions(text: str, at: int, value: object, around: Mapping[str, object]) -> Iterator[tuple[int, object]]:
    """One row for each question, with what stands around it, at the place where the question itself stands."""
    inner = next((key for key in ("paragraphs", "qas") if isinstance(value, dict) and key in value), "")
    if not isinstance(value, dict) or not isinstance(value.get(inner), list):
        yield at, value if isinstance(value, Problem) else _no_questions(value)
        return
    shared = {**around, **{key: held for key, held in value.items() if key != inner}}
    start = next(place for key, place in _members(text, at) if key == inner)
    for place, item in _items(text, start):
        if inner == "paragraphs":
            yield from _questions(text, place, item, shared)
        else:
            yield place, {**shared, **item} if isinstance(item, dict) else item


def _no_questions(value: object) -> Problem:
    found = f"has no list of questions: {shown(value)}"
    return Problem("", "paragraph", found, 'give it "qas", a list of questions, or take it out')


# --- what the decoder says ---------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        refuse("row", f"has the key {key[:60]!r} twice", "keep one of the two")
    return fields


def _finite(constant: str) -> NoReturn:
    refuse("row", f"holds {constant}, which is not JSON", "write a number, or null")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_finite)
_LENIENT = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")


def _whole(decoder: json.JSONDecoder, text: str) -> object:
    value, end = _decode(decoder, text, _skip(text, 0))
    if _skip(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, end))
    return value


def _decode(decoder: json.JSONDecoder, text: str, at: int) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        raise json.JSONDecodeError(str(error), text, at) from None


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _guess(error: json.JSONDecodeError, whole: str) -> tuple[str, str]:
    text, at, kind = error.doc, _skip(error.doc, error.pos), error.msg
    behind, ahead = text[:at].rstrip()[-1:], text[at : at + 24].rstrip()
    found = f"breaks off at {ahead!r}"
    if not ahead or kind.startswith("Unterminated string"):
        short = {"file": "it was cut short, so copy it again whole", "line": "close its quotes and brackets"}
        return f"breaks off because the {whole} ends in the middle of a row", short[whole]
    if not behind and ahead[0] not in "{[":
        text_file = "the file is no JSON; running text goes in a .txt file, for a task that reads it"
        return found, text_file if whole == "file" else "make the line a row, or remove it"
    if ahead[0] == "'" or re.match("(None|True|False)\\b", ahead):
        return found, "this is a Python value; write it with json.dump, which uses double quotes"
    if (behind == "," and ahead[0] in "]}") or "trailing comma" in kind:
        return found, "remove the comma just before it"
    if kind.startswith("Invalid control character"):
        return found, r"write newlines and tabs inside a text as \n and \t"
    if kind.startswith("Invalid \\"):
        return found, r"write a backslash inside a text as \\"
    if kind == "Extra data":
        return found, "put each row on a line of its own without a comma, or all rows in one list [...]"
    if "delimiter" in kind:
        return found, "a comma, colon, bracket or escaped quote is missing just before it"
    return found, "mend the JSON there" if kind.startswith("Expecting") else f"mend it ({kind})"
