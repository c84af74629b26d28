"""An option is declared once: as text, YAML, Python or JSON it means the same, and a wrong one names who has it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import ftcore
import pytest
import yaml
from ftcore.declaring import build, declared, dump, nearest, options, schema
from ftcore.discovery import offers
from ftcore.errors import Refused
from ftcore.settings import Settings
from pydantic import Field


@options
class Everything:
    """One option of every kind that a plugin may declare."""

    suggested_lr: ClassVar[float] = 1.0

    name: Annotated[str, Field(description="A text that must be given.")]
    count: Annotated[int, Field(ge=1, description="A whole number.")] = 8
    share: Annotated[float, Field(ge=0, lt=1, description="A number.")] = 0.5
    on: Annotated[bool, Field(description="A switch.")] = False
    kind: Annotated[Literal["one", "two"], Field(description="One of two words.")] = "one"
    parts: Annotated[tuple[str, ...], Field(description="Some words.")] = ("a", "b")
    sizes: Annotated[tuple[int, ...], Field(description="Some numbers.")] = ()
    maybe: Annotated[int | None, Field(description="A number or nothing.")] = None
    text: Annotated[str | None, Field(description="A text or nothing.")] = "auto"
    fields: Annotated[dict[str, Any], Field(description="A mapping.")] = Field(default_factory=dict)


FULL: dict[str, object] = {
    "name": "x",
    "count": 3,
    "share": 1e-3,
    "on": True,
    "kind": "two",
    "parts": ["q", "v"],
    "sizes": [1, 2],
    "maybe": 7,
    "text": None,
    "fields": {"a": [1, 2.5, None], "b": {"c": "d"}},
}
TYPED = {
    "name": "x",
    "count": "3",
    "share": "1e-3",
    "on": "true",
    "kind": "two",
    "parts": "q, v",
    "sizes": "1,2",
    "maybe": "7",
    "text": "none",
    "fields": '{"a": [1, 2.5, null], "b": {"c": "d"}}',
}


def plugin_classes() -> list[type[object]]:
    """The classes of every installed plugin of ftcore's own, and the core's settings."""
    return [Settings, *(offer.load() for offer in offers() if offer.distribution.startswith("ftcore-"))]


def required(cls: type[object]) -> dict[str, object]:
    """Values for what `cls` cannot be built without; each of them is a text."""
    return {option.name: "x" for option in declared(cls) if option.required}


def test_flags_yaml_python_and_json_make_the_same_options() -> None:
    built = build(Everything, FULL, "it")
    assert dump(built) == FULL
    assert dump(build(Everything, TYPED, "it")) == FULL
    assert dump(build(Everything, yaml.safe_load(yaml.safe_dump(FULL)), "it")) == FULL
    assert dump(build(Everything, json.loads(json.dumps(dump(built))), "it")) == FULL
    assert dump(Everything(**FULL)) == FULL  # type: ignore[arg-type]


def test_yaml_as_people_write_it_makes_the_same_options() -> None:
    written = "name: x\ncount: 3\nshare: 1e-3\non: yes\nkind: two\nparts: q, v\nsizes: [1, 2]\nmaybe: 7\ntext: null"
    values = {("on" if key is True else key): value for key, value in yaml.safe_load(written).items()}
    assert dump(build(Everything, values, "it")) == {**FULL, "fields": {}}


@pytest.mark.parametrize("cls", plugin_classes(), ids=lambda cls: cls.__name__)
def test_the_defaults_of_every_plugin_survive_a_round_trip(cls: type[object]) -> None:
    first = dump(build(cls, required(cls), "it"))
    assert dump(build(cls, json.loads(json.dumps(first)), "it")) == first
    assert dump(build(cls, yaml.safe_load(yaml.safe_dump(first)), "it")) == first
    assert first.keys() == {option.name for option in declared(cls)}


@pytest.mark.parametrize("cls", plugin_classes(), ids=lambda cls: cls.__name__)
def test_every_option_of_every_plugin_has_a_sentence_and_every_plugin_too(cls: type[object]) -> None:
    assert (cls.__doc__ or "").split("\n")[0].strip()
    assert "dataclass" not in (cls.__doc__ or "")
    for option in declared(cls):
        assert option.help.endswith("."), option.name
        assert option.help[0].isupper(), option.name


@pytest.mark.parametrize("cls", plugin_classes(), ids=lambda cls: cls.__name__)
def test_every_plugin_is_frozen_hashable_and_equal_to_itself_only(cls: type[object]) -> None:
    one, other = (build(cls, required(cls), "it") for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    for option in declared(cls)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, option.name, None)


def test_class_attributes_are_no_options() -> None:
    assert [option.name for option in declared(Everything)] == list(FULL)
    assert declared(int) == ()


def test_what_help_pages_need_is_taken_from_the_declaration() -> None:
    found = {option.name: option for option in declared(Everything)}
    assert [found[name].kind for name in FULL] == [
        "TEXT", "INT", "FLOAT", "BOOL", "one|two", "LIST", "LIST", "INT", "TEXT", "JSON",
    ]  # fmt: skip
    assert found["kind"].choices == ("one", "two")
    assert [name for name, option in found.items() if option.switch] == ["on"]
    assert [name for name, option in found.items() if option.required] == ["name"]
    assert found["fields"].default == {}
    assert found["parts"].default == ("a", "b")


WRONG: dict[str, tuple[Mapping[str, object], list[str]]] = {
    "misspelt": ({"name": "x", "cuont": 1}, ["'cuont'", "did you mean 'count'"]),
    "unlike any": ({"name": "x", "zzzzzz": 1}, ["'zzzzzz'", "it has count, fields"]),
    "missing": ({}, ["needs a value for 'name'"]),
    "text for a number": ({"name": "x", "count": "many"}, ["'count'", "'many'", "integer"]),
    "too small": ({"name": "x", "count": 0}, ["'count'", "0", "greater than or equal to 1"]),
    "too large": ({"name": "x", "share": "1"}, ["'share'", "'1'", "less than 1"]),
    "a fraction for a whole": ({"name": "x", "count": 1.5}, ["'count'", "1.5"]),
    "a switch for a number": ({"name": "x", "count": True}, ["'count'", "True"]),
    "no switch": ({"name": "x", "on": "maybe"}, ["'on'", "'maybe'"]),
    "not of the words": ({"name": "x", "kind": "three"}, ["'kind'", "'three'", "'one' or 'two'"]),
    "a number among words": ({"name": "x", "parts": [1]}, ["'parts'", "1"]),
    "a word among numbers": ({"name": "x", "sizes": "1,b"}, ["'sizes'", "'b'"]),
    "no JSON": ({"name": "x", "fields": "{a: 1}"}, ["{a: 1}", "JSON"]),
    "JSON of another kind": ({"name": "x", "fields": "[1]"}, ["'fields'", "[1]"]),
    "nothing for a number": ({"name": "x", "count": None}, ["'count'", "None"]),
    "no number at all": ({"name": "x", "share": "nan"}, ["'share'", "'nan'"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_option_is_refused_by_owner_name_and_value(wrong: str) -> None:
    values, parts = WRONG[wrong]
    with pytest.raises(Refused) as raised:
        build(Everything, values, "method 'it' (ftcore-it 1.0)")
    message = str(raised.value)
    assert message.startswith("method 'it' (ftcore-it 1.0)")
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message
    assert raised.value.exit_code == 2


def test_options_have_no_positions_and_no_strangers() -> None:
    with pytest.raises((TypeError, ValueError)):
        Everything("x")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="cuont"):
        Everything(name="x", cuont=1)  # type: ignore[call-arg]


def test_a_plugin_without_options_refuses_every_option() -> None:
    with pytest.raises(Refused, match="has no option 'r'; it takes no options"):
        build(options(type("Bare", (), {"__annotations__": {}})), {"r": 1}, "method 'bare'")


def test_the_schema_is_json_and_knows_every_option() -> None:
    described = json.loads(json.dumps(schema(Everything)))
    assert described["properties"].keys() == FULL.keys()
    assert described["properties"]["count"] == {
        "default": 8, "description": "A whole number.", "minimum": 1, "title": "Count", "type": "integer",
    }  # fmt: skip
    assert described["required"] == ["name"]
    assert described["additionalProperties"] is False


def test_the_nearest_name_is_near_or_none() -> None:
    assert nearest("lroa", ["lora", "full"]) == "lora"
    assert nearest("zzz", ["lora", "full"]) is None
    assert nearest("x", set()) is None


def test_numbers_keep_every_digit_through_text() -> None:
    for value in (1e-8, 0.1 + 0.2, 2 / 3, math.nextafter(1, 0)):
        assert build(Everything, {"name": "x", "share": repr(value)}, "it").share == value


def test_options_are_part_of_the_public_interface() -> None:
    assert ftcore.options is options


@options
class Aliased:
    """Something whose option is called as one of its methods."""

    kept: Annotated[Literal["no", "yes"], Field(alias="merge", description="Whether it is.")] = "no"

    def merge(self) -> str:
        """Not an option."""
        return self.kept


def test_an_option_may_have_the_name_of_a_method_by_an_alias() -> None:
    one = build(Aliased, {"merge": "yes"}, "it")
    assert (one.merge(), dump(one)) == ("yes", {"merge": "yes"})
    assert [(option.name, option.attribute) for option in declared(Aliased)] == [("merge", "kept")]
    assert schema(Aliased)["properties"].keys() == {"merge"}
    with pytest.raises(Refused, match="it has no option 'kept'"):
        build(Aliased, {"kept": "yes"}, "it")
    with pytest.raises(Refused, match="it option 'merge' is 'maybe'"):
        build(Aliased, {"merge": "maybe"}, "it")
