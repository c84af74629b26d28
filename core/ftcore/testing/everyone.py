"""What every plugin promises, whatever it is: cheap to look at, sound options, hooks that exist."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError
from typing import Any

from ftcore.declaring import build, declared, dump
from ftcore.discovery import Kind, bind
from ftcore.errors import Refused
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Check, Failed, kind_of
from ftcore.testing.manners import check_leaves_the_process_alone
from ftcore.training import Core

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "tensorflow", "jax")
IMPORT_SECONDS = 30.0
# Which kinds the core asks; the rest of a plugin's hooks would never be called, or would displace another plugin's,
# unless they wrap it.
ASKED: Mapping[str, tuple[Kind, ...]] = {
    "load_model": ("model",),
    "prepare_data": ("task",),
    "inject_adapter": ("method",),
    "save_adapter": ("method",),
    "load_adapter": ("method",),
    "merge": ("method",),
    "load_kwargs": ("method", "task", "model", "extension"),
    "train_step": ("method", "task", "model", "extension"),
    "create_optimizer": ("method", "task", "model", "extension"),
}
NEEDED: Mapping[Kind, str] = {"method": "inject_adapter", "task": "prepare_data", "model": "load_model"}

# What the child process tells about an import: the heavy libraries it loaded, and what else is different now.
IMPORT = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from ftcore.testing import fresh, neighbours
import ftcore.families, ftcore.records, yaml
heavy = set(request["heavy"]) & set(sys.modules)
before = neighbours.process()
fresh.module(request["module"], request["file"])
after = neighbours.process()
found = sorted((set(request["heavy"]) & set(sys.modules)) - heavy)
sys.stderr.write("\\nKIT " + json.dumps({"heavy": found, "changed": neighbours.changed(before, after)}))
"""


def check_imports_nothing_heavy(plugin: object, bench: Bench | None = None) -> None:
    """Importing its module loads no torch, transformers, peft or the like, so that looking at plugins is cheap."""
    told = _import_of(plugin, bench)
    if told["heavy"]:
        raise Failed(
            f"importing {type(plugin).__module__} loads {', '.join(told['heavy'])}; "
            "import them inside the function that needs them"
        )


def check_importing_changes_nothing(plugin: object, bench: Bench | None = None) -> None:
    """Importing its module prints nothing and leaves random state, environment, logging and directory alone."""
    told = _import_of(plugin, bench)
    if told["printed"]:
        raise Failed(f"importing {type(plugin).__module__} prints {told['printed'][:60]!r}; take the print out")
    if told["changed"]:
        raise Failed(f"importing {type(plugin).__module__} changes {told['changed'][0]}; do that in no module body")


def _import_of(plugin: object, bench: Bench | None) -> Mapping[str, Any]:
    """What a plain new interpreter tells about importing the plugin's module."""
    return bench.once("import", lambda: _imported(plugin)) if bench else _imported(plugin)


def _imported(plugin: object) -> Mapping[str, Any]:
    described = fresh.reference(plugin)
    request = {"path": sys.path, "heavy": HEAVY, "module": described["module"], "file": described["file"]}
    command = [sys.executable, "-c", IMPORT, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"importing {described['module']} had not finished after {IMPORT_SECONDS:.0f} s") from None
    said, marker, told = done.stderr.rpartition("\nKIT ")
    if not marker:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Failed(f"importing {described['module']} ends the process: {last}")
    return {**json.loads(told), "printed": (done.stdout + said).strip()}


def check_is_immutable(plugin: object, bench: Bench | None = None) -> None:
    """It is frozen and hashes, two of it never compare equal, and no option holds what can be changed in place."""
    twin = _twin(plugin)
    if plugin == twin:
        raise Failed("two instances with the same options compare equal; declare it with @ftcore.options")
    try:
        hash(plugin)
    except TypeError:
        raise Failed("it has no hash; declare it with @ftcore.options") from None
    for name in [*(option.attribute for option in declared(type(plugin))), "a_new_attribute"]:
        try:
            setattr(twin, name, getattr(twin, name, None))
        except (FrozenInstanceError, AttributeError):
            continue
        raise Failed(f"its attribute '{name}' can be set after it is made; declare it with @ftcore.options")
    for option in declared(type(plugin)):
        if isinstance(getattr(plugin, option.attribute), (list, set)):
            raise Failed(f"option '{option.name}' holds a list or set, which can change; declare it as a tuple")


def check_is_documented(plugin: object, bench: Bench | None = None) -> None:
    """Its class says in a sentence of its own what it does."""
    said = (vars(type(plugin)).get("__doc__") or "").strip()
    if not said or said.startswith(f"{type(plugin).__name__}("):
        raise Failed(f"{type(plugin).__name__} has no docstring; say in a sentence what it does")
    first = " ".join(said.partition("\n\n")[0].split())
    if len(first.split()) < 2 or first[-1] not in ".:`":
        raise Failed(f"the docstring of {type(plugin).__name__} opens with {first!r}, which is no sentence; end it so")


def check_every_option_has_help(plugin: object, bench: Bench | None = None) -> None:
    """Every option says in a sentence what it means."""
    for option in declared(type(plugin)):
        if len(option.help.split()) < 2 or not option.help.endswith("."):
            raise Failed(
                f"option '{option.name}' has the help {option.help!r}; give a sentence: Field(description=\"….\")"
            )


def check_options_survive(plugin: object, bench: Bench | None = None) -> None:
    """An option given as a flag, in YAML, in Python or in the saved JSON is one value, and what was given is kept."""
    cls, given = type(plugin), _saved(plugin)
    _same_everywhere(cls, given)
    for option in declared(cls):
        for value in values_of(typing.get_type_hints(cls, include_extras=False)[option.attribute]):
            made = _built(cls, {**given, option.name: value})
            if made is None:
                continue
            kept = getattr(made, option.attribute)
            if isinstance(value, (bool, int, float, tuple)) and kept != value:
                raise Failed(f"option '{option.name}' was given {value!r} and holds {kept!r}; refuse it or keep it")
            _same_everywhere(cls, dump(made))


def _saved(plugin: object) -> Mapping[str, Any]:
    try:
        return dump(plugin)
    except Exception as fault:
        raise Failed(f"its options cannot be saved ({fault}); give each a type that JSON has") from None


def _built(cls: Any, values: Mapping[str, object]) -> Any:
    """The plugin with these options, or None when it refuses them, as it may."""
    try:
        return build(cls, values, cls.__name__)
    except Refused:
        return None
    except Exception as fault:
        raise Failed(
            f"options {dict(values)} raise {type(fault).__name__}: {fault}; raise ValueError instead"
        ) from None


def _same_everywhere(cls: Any, saved: Mapping[str, Any]) -> None:
    """The saved options come back the same from JSON, from YAML and from the text of flags."""
    import yaml

    try:
        ways = {
            "the saved JSON": json.loads(json.dumps(saved)),
            "YAML": yaml.safe_load(yaml.safe_dump(dict(saved))),
            "flags": {name: text for name, value in saved.items() if (text := flag(value)) is not None},
        }
    except (TypeError, yaml.YAMLError) as unfit:
        raise Failed(f"its options {dict(saved)} are no plain JSON values: {unfit}") from None
    for way, values in ways.items():
        try:
            again = dump(build(cls, values, cls.__name__))
        except Refused as refusal:
            raise Failed(f"what it saves is refused when it comes from {way}: {refusal}") from None
        odd = next((name for name in saved if again[name] != saved[name]), None)
        if odd is not None:
            raise Failed(f"option '{odd}' is {saved[odd]!r}, and {again[odd]!r} when it comes from {way}")


def flag(value: object) -> str | None:
    """An option's value as it is typed after its flag; None for what nobody can type there."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) if value else None
    return json.dumps(value) if isinstance(value, dict) else str(value)


def values_of(annotation: Any) -> Iterator[object]:
    """Values that an option of this type may be given."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    samples: Mapping[Any, tuple[object, ...]] = {
        bool: (True, False),
        int: (0, 1, 2, 3, 7, 64, 1000),
        float: (0.0, 1e-3, 0.25, 0.5, 1.0, 3.5),
        str: ("attention", "a b", "true", "7"),
    }
    if origin is typing.Literal:
        yield from members
    elif origin is tuple:
        inner = list(values_of(members[0]))[:2] if members else []
        yield from (tuple(inner[:size]) for size in range(1, len(inner) + 1))
    elif origin is dict or annotation is dict:
        yield from ({}, {"name": 1, "other": [0.5, "text", None]})
    elif members:
        for member in members:
            yield from values_of(member)
    elif annotation is type(None):
        yield None
    else:
        yield from samples.get(annotation, ())


def check_wrong_options_are_refused(plugin: object, bench: Bench | None = None) -> None:
    """An option that it does not have, or a value that is none, is refused by name, also in Python."""
    cls: Any = type(plugin)
    given = dump(plugin)
    try:
        cls(**given, no_such_option=1)
    except Exception as refusal:
        if "no_such_option" not in str(refusal):
            raise Failed(f"an option that it does not have is refused without its name: {refusal}") from None
    else:
        raise Failed("it accepts an option that it does not have; declare it with @ftcore.options")
    for option in declared(cls):
        if option.kind in ("INT", "FLOAT", "BOOL") or option.choices:
            _refuses(cls, {**given, option.name: "no such value"}, option.name)


def _refuses(cls: Any, values: Mapping[str, object], name: str) -> None:
    try:
        build(cls, values, cls.__name__)
    except Refused as refusal:
        if name not in str(refusal):
            raise Failed(f"a wrong value of option '{name}' is refused without its name: {refusal}") from None
    else:
        raise Failed(f"option '{name}' accepts {values[name]!r}; give it the type that it has")


def check_hooks_exist(plugin: object, bench: Bench | None = None) -> None:
    """Its hooks and their arguments are those of this ftcore, marked, and asked of its kind; none is deprecated."""
    kind = kind_of(plugin, bench)
    for name, asked in ASKED.items():
        implementation = getattr(type(plugin), name, None)
        if implementation is None:
            continue
        if not hasattr(implementation, "ftcore_impl"):
            raise Failed(f"'{name}' is a hook's name and the method is not marked; put @ftcore.hookimpl before it")
        if kind not in asked and not implementation.ftcore_impl["wrapper"]:
            raise Failed(f"it answers '{name}', which is asked of a {asked[0]} and never of a {kind}; take it out")
        parameters = inspect.signature(implementation).parameters.values()
        defaults = [p.name for p in parameters if p.default is not p.empty]
        if defaults:
            raise Failed(f"'{name}' gives its argument '{defaults[0]}' a default, which no hook may; take it out")
    if kind in NEEDED and not hasattr(type(plugin), NEEDED[kind]):
        raise Failed(f"it lacks '{NEEDED[kind]}', which every {kind} answers; write it")
    _fits(plugin, kind)


def _fits(plugin: object, kind: Kind) -> None:
    """The plugin binds, and to nothing that a later release removes."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            bind([Bench(kind, plugin).chosen], Core())
        except Refused as refusal:
            raise Failed(str(refusal)) from None
    old = [warning for warning in heard if issubclass(warning.category, DeprecationWarning | FutureWarning)]
    if old:
        raise Failed(f"it uses what a later release removes: {old[0].message}")


def check_runs_in_a_fresh_process(plugin: object, bench: Bench | None = None) -> None:
    """A process that has done nothing yet makes the same plugin from its saved options."""
    described = fresh.reference(plugin)
    again = fresh.call("ftcore.testing.everyone:options_there", described=described)
    if again != described["options"]:
        raise Failed(f"its options are {described['options']}, and {again} in a fresh process")


def options_there(described: Mapping[str, Any]) -> dict[str, Any]:
    """What the plugin's options are here, where it was never made before."""
    return dump(fresh.rebuilt(described))


def _twin(plugin: object) -> Any:
    return build(type(plugin), dump(plugin), type(plugin).__name__)


EVERY_PLUGIN: tuple[Check, ...] = (
    Check(check_options_survive),
    Check(check_imports_nothing_heavy, needs=("check_options_survive",)),
    Check(check_importing_changes_nothing, needs=("check_imports_nothing_heavy",)),
    Check(check_is_documented),
    Check(check_every_option_has_help),
    Check(check_is_immutable, needs=("check_options_survive",)),
    Check(check_wrong_options_are_refused, needs=("check_options_survive",)),
    Check(check_hooks_exist),
    Check(check_runs_in_a_fresh_process, needs=("check_options_survive", "check_importing_changes_nothing")),
    Check(
        check_leaves_the_process_alone,
        needs=("check_hooks_exist", "check_options_survive", "check_examples_are_read"),
    ),
)
