"""Precision, recall and F1 of entities, as seqeval computes them, and the accuracy of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftcore_token_classify.entities import entities, names_entities


def scored(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures over the lines whose labels are known; of entities, where labels name any.

    An entity is right when its label, its first and its last word are; all of them count alike.
    """
    pairs = [(line["tags"], line["predicted_tags"]) for line in lines if "tags" in line]
    words = sum(len(right) for right, _ in pairs)
    if not words:
        return {}
    hits = sum(one == other for right, given in pairs for one, other in zip(right, given, strict=True))
    named = names_entities(label for pair in pairs for labels in pair for label in labels)
    return {"accuracy": hits / words, **(_of_entities(pairs) if named else {})}


def _of_entities(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    right, given = ({(at, *one) for at, pair in enumerate(pairs) for one in entities(pair[side])} for side in (0, 1))
    hits = len(right & given)
    return {
        "precision": hits / len(given) if given else 0.0,
        "recall": hits / len(right) if right else 0.0,
        "f1": 2 * hits / (len(right) + len(given)) if hits else 0.0,
    }
