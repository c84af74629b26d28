"""Pairs of texts from rows, also from rows whose output is still to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ftcore.records import Record
from ftcore.shapes import Pair, pair_of
from ftcore.shapes.asking import ASKINGS


def unanswered(record: Record) -> Pair:
    """The row's pair; where the row has an input alone, there is no output."""
    key = _lacking(record.fields)
    if key is None:
        return pair_of(record)
    return replace(pair_of(replace(record, fields={**record.fields, key: "?"})), outputs=())


def _lacking(fields: Mapping[str, object]) -> str | None:
    """The key of the output that a row lacks, of the first shape that has its input; None where it lacks none."""
    halves = [asking for asking in ASKINGS if asking.ask in fields]
    if any(fields.get(asking.answer) is not None for asking in halves):
        return None
    return halves[0].answer if halves else None
