"""Labels that the rows of a task decide: their order, their numbers, and what a model is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ftcore.problems import abridged, refuse

if TYPE_CHECKING:
    from torch import nn


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The labels once each: numbers by their size, then names by the alphabet."""
    return tuple(
        sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    )


def told(names: Sequence[str], problem_type: str | None = None) -> dict[str, Any]:
    """What `load_kwargs` says of the labels; nothing where there are none yet."""
    if not names:
        return {}
    numbers = {name: number for number, name in enumerate(names)}
    fields = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    return {**fields, "problem_type": problem_type} if problem_type else fields


def known_to(model: nn.Module) -> tuple[str, ...]:
    """The labels that a model has, in their order."""
    config: Any = model.config
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def number_of(label: str, names: Sequence[str], field: str) -> int:
    """The label's number among `names`, or the number itself where none of them is one; BadRow for any other."""
    if label in names:
        return names.index(label)
    counts = label.isdecimal() and int(label) < len(names) and not any(name.isdecimal() for name in names)
    if not counts:
        refuse(
            field, f"is {label!r}, which is none of {abridged(list(names))}", "mend it, or train on rows that have it"
        )
    return int(label)
