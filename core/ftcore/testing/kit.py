"""A check, what comes of it for one plugin, and the bench that checks share."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from ftcore.declaring import build, dump
from ftcore.discovery import Chosen, Kind, choose, declared_datum
from ftcore.errors import Refused

T = TypeVar("T")
LONGEST = 120  # seconds that a check may take
Outcome = Literal["passed", "failed", "excused", "not reached"]


class Failed(AssertionError):
    """A promise that the plugin does not keep: what was seen, and what to change."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A plugin under test, a folder for what is made of it, and what was made already, so that checks share it.

    `checkpoint` is a tiny checkpoint for a family that none can be made for.
    """

    kind: Kind
    plugin: object
    checkpoint: Path | None = None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ftcore-kit-")))
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @cached_property
    def chosen(self) -> Chosen:
        """The plugin as a run knows it."""
        return choose(self.kind, self.plugin, {})

    @property
    def label(self) -> str:
        """The plugin as messages name it."""
        return self.chosen.label

    def fresh(self) -> Any:
        """Another instance with the same options, as a later process would build it."""
        return build(type(self.plugin), dump(self.plugin), self.label)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave the first time it was asked for under `key`."""
        if key not in self.made:
            self.made[key] = make()
        found: T = self.made[key]
        return found

    def place(self, name: str) -> Path:
        """A path in the bench's folder that nothing has used yet."""
        taken = self.made.setdefault("places", [])
        taken.append(name)
        return self.folder / f"{len(taken):03d}-{name}"


def kind_of(plugin: object, bench: Bench | None) -> Kind:
    """The kind of the bench, or what the plugin's own hooks say that it is."""
    if bench is not None:
        return bench.kind
    hooks: Mapping[str, Kind] = {"inject_adapter": "method", "prepare_data": "task", "load_model": "model"}
    return next((kind for hook, kind in hooks.items() if hasattr(type(plugin), hook)), "extension")


def bench_of(kind: Kind, plugin: object, bench: Bench | None) -> Bench:
    """The bench that was given, or one of the plugin's own."""
    return bench or Bench(kind, plugin)


@dataclass(frozen=True)
class Check:
    """A promise of the contract: the function that tries it, the checks it builds on, and whom it concerns."""

    function: Callable[[Any, Bench | None], None]
    needs: tuple[str, ...] = ()
    concerns: Callable[[object], bool] = lambda plugin: True

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.function.__name__

    @property
    def promise(self) -> str:
        """The first sentence of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n\n")[0].replace("\n    ", " ").rstrip(".")


@dataclass(frozen=True)
class Result:
    """What came of one check: a reason where it did not simply pass, and the seconds it took."""

    check: Check
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    fault: BaseException | None = None


@dataclass(frozen=True)
class Session:
    """The checks of one plugin, each tried at most once and only when what it builds on has passed."""

    bench: Bench
    checks: Sequence[Check]
    excused: Mapping[str, str] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)

    def result(self, name: str) -> Result:
        """What came of the check `name`."""
        if name not in self.results:
            self.results[name] = self._tried(next(check for check in self.checks if check.name == name))
        return self.results[name]

    def _tried(self, check: Check) -> Result:
        there = {one.name for one in self.checks}
        for needed in check.needs:
            if needed in there and self.result(needed).outcome in ("failed", "not reached"):
                return Result(check, "not reached", f"{needed} comes first")
        before = time.monotonic()
        fault = _fault_of(check, self.bench)
        spent = time.monotonic() - before
        excuse = self.excused.get(check.name, "")
        if excuse and fault is None:
            said = f"it is declared as an exception ({excuse}) and passes; take the declaration out"
            return Result(check, "failed", said, spent, Failed(said))
        if excuse:
            return Result(check, "excused", excuse, spent)
        if fault is not None:
            return Result(check, "failed", told(fault), spent, fault)
        return Result(check, "passed", "", spent)


def _fault_of(check: Check, bench: Bench) -> BaseException | None:
    try:
        with patience(LONGEST):
            check.function(bench.plugin, bench)
    except (Exception, SystemExit) as fault:
        return fault
    return None


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Inside, what takes longer than `seconds` is Failed, where signals can be handled: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: object) -> None:
        raise Failed(f"it had not finished after {seconds} s; look for what it waits for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(fault: BaseException) -> str:
    """An exception as a report shows it: what it says, and what plugin it came from."""
    said = str(fault) if isinstance(fault, Failed) else f"{type(fault).__name__}: {fault}"
    return " ".join([said, *(f"({note})" for note in getattr(fault, "__notes__", []))])


def session(
    kind: Kind, plugin: object, checks: Sequence[Check], excused: Mapping[str, str], checkpoint: Path | None = None
) -> Session:
    """The checks that concern `plugin`, with its declared exceptions; Refused when one names no check."""
    mine = tuple(check for check in checks if check.concerns(plugin))
    declared = {**declared_datum(plugin, "excused"), **excused}
    for name, reason in declared.items():
        if name not in {check.name for check in mine}:
            raise Refused(f"an exception is declared for '{name}', which is no check of this plugin; take it out")
        if not str(reason).strip():
            raise Refused(f"the exception from '{name}' has no reason; give one")
    return Session(Bench(kind, plugin, checkpoint), mine, declared)
