"""A family in the words of its class: the attributes that differ from what every family has."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ftcore.families import LLAMA_ROLES, HFModel
from ftcore.scaffold.architectures import Architecture

ANNOTATIONS = "from collections.abc import Mapping\nfrom typing import ClassVar\n\n"


def described(found: Architecture) -> dict[str, str]:
    """What the templates leave open of a family."""
    attributes = list(_attributes(found))
    annotated = any("ClassVar" in line for line in attributes)
    return {
        "model type": found.model_type,
        "heads": "".join(f"\n- `{head}`" for head in found.heads),
        "imports": ANNOTATIONS if annotated else "",
        "attributes": "\n".join(f"    {line}" for line in attributes),
    }


def notices(found: Architecture) -> list[str]:
    """What the roles do not cover, for whoever goes on writing them."""
    said = [
        f"the role '{role}' is left out: no one pattern tells its modules from the others"
        for role in found.roles.untold
    ]
    nameless = ", ".join(found.roles.nameless)
    said += [f"no role names {nameless}; add what methods may adapt, or excuse the check that asks for it"] * bool(
        nameless
    )
    return said


def _attributes(found: Architecture) -> Iterator[str]:
    yield f"model_types = {_tuple((found.model_type,))}"
    if found.heads != HFModel.heads:
        yield f"heads = {_tuple(found.heads)}"
    if found.unpackable:
        yield f"unpackable = {json.dumps(found.unpackable)}"
    if found.tiny:
        yield f"tiny: ClassVar[Mapping[str, Mapping[str, object]]] = {json.dumps({found.model_type: dict(found.tiny)})}"
    if found.roles.patterns is not LLAMA_ROLES:
        yield "roles: ClassVar[Mapping[str, str]] = {"
        yield from (f"    {json.dumps(role)}: {json.dumps(one)}," for role, one in found.roles.patterns.items())
        yield "}"


def _tuple(texts: tuple[str, ...]) -> str:
    """The texts as a tuple is written."""
    return f"({', '.join(map(json.dumps, texts))}{',' * (len(texts) == 1)})"
