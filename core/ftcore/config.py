"""A run as it is written down: keywords, YAML or a saved ftcore.json become one recipe, and a recipe plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcore.declaring import build, declared, dump, nearest
from ftcore.discovery import PLUGIN_KEYS, Chosen, Kind, check_combination, choose, spelling, with_options
from ftcore.errors import Refused
from ftcore.settings import Settings


@dataclass(frozen=True)
class Recipe:
    """A run, resolved: the settings and every plugin with its options; `filled` are those that the rows decided."""

    settings: Settings
    chosen: tuple[Chosen, ...]
    filled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_filled(self, filled: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """The recipe with options that rows decided, by the name of their plugin."""
        chosen = tuple(with_options(c, filled[c.name]) if filled.get(c.name) else c for c in self.chosen)
        return replace(self, chosen=chosen, filled=filled)

    def named(self, kind: Kind) -> str:
        """The names of the plugins of one kind, joined as a user types them."""
        return "+".join(c.name for c in self.chosen if c.kind == kind)

    @property
    def title(self) -> str:
        """Method, task and model in one line."""
        return " · ".join(self.named(kind) for kind in ("method", "task", "model"))

    @property
    def output(self) -> Path:
        """The directory of the run."""
        default = "runs/" + "-".join(self.named(kind) for kind in ("method", "task", "model"))
        return Path(self.settings.output or default)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain JSON values, from which `resolve` makes its equal again."""
        written: dict[str, Any] = {
            key: "+".join(spelling(c) for c in self.chosen if c.kind == kind)
            for key, kind in PLUGIN_KEYS.items()
            if self.named(kind)
        }
        written.update(dump(self.settings))
        written.update({c.name: dump(c.plugin) for c in self.chosen})
        return written


def resolve(values: Mapping[str, object]) -> Recipe:
    """The recipe that `values` (the keys of a YAML file) describe; Refused names the key at fault."""
    given = dict(values)
    named = {key: _listed(given.pop(key, None)) for key in PLUGIN_KEYS}
    for key in ("method", "task", "model"):
        if not named[key]:
            raise Refused(f"no {key} is named; give --{key} NAME ('ftcore plugins' lists the installed ones)")
    for key in ("task", "model"):
        if len(named[key]) > 1:
            raise Refused(f"{len(named[key])} {key}s are named; a run has one {key}")
    names = {one.rpartition(":")[2] for listed in named.values() for one in listed if isinstance(one, str)}
    empty = {name for name in names if name in given and given[name] is None}
    nested = {key: given.pop(key) or {} for key in list(given) if isinstance(given[key], Mapping) or key in empty}
    chosen = [_chosen(PLUGIN_KEYS[key], one, nested) for key in PLUGIN_KEYS for one in named[key]]
    check_combination(chosen)
    if nested:
        raise Refused(_stray(next(iter(nested)), chosen))
    for path_key in ("data", "eval_data"):
        paths = given.get(path_key)
        if isinstance(paths, (str, Path)):
            given[path_key] = [str(paths)]
        elif isinstance(paths, (list, tuple)):
            given[path_key] = [str(path) if isinstance(path, Path) else path for path in paths]
    for path_key in ("checkpoint", "output"):
        if isinstance(given.get(path_key), Path):
            given[path_key] = str(given[path_key])
    return Recipe(build(Settings, given, "the run"), tuple(chosen))


def overridden(saved: Mapping[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    """The keys of a saved run with others laid over them, options of a plugin one by one.

    A plugin that is replaced takes its options with it.
    """
    replaced = {name.rpartition(":")[2] for key in PLUGIN_KEYS if key in overrides for name in _names(saved.get(key))}
    kept = {key: value for key, value in saved.items() if key not in replaced}
    return {**kept, **{key: _laid_over(kept.get(key), value) for key, value in overrides.items()}}


def _laid_over(saved: object, value: object) -> object:
    return {**saved, **value} if isinstance(saved, Mapping) and isinstance(value, Mapping) else value


def _names(given: object) -> list[str]:
    return [name for name in _listed(given) if isinstance(name, str)]


def _listed(given: object) -> list[object]:
    if given is None:
        return []
    if isinstance(given, str):
        return [part for part in given.split("+") if part]
    return list(given) if isinstance(given, Sequence) else [given]


def _chosen(kind: Kind, given: object, nested: dict[str, object]) -> Chosen:
    if isinstance(given, (bool, int, float, Mapping, type)):
        raise Refused(f"{kind} is {given!r}: give a plugin's name, its options under that name, or an instance")
    name = given.rpartition(":")[2] if isinstance(given, str) else type(given).__name__.lower()
    options = nested.pop(name, {})
    assert isinstance(options, Mapping)
    return choose(kind, given, options)


def _stray(key: str, chosen: Sequence[Chosen]) -> str:
    names = {c.name for c in chosen}
    near = nearest(key, names | {option.name for option in declared(Settings)})
    hint = f"did you mean '{near}'?" if near else f"the plugins of this run are {', '.join(sorted(names))}"
    return f"options are given for '{key}', which this run does not name; {hint}"


def read(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file or of a saved ftcore.json; Refused names file, line and what is wrong."""
    import yaml

    file = Path(path)
    if not file.is_file():
        siblings = {p.name for p in file.parent.glob("*")} if file.parent.is_dir() else set()
        near = nearest(file.name, siblings)
        raise Refused(f"there is no run file '{file}'; " + (f"did you mean '{near}'?" if near else "check the path"))
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as broken:
        mark = getattr(broken, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        problem = getattr(broken, "problem", None) or broken
        raise Refused(f"{place}: this is no YAML ({problem}); mend the line") from None
    if not isinstance(values, dict):
        raise Refused(f"{file} holds {type(values).__name__}, not keys such as 'method: NAME'")
    saved = values.get("run") if "ftcore" in values else values
    return {str(key).replace("-", "_"): value for key, value in _mapping(saved, file).items()}


def _mapping(values: object, file: Path) -> Mapping[str, object]:
    if not isinstance(values, Mapping):
        raise Refused(f"{file} holds no run; give a YAML file with keys or the ftcore.json of a run")
    return values


@dataclass(frozen=True)
class Change:
    """One difference between a saved run and the one asked for now."""

    key: str
    before: object
    now: object
    harmless: bool

    def __str__(self) -> str:
        return f"{self.key} was {json.dumps(self.before)} and is now {json.dumps(self.now)}"


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Every option or fingerprint in which two runs differ, nested ones under dotted keys."""
    harmless = {option.name for option in declared(Settings) if option.harmless} | {"checkpoint"}
    found: list[Change] = []
    for key in sorted(saved.keys() | now.keys()):
        before, after = saved.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(Change(prefix + key, before, after, not prefix and key in harmless))
    return found
