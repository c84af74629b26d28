"""New projects: a plugin that works, with its test and all that publishing it takes, to begin changing."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from ftcore.declaring import declared
from ftcore.discovery import NAME, PLUGIN_KEYS, announced
from ftcore.errors import Refused
from ftcore.settings import Settings

KINDS = ("method", "task", "model")
SPELLING = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
OPEN = re.compile(r"<<[\w ]+>>|my-name|my_name|MyName")
# Each file of a project, and the template that it is written from.
FILES: Mapping[str, str] = {
    "pyproject.toml": "common/pyproject.toml.in",
    "ftcore_my_name.py": "<<kind>>/module.py.in",
    "test_ftcore_my_name.py": "common/test_module.py.in",
    "README.md": "<<kind>>/README.md.in",
    "LICENSE": "common/<<licence>>.in",
    "CHANGELOG.md": "common/CHANGELOG.md.in",
    ".gitignore": "common/gitignore.in",
    ".github/workflows/ci.yml": "common/ci.yml.in",
}


def create(
    kind: str,
    name: str,
    folder: Path | None = None,
    *,
    author: str | None = None,
    licence: str = "MIT",
    model_type: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """`folder`, else ftcore-NAME here, holds a project that can be published as it is; it appears whole or not at all.

    The author is whom git names unless one is given; `model_type` is a family's, where its name is not.
    """
    from ftcore.merging import staged
    from ftcore.scaffold.facts import facts

    if kind not in KINDS:
        raise Refused(f"'{kind}' is no kind of project; choose one of {', '.join(KINDS)}")
    if model_type and kind != "model":
        raise Refused(f"--type {model_type} is about a model family, and this is a {kind}; leave it out")
    check_name(kind, name)
    project = folder or Path(f"ftcore-{name}")
    if project.exists() and (not project.is_dir() or any(project.iterdir())):
        raise Refused(f"'{project}' exists already; move it away or name another directory with --output")
    written = files(kind, name, facts(kind, name, author, licence, model_type, say))
    with staged(project) as place:
        for file, text in written.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(text, encoding="utf-8")
    return project


def next_steps(project: Path, name: str) -> tuple[str, ...]:
    """The commands to go on with after `create`."""
    return f"cd {project}", "pip install -e '.[test]'", "pytest", f"ftcore check {name}"


def check_name(kind: str, name: str) -> None:
    """Refused when a plugin cannot be called that, or when one is already."""
    if not SPELLING.fullmatch(name) or not NAME.fullmatch(name):
        near = _spelled_well(name)
        meant = f"did you mean '{near}'?" if near else "as in 'my-name'"
        raise Refused(f"'{name}' is no name for a plugin: small letters, digits and single hyphens make one; {meant}")
    if name.replace("-", "_") in {*(option.name for option in declared(Settings)), *PLUGIN_KEYS, "config"}:
        raise Refused(f"'{name}' is what every run has a setting of; give the {kind} another name")
    for offer in announced():
        if offer.name == name:
            raise Refused(f"{offer.label} is installed and has that name; give yours another, or uninstall it")


def _spelled_well(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return "-".join(re.findall(r"[a-z0-9]+", words)).lstrip("-0123456789")[:64]


def files(kind: str, name: str, known: Mapping[str, str]) -> dict[str, str]:
    """The text of every file of the project."""
    module = template(f"{kind}/module.py.in")
    values = {
        **{f"<<{key}>>": value for key, value in known.items()},
        "my-name": name,
        "my_name": name.replace("-", "_"),
        "MyName": class_name(kind, name, module),
    }
    return {filled(file, values): filled(template(filled(source, values)), values) for file, source in FILES.items()}


def template(path: str) -> str:
    """The text of a template."""
    return resources.files("ftcore.scaffold").joinpath("templates", path).read_text(encoding="utf-8")


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with a value wherever one is left open."""
    return OPEN.sub(lambda found: values[found[0]], text)


def class_name(kind: str, name: str, module: str) -> str:
    """The name as a class is called; with the kind where Python or the module has that word already."""
    joined = "".join(part.capitalize() for part in name.split("-"))
    taken = keyword.iskeyword(joined) or re.search(rf"\b{joined}\b", module)
    return f"{joined}{kind.capitalize()}" if taken else joined
