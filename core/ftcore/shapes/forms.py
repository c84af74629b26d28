"""Rows in a form of the user's own, made rows of a known shape: by columns, by templates, or by a dataset's name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Refused
from ftcore.problems import KNOWN_KEYS, BadRow, abridged, refuse
from ftcore.records import Record
from ftcore.shapes.maps import MAPS

if TYPE_CHECKING:
    import jinja2

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Form:
    """What is done to a row before its shape is recognised; at most one of the three is given.

    `columns` are (known key, path of the column), `templates` (known key, its text or nested texts), and `name` is that
    of a dataset.
    """

    columns: tuple[tuple[str, str], ...] = ()
    templates: tuple[tuple[str, object], ...] = ()
    source: str = ""
    name: str = ""


AS_IT_IS = Form()


def form_from(columns: Sequence[str], template: str | None, name: str | None) -> Form:
    """The form that these options describe, or Refused; the template is read from its file."""
    if name is not None and name not in MAPS:
        near = difflib.get_close_matches(name, MAPS, n=1, cutoff=0.5)
        known = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(MAPS)}."
        raise Refused(f"--data-format knows no rows called {name!r}; {known}")
    templates = _templates(template) if template is not None else ()
    named = [one for given in columns for one in re.split(r",(?=[^,=]+=)", given)]
    return Form(tuple(map(_column, named)), templates, template or "", name or "")


def reshaped(record: Record, form: Form) -> Record:
    """The row as the form makes it, at its place, or BadRow; unsafe templates are refused."""
    try:
        return replace(record, fields=_fields(record.fields, form))
    except BadRow as error:
        raise BadRow(replace(error.problem, place=record.place)) from None


def _fields(fields: Fields, form: Form) -> Fields:
    if form.columns:
        return {key: _at(fields, path) for key, path in form.columns}
    if form.templates:
        return {key: _rendered(value, fields, f"{form.source}: {key}") for key, value in form.templates}
    return MAPS[form.name].apply(fields) if form.name else fields


# --- columns -----------------------------------------------------------------------------------------------


def _column(given: str) -> tuple[str, str]:
    key, equals, path = (part.strip() for part in given.partition("="))
    if not (key and equals and path):
        raise Refused(f"--columns was given {given!r}; write what a column is to be, as in input=Question.")
    return _known(key, "--columns"), path


def _known(key: str, where: str) -> str:
    if key in KNOWN_KEYS:
        return key
    near = difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "use one that a shape has, such as input, output or messages."
    raise Refused(f"{where} names {key!r}, which no shape of row has; {hint}")


def _at(fields: Fields, path: str) -> object:
    """What stands under a column, or under the parts of its path."""
    if path in fields:
        return fields[path]
    value: object = fields
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            refuse("row", f"has no column {path}; it has {_columns(fields)}", "give --columns a name that the row has")
    return value


def _columns(fields: Fields) -> str:
    return abridged([key[:60] for key in fields]) or "none"


# --- templates ---------------------------------------------------------------------------------------------


def _templates(source: str) -> tuple[tuple[str, object], ...]:
    import yaml

    try:
        held = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"--row-template {source} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--row-template {source} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(held, dict) or not held:
        raise Refused(f'--row-template {source} holds no keys; write lines such as: instruction: "{{{{ en }}}}".')
    for key, value in held.items():
        _known(str(key), f"--row-template {source}")
        _check(value, f"{source}: {key}")
    return tuple((str(key), value) for key, value in held.items())


def _check(value: object, where: str) -> None:
    for text in _texts(value):
        _compiled(text, where)


def _texts(value: object) -> list[str]:
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


@lru_cache(maxsize=256)
def _compiled(text: str, where: str) -> jinja2.Template:
    """A template that reaches nothing but the row; a name that the row lacks is an error."""
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=lambda value: "" if value is None else value
    )
    try:
        return sandbox.from_string(text)
    except TemplateSyntaxError as error:
        raise Refused(f"{where} is no Jinja template: {error.message} (line {error.lineno} of it).") from error


def _rendered(value: object, fields: Fields, where: str) -> object:
    if isinstance(value, dict):
        return {key: _rendered(inner, fields, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rendered(inner, fields, where) for inner in value]
    return _text(value, fields, where) if isinstance(value, str) else value


def _text(text: str, fields: Fields, where: str) -> str:
    from jinja2 import UndefinedError
    from jinja2.exceptions import SecurityError

    try:
        return _compiled(text, where).render({"row": fields, **fields})
    except UndefinedError as error:
        found = f"does not have what {where} asks for ({error.message}); it has {_columns(fields)}"
        refuse("row", found, "mend the template, or add the column")
    except SecurityError as error:
        raise Refused(f"{where} is refused: {error}; a template may only read the row.") from error
    except Exception as error:  # whatever the expressions of the template raise on this row's values
        refuse(
            "row", f"cannot be rendered by {where} ({type(error).__name__}: {error})", "mend the template or the row"
        )
