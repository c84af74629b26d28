"""Which plugins may take part, the ftcore they were built for, and what their code is known again by."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VARIABLE = "FTCORE_PLUGINS"


def normal(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# The allow-list


@dataclass(frozen=True)
class AllowList:
    """The distributions whose plugins are offered, and how that was said."""

    distributions: tuple[str, ...]
    said: str

    def admits(self, distribution: str) -> bool:
        """Whether plugins of `distribution` are offered."""
        return normal(distribution) in map(normal, self.distributions)


_allowed: ContextVar[AllowList | None] = ContextVar("ftcore plugins from", default=None)


@contextmanager
def only_from(*distributions: str, said: str = "") -> Iterator[None]:
    """Inside, only plugins of these distributions are offered, none where none is named; nothing else is imported.

    It holds for the thread or task that enters it, in place of the environment's FTCORE_PLUGINS.
    """
    before = _allowed.set(AllowList(distributions, said or f"only_from({', '.join(map(repr, distributions))})"))
    try:
        yield
    finally:
        _allowed.reset(before)


def allowed() -> AllowList | None:
    """The list that holds here: the innermost `only_from`, else the environment's; None offers everything."""
    found = os.environ.get(VARIABLE)
    if _allowed.get() is not None or found is None:
        return _allowed.get()
    return AllowList(separated(found), f"{VARIABLE}={found}")


def separated(text: str) -> tuple[str, ...]:
    """The names in a list joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


# The contract that a plugin was built for


def names_ftcore(requirement: str) -> bool:
    """Whether a requirement of a distribution is on ftcore itself."""
    return bool(re.match(r"ftcore(?![\w.-])", requirement.strip(), re.IGNORECASE))


def built_for_another(requirements: Sequence[str]) -> str:
    """The range of ftcore that these requirements state, if the installed one is outside of it; else empty.

    A pre-release counts as the release it leads to.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import Version

    installed = Version(metadata.version("ftcore"))
    meant = (installed, Version(installed.base_version)) if installed.is_prerelease else (installed,)
    for line in requirements:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            return line
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        if not any(wanted.specifier.contains(version, prereleases=True) for version in meant):
            return f"ftcore {','.join(sorted(map(str, wanted.specifier), reverse=True))}"
    return ""


# The code


def code_digest(cls: type[object], plugins: Collection[str]) -> str | None:
    """A sha256 over the Python sources of a plugin; None where there are none to be found.

    These are the packages of `plugins` (top-level modules) that define the class and its bases, whole; of a class that
    is installed nowhere its module; and of one in a script or a notebook its own text. The core, the standard library
    and other installed libraries do not count, nor where the files lie.
    """
    sources: dict[str, bytes] = {}
    for part in own_classes(cls, plugins):
        sources.update(_sources(part, plugins))
    if not sources:
        return None
    hashed = hashlib.sha256()
    for name in sorted(sources):
        hashed.update(f"{name}\n{hashlib.sha256(sources[name]).hexdigest()}\n".encode())
    return hashed.hexdigest()


def own_classes(cls: type[object], plugins: Collection[str]) -> list[type[object]]:
    """A class and its bases, as far as they are code of plugins or installed nowhere."""
    return [part for part in cls.__mro__ if _is_own(part.__module__, plugins)]


def _is_own(module: str, plugins: Collection[str]) -> bool:
    top = module.partition(".")[0]
    if top in plugins:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    library = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return not library and top != "ftcore" and top not in sys.stdlib_module_names


def _sources(part: type[object], plugins: Collection[str]) -> dict[str, bytes]:
    if part.__module__ == "__main__":
        return _text(part)
    if part.__module__.partition(".")[0] not in plugins:
        return _file(part.__module__)
    package = _package(part.__module__)
    folders = [Path(folder) for folder in getattr(sys.modules.get(package), "__path__", ())]
    found = {
        f"{package}/{file.relative_to(folder).as_posix()}": file.read_bytes()
        for folder in folders
        for file in folder.rglob("*.py")
    }
    return found or _file(package)


def _package(module: str) -> str:
    """The outermost package of a module that has a file, which namespace packages have not."""
    parts = module.split(".")
    prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return next((p for p in prefixes if getattr(sys.modules.get(p), "__file__", None)), module)


def _file(module: str) -> dict[str, bytes]:
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return {module: file.read_bytes()} if file.suffix == ".py" and file.is_file() else {}


def _text(part: type[object]) -> dict[str, bytes]:
    try:
        return {part.__qualname__: inspect.getsource(part).encode()}
    except (OSError, TypeError):
        return {}
