"""What a new project says of itself: who wrote it, what it needs, and with what it is used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from typing import Any

from packaging.version import Version

from ftcore.declaring import declared
from ftcore.discovery import Kind, declared_datum, sound
from ftcore.errors import Refused
from ftcore.families import HFModel

LICENCES = ("MIT", "Apache-2.0")
SUMMARIES: Mapping[str, str] = {
    "method": "a low-rank update beside the chosen layers.",
    "task": "prompts and completions, loss on the completion and its end.",
}


def facts(
    kind: str, name: str, author: str | None, licence: str, model_type: str | None, say: Callable[[str], None]
) -> dict[str, str]:
    """A value for everything that the templates leave open beside the name."""
    if licence not in LICENCES:
        raise Refused(f"there is no text of the licence '{licence}'; choose one of {', '.join(LICENCES)}")
    known = author_of(author)
    return {
        "kind": kind,
        "licence": licence,
        "author": known,
        "author in quotes": json.dumps(known, ensure_ascii=False),
        "year": str(date.today().year),
        "date": date.today().isoformat(),
        "python": python_range(),
        "pythons": ", ".join(json.dumps(python) for python in pythons()),
        "ftcore": requirement(metadata.version("ftcore")),
        **(_family(name, model_type, say) if kind == "model" else _other(kind)),
    }


def _other(kind: str) -> dict[str, str]:
    return {"summary": SUMMARIES[kind], **partners(("causal-lm",))}


def _family(name: str, model_type: str | None, say: Callable[[str], None]) -> dict[str, str]:
    from ftcore.scaffold.architectures import architecture, model_type_of
    from ftcore.scaffold.family import described, notices

    found = architecture(model_type_of(name, model_type))
    for notice in notices(found):
        say(notice)
    return {"summary": f"checkpoints of the type {found.model_type}.", **described(found), **partners(found.heads)}


def author_of(given: str | None) -> str:
    """The author's name in one line; Refused when nobody knows it."""
    name = " ".join((_git_user() if given is None else given).split())
    if not name:
        raise Refused("the licence needs an author, and git has no user.name; pass --author NAME")
    return name


def _git_user() -> str:
    try:
        return subprocess.run(["git", "config", "user.name"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def requirement(version: str) -> str:
    """The range of ftcore that a plugin made with `version` is for: up to the release that may break it."""
    major, minor = (*Version(version).release, 0)[:2]
    end = f"0.{minor + 1}" if major == 0 else str(major + 1)
    return f"ftcore>={major}.{minor},<{end}"


def python_range() -> str:
    """The Python that the core asks for."""
    return metadata.metadata("ftcore")["Requires-Python"]


def pythons() -> list[str]:
    """The oldest Python that the core asks for, and the running one."""
    oldest = re.findall(r">=\s*(\d+\.\d+)", python_range())
    return list(dict.fromkeys([*oldest[:1], f"{sys.version_info.major}.{sys.version_info.minor}"]))


def partners(heads: tuple[str, ...]) -> dict[str, str]:
    """Installed plugins with which the commands of a README can be typed as they stand, or words for their kinds."""
    tasks = _named("task", lambda cls: declared_datum(cls, "head") in heads)
    models = _named("model", lambda cls: not set(heads).isdisjoint(declared_datum(cls, "heads")))
    methods = _named("method", lambda cls: not declared_datum(cls, "alone") and not _asks(cls))
    ready = [name for name, cls in models.items() if issubclass(cls, HFModel) and cls.starter and not cls.unpackable]
    return {
        "task": next(iter(tasks), "TASK"),
        "model": next(iter([*ready, *models]), "FAMILY"),
        "method": next(iter(methods), "METHOD"),
    }


def _named(kind: Kind, fits: Callable[[type[Any]], bool]) -> dict[str, type[Any]]:
    found = {offer.name: offer.load() for offer in sound(kind)}
    return {name: cls for name, cls in found.items() if fits(cls)}


def _asks(cls: type[Any]) -> bool:
    """Whether it has an option without a value."""
    return any(option.required for option in declared(cls))
