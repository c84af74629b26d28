"""Which shape a row has, told by its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftcore.shapes.asking import ASKINGS

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Shape:
    """A name for people, the keys that a row of it has, and what more must hold of them."""

    name: str
    keys: frozenset[str]
    fits: Callable[[Fields], bool] = lambda fields: True

    def holds(self, fields: Fields) -> bool:
        """The row is of this shape."""
        return fields.keys() >= self.keys and self.fits(fields)


def _shape(name: str, *keys: str, fits: Callable[[Fields], bool] = lambda fields: True) -> Shape:
    return Shape(name, frozenset(keys), fits)


def _is_tree(fields: Fields) -> bool:
    return isinstance(fields["prompt"], dict)


def _has_rounds(fields: Fields) -> bool:
    held = fields["conversation"]
    return isinstance(held, list) and all(isinstance(one, dict) and "input" in one for one in held[:1])


# The first that holds names the row.
SHAPES = (
    _shape("chosen/rejected", "chosen", "rejected"),
    _shape("messages", "messages"),
    _shape("sharegpt", "conversations"),
    _shape("xtuner conversation", "conversation", fits=_has_rounds),
    _shape("oasst tree", "prompt", fits=_is_tree),
    _shape("moss", "chat"),
    _shape("moss plain_text", "plain_text"),
    _shape("ranked answers", "instruction", "output", fits=lambda fields: isinstance(fields["output"], list)),
    _shape("squad", "context", "question", "answers"),
    _shape("tokens/tags", "tokens", "tags"),
    _shape("tokens/tags", "tokens", "ner_tags"),
    _shape("tokens/tags", "words", "tags"),
    _shape("tokens/tags", "words", "labels"),
    _shape("tokens/tags", "tokens", "labels"),
    _shape("text/entities", "text", "entities"),
    *(_shape(asking.name, asking.ask, asking.answer) for asking in ASKINGS),
    _shape("sentence pair", "sentence1", "sentence2"),
    _shape("sentence pair", "premise", "hypothesis"),
    _shape("sentence pair", "question1", "question2"),
    _shape("sentence pair", "text1", "text2"),
    _shape("sentence pair", "text_a", "text_b"),
    _shape("sentence pair", "question", "sentence"),
    _shape("text/label", "text", "label"),
    _shape("text/labels", "text", "labels"),
    _shape("text/label", "sentence", "label"),
    _shape("text", "text"),
)
UNKNOWN = "unknown"


def shape_of(fields: Fields) -> str:
    """What people call the shape that these keys have, or `unknown`."""
    return next((shape.name for shape in SHAPES if shape.holds(fields)), UNKNOWN)


def is_shape(name: str, fields: Fields) -> bool:
    """The row has the keys of that shape, whichever comes first."""
    return any(shape.name == name and shape.holds(fields) for shape in SHAPES)
