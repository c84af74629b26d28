"""Questions with answers in a text, texts with labels, and words with tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ftcore.problems import checked, filled, optional, refuse, shown
from ftcore.records import Record
from ftcore.shapes.conversing import read, refuse_unknown
from ftcore.shapes.turns import entries, listed, yes_or_no
from ftcore.shapes.values import Labelled, Question, Tagged

Fields = Mapping[str, object]

# --- questions -------------------------------------------------------------------------------------------


def question_of(record: Record) -> Question:
    """The question of a row with its answers where the context has them, or BadRow."""

    def reader(fields: Fields) -> Question:
        context, question = filled(fields, "context"), filled(fields, "question")
        given = [_placed(text, start, context) for text, start in _answers(fields)]
        said = fields.get("is_impossible")
        impossible = not given if said is None else yes_or_no(said, "is_impossible")
        if not impossible and not given:
            refuse("answers", "has none", 'add one, or say "is_impossible": true')
        answers = () if impossible else tuple(dict.fromkeys(given))
        return Question(_id(fields, record), context, question, answers, impossible, record.place)

    return read(record, reader)


def _id(fields: Fields, record: Record) -> str:
    given = fields.get("id")
    return record.place if given is None else str(given)


def _answers(fields: Fields) -> Iterator[tuple[str, int]]:
    """The texts and starts of `answers`, in either of the layouts that people keep, or of one `answer`."""
    if "answers" not in fields:
        yield filled(fields, "answer"), _start(fields.get("answer_start"), "answer_start")
        return
    value = fields["answers"]
    if isinstance(value, dict):
        texts, starts = (listed(value.get(key), f"answers.{key}") for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            refuse("answers", f"has {len(texts)} texts and {len(starts)} starts", "give each text its start")
        pairs = list(zip(texts, starts, strict=True))
    else:
        found = entries(value if value is not None else [], "answers", 'make it {"text": …, "answer_start": …}')
        pairs = [(entry.fields.get("text"), entry.fields.get("answer_start")) for entry in found]
    for at, (text, start) in enumerate(pairs):
        yield checked(text, f"answers[{at}].text"), _start(start, f"answers[{at}].answer_start")


def _start(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(field, f"is {shown(value)}", "make it the number of characters before the answer")
    return value


def _placed(text: str, start: int, context: str) -> tuple[str, int]:
    """The answer and its start, when the context has it there."""
    if start < 0 or not context.startswith(text, start):
        where = "at several other places" if text in context else "nowhere"
        refuse("answers", f"has {shown(text)} at {start}, but the context has it {where}", "mend the start or the text")
    return text, start


# --- labels ----------------------------------------------------------------------------------------------

_PAIRED = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
)
_TEXTS = ("text", "sentence", "content")
_LABELS = ("label", "labels", "category")


def labelled_of(record: Record) -> Labelled:
    """The text or sentence pair of a row with its labels, as texts, or BadRow."""

    def reader(fields: Fields) -> Labelled:
        first, second = _text_keys(fields)
        key = next((key for key in _LABELS if key in fields), "2" if first == "1" else "label")
        if key not in fields:
            refuse("label", "is missing", "add it, or name its column with --columns")
        labels = _labels(fields[key], key)
        other = filled(fields, second) if second else ""
        return Labelled(filled(fields, first), other, labels, record.place)

    return read(record, reader)


def _text_keys(fields: Fields) -> tuple[str, str]:
    for first, second in _PAIRED:
        if first in fields and second in fields:
            return first, second
    alone = [key for key in _TEXTS if key in fields]
    if alone:
        return alone[0], ""
    return ("1", "") if "1" in fields and "2" in fields else refuse_unknown(fields, 'name them "text" and "label"')


def _labels(value: object, field: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(dict.fromkeys(_label(one, f"{field}[{at}]") for at, one in enumerate(value)))
    return (_label(value, field),)


def _label(value: object, field: str) -> str:
    """A name as it is, a number or truth as it is written in JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return checked(value, field).strip()


# --- tags ------------------------------------------------------------------------------------------------

_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels")


def tagged_of(record: Record) -> Tagged:
    """The words of a row and a tag for each; entities marked in a text become tags that begin with B and I."""

    def reader(fields: Fields) -> Tagged:
        words_key = next((key for key in _WORDS if key in fields), None)
        tags_key = next((key for key in _TAGS if key in fields), None)
        if words_key and tags_key:
            words = [checked(one, f"{words_key}[{at}]") for at, one in enumerate(listed(fields[words_key], words_key))]
            tags = [_label(one, f"{tags_key}[{at}]") for at, one in enumerate(listed(fields[tags_key], tags_key))]
            return _tagged(words, tags, record)
        return _tagged(*_from_spans(fields), record)

    return read(record, reader)


def _tagged(words: Sequence[str], tags: Sequence[str], record: Record) -> Tagged:
    if len(words) != len(tags):
        refuse("tags", f"has {len(tags)} entries for {len(words)} words", "give each word its tag")
    if not words:
        refuse("tokens", "is empty", "give it words, or remove the row")
    return Tagged(tuple(words), tuple(tags), record.place)


# A word is one Chinese or Japanese character, a run of other letters and digits, or one sign.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


def words_of(text: str) -> tuple[tuple[str, int], ...]:
    """The words of a text, each with the character where it begins; all but white space is in one of them."""
    return tuple((match[0], match.start()) for match in _WORD.finditer(text))


_Span = tuple[int, int, str]


def _from_spans(fields: Fields) -> tuple[list[str], list[str]]:
    text = filled(fields, "text")
    key = next((key for key in ("entities", "label", "labels") if isinstance(fields.get(key), list)), "entities")
    spans = sorted(_span(one, f"{key}[{at}]", text) for at, one in enumerate(listed(fields.get(key), key)))
    for (_, end, _), (start, *_) in pairwise(spans):
        if start < end:
            refuse(key, f"has two entities that overlap at {start}", "keep one of the two")
    edges = sorted({0, len(text), *(edge for start, end, _ in spans for edge in (start, end))})
    pieces = [(start, end) for start, end in pairwise(edges)]
    named = {(start, end): label for start, end, label in spans}
    words: list[str] = []
    tags: list[str] = []
    for start, end in pieces:
        found = [word for word, _ in words_of(text[start:end])]
        label = named.get((start, end))
        words += found
        tags += [f"{'I' if at else 'B'}-{label}" if label else "O" for at in range(len(found))]
    return words, tags


def _span(value: object, field: str, text: str) -> _Span:
    """An entity as an object with start, end and label, or as a list of the three."""
    given = [value.get(key) for key in ("start", "end", "label")] if isinstance(value, dict) else value
    if not isinstance(given, list) or len(given) != 3:
        refuse(field, f"is {shown(value)}", 'make it {"start": …, "end": …, "label": …}')
    start, end = (_start(edge, f"{field}.{name}") for edge, name in zip(given[:2], ("start", "end"), strict=True))
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        refuse(field, f"reaches from {start} to {end} in a text of {len(text)}", "mend its start and end")
    said = optional(value, "text", f"{field}.") if isinstance(value, dict) else ""
    if said and text[start:end] != said:
        refuse(field, f"is {shown(said)}, but the text has {shown(text[start:end])} there", "mend its start and end")
    return start, end, _label(given[2], f"{field}.label")
