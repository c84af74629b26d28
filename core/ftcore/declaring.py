"""Options declared once: from a field come its flag, its YAML key, its validation, its help and its saved value."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticUndefined

from ftcore.errors import Refused

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[T]) -> type[T]:
    """`cls` is a frozen, validated dataclass whose fields are its options; two instances never compare equal."""
    made = validated(frozen=True, eq=False, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    return typing.cast("type[T]", made)


@dataclass(frozen=True)
class Option:
    """One declared option as help pages, flags and the generated reference need it.

    `name` is what users write, `attribute` where an instance holds it.
    """

    name: str
    kind: str
    default: object
    help: str
    choices: tuple[str, ...] = ()
    switch: bool = False
    required: bool = False
    harmless: bool = False
    section: str = ""
    attribute: str = ""


def declared(cls: type[object]) -> tuple[Option, ...]:
    """The options of `cls` in the order they are written; a class that declares none has an empty tuple."""
    return tuple(_option(attribute, field) for attribute, field in _fields(cls).items())


def _fields(cls: type[object]) -> Mapping[str, Any]:
    return typing.cast("Mapping[str, Any]", getattr(cls, "__pydantic_fields__", {}))


def _option(attribute: str, field: Any) -> Option:
    extra = field.json_schema_extra or {}
    default = field.default_factory() if field.default_factory else field.default
    return Option(
        name=field.alias or attribute,
        kind=_spelling(field.annotation),
        default=None if default is PydanticUndefined else default,
        help=field.description or "",
        choices=_choices(field.annotation),
        switch=field.annotation is bool,
        required=field.is_required(),
        harmless=bool(extra.get("harmless")),
        section=str(extra.get("section", "")),
        attribute=attribute,
    )


def build(cls: type[T], values: Mapping[str, object], who: str) -> T:
    """An instance of `cls` from plain values or their text; Refused names `who`, the option and what was given."""
    known = {option.name for option in declared(cls)}
    for name in values:
        if name not in known:
            raise Refused(f"{who} has no option '{name}'; {_suggestion(name, known)}")
    hints = {field.alias or attribute: field.annotation for attribute, field in _fields(cls).items()}
    try:
        return cls(**{name: _parsed(value, hints[name]) for name, value in values.items()})
    except ValidationError as invalid:
        raise Refused(_sentence(invalid, who)) from None
    except json.JSONDecodeError as invalid:
        raise Refused(f"{who} was given '{invalid.doc}', which is no JSON: {invalid.msg}") from None


def dump(instance: object) -> dict[str, Any]:
    """The options of `instance` as plain JSON values, from which `build` makes its equal again."""
    if not declared(type(instance)):
        return {}
    return typing.cast("dict[str, Any]", TypeAdapter(type(instance)).dump_python(instance, mode="json", by_alias=True))


def schema(cls: type[object]) -> dict[str, Any]:
    """The JSON schema of the options of `cls`, for editors."""
    return TypeAdapter(cls).json_schema() if declared(cls) else {"type": "object", "properties": {}}


def nearest(name: str, known: Sequence[str] | set[str]) -> str | None:
    """The known name that `name` most likely meant, if one is near."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None


def _suggestion(name: str, known: set[str]) -> str:
    near = nearest(name, known)
    if near:
        return f"did you mean '{near}'?"
    return f"it has {', '.join(sorted(known))}" if known else "it takes no options"


def _sentence(invalid: ValidationError, who: str) -> str:
    error = invalid.errors()[0]
    place = ".".join(str(part) for part in error["loc"][:1])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{who} needs a value for '{place}'"
    if not place:
        return f"{who}: {message}"
    return f"{who} option '{place}' is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _parsed(value: object, annotation: Any) -> object:
    """Text from a command line turned into the shape that `annotation` asks for; everything else as it is."""
    kinds = _members(annotation)
    if isinstance(value, bool) and bool not in kinds:
        return repr(value)  # a switch is no number, whatever Python thinks
    if not isinstance(value, str):
        return value
    if value.lower() in ("none", "null") and type(None) in kinds:
        return None
    if any(typing.get_origin(kind) is dict or kind is dict for kind in kinds):
        return json.loads(value)
    if any(typing.get_origin(kind) in (tuple, list) for kind in kinds):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(annotation) for member in _members(part))
    return (annotation,)


def _choices(annotation: Any) -> tuple[str, ...]:
    literals = [kind for kind in _members(annotation) if typing.get_origin(kind) is typing.Literal]
    return tuple(str(value) for kind in literals for value in typing.get_args(kind))


def _spelling(annotation: Any) -> str:
    words = []
    for kind in _members(annotation):
        origin = typing.get_origin(kind)
        if origin is typing.Literal:
            words += [str(value) for value in typing.get_args(kind)]
        elif origin in (tuple, list):
            words.append("LIST")
        elif origin is dict:
            words.append("JSON")
        elif kind is not type(None):
            words.append({int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL"}.get(kind, str(kind)))
    return "|".join(words)
