"""Accuracy and F1 of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[frozenset[str], frozenset[str]]  # the labels that are right, and those that were given


def scored(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures over the lines whose labels are known.

    Accuracy counts a text whose labels are all right and no others; `micro_f1` counts every label of every text alike,
    `macro_f1` every label that is right or given somewhere.
    """
    pairs = [pair for line in lines if (pair := _pair(line)) is not None]
    if not pairs:
        return {}
    labels = sorted(frozenset().union(*(right | given for right, given in pairs)))
    tallies = [_tally(pairs, label) for label in labels]
    return {
        "accuracy": sum(right == given for right, given in pairs) / len(pairs),
        "macro_f1": sum(map(_f1, tallies)) / max(1, len(tallies)),
        "micro_f1": _f1([sum(column) for column in zip(*tallies, strict=True)] or (0, 0)),
    }


def _pair(line: Mapping[str, Any]) -> Pair | None:
    if "labels" in line:
        return frozenset(line["labels"]), frozenset(line["prediction"])
    return (frozenset([line["label"]]), frozenset([line["prediction"]])) if "label" in line else None


def _tally(pairs: Sequence[Pair], label: str) -> tuple[int, int]:
    """How often the label was given rightly, and how often it was right or given."""
    hits = sum(label in right and label in given for right, given in pairs)
    return hits, sum((label in right) + (label in given) for right, given in pairs)


def _f1(tally: Sequence[int]) -> float:
    """Twice the hits among all that are right or given; 0 where there is none."""
    hits, named = tally
    return 2 * hits / named if named else 0.0
