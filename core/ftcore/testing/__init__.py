"""The conformance kit: what the contract promises, tried on a plugin.

A plugin's whole test file::

    from ftcore.testing import method_checks
    from ftcore_nova import Nova

    @method_checks(Nova())
    def test_contract(check):
        check()

`ftcore check nova` runs the same. Each `check_…(plugin)` is a plain function that raises `Failed` with what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftcore.discovery import Kind
from ftcore.testing.everyone import EVERY_PLUGIN
from ftcore.testing.kit import Bench as Bench
from ftcore.testing.kit import Check as Check
from ftcore.testing.kit import Failed as Failed
from ftcore.testing.kit import Result as Result
from ftcore.testing.kit import Session, kind_of, session
from ftcore.testing.methods import EVERY_METHOD
from ftcore.testing.models import EVERY_MODEL
from ftcore.testing.tasks import EVERY_TASK

CHECKS: Mapping[Kind, tuple[Check, ...]] = {
    "method": (*EVERY_PLUGIN, *EVERY_METHOD),
    "task": (*EVERY_PLUGIN, *EVERY_TASK),
    "model": (*EVERY_PLUGIN, *EVERY_MODEL),
    "extension": EVERY_PLUGIN,
}


def __getattr__(name: str) -> Callable[..., None]:
    """Every check by its name, as a plain function; of those that several kinds have, the one for the plugin's kind."""
    found = {kind: one.function for kind, checks in CHECKS.items() for one in checks if one.name == name}
    if not found:
        raise AttributeError(f"module 'ftcore.testing' has no attribute '{name}'")
    if len(set(found.values())) == 1:
        return next(iter(found.values()))

    def check(plugin: object, bench: Bench | None = None) -> None:
        found[kind_of(plugin, bench)](plugin, bench)

    return check


def examine(
    kind: Kind, plugin: object, excused: Mapping[str, str] | None = None, *, checkpoint: Path | None = None
) -> Iterator[Result]:
    """What comes of each check that concerns the plugin, in order, as soon as it is known."""
    trial = session(kind, plugin, CHECKS[kind], excused or {}, checkpoint)
    for check in trial.checks:
        yield trial.result(check.name)


def method_checks(method: object, excused: Mapping[str, str] | None = None) -> Any:
    """The test it decorates runs once for each check of a method; `excused` maps a check's name to a reason."""
    return _parametrised(session("method", method, CHECKS["method"], excused or {}))


def task_checks(task: object, excused: Mapping[str, str] | None = None) -> Any:
    """The test it decorates runs once for each check of a task; `excused` maps a check's name to a reason."""
    return _parametrised(session("task", task, CHECKS["task"], excused or {}))


def model_checks(
    model: object, excused: Mapping[str, str] | None = None, *, checkpoint: Path | str | None = None
) -> Any:
    """The test it decorates runs once for each check of a family; `checkpoint` is a tiny one if none can be made."""
    place = Path(checkpoint) if checkpoint else None
    return _parametrised(session("model", model, CHECKS["model"], excused or {}, place))


def extension_checks(extension: object, excused: Mapping[str, str] | None = None) -> Any:
    """The test it decorates runs once for each check of an extension; `excused` maps a check's name to a reason."""
    return _parametrised(session("extension", extension, CHECKS["extension"], excused or {}))


def _parametrised(trial: Session) -> Any:
    import pytest

    tried: Sequence[Callable[[], None]] = [partial(_try, trial, check.name) for check in trial.checks]
    return pytest.mark.parametrize("check", tried, ids=[check.name for check in trial.checks])


def _try(trial: Session, name: str) -> None:
    """One check as a test: what it raised is raised, an exception that was declared is shown as such."""
    import pytest

    result = trial.result(name)
    if result.outcome == "excused":
        pytest.xfail(result.reason)
    if result.outcome == "not reached":
        pytest.skip(result.reason)
    if result.fault is not None:
        raise result.fault
