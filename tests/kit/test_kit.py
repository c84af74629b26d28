"""The kit itself: every check is tried once, in order, and what comes of it is told with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from broken_plugins.anyone import Norms, Unmarked
from click.testing import CliRunner
from ftcore import Refused, options
from ftcore.cli import cli
from ftcore.testing import CHECKS, check_hooks_exist, examine, kit, method_checks, report
from ftcore.testing.kit import Bench, Check, Failed, Session, session


def check_passes(plugin: object, bench: Bench | None = None) -> None:
    """Nothing is wrong."""


def check_fails(plugin: object, bench: Bench | None = None) -> None:
    """Something is wrong."""
    raise Failed("it is blue; paint it")


def check_crashes(plugin: object, bench: Bench | None = None) -> None:
    """It is a lookup."""
    raise KeyError("colour")


def check_leaves(plugin: object, bench: Bench | None = None) -> None:
    """It leaves."""
    raise SystemExit(0)


def check_waits(plugin: object, bench: Bench | None = None) -> None:
    """It waits."""
    time.sleep(60)


def trial(*checks: Check, excused: Mapping[str, str] | None = None, plugin: object | None = None) -> Session:
    return session("method", plugin or Norms(), checks, excused or {})


def outcomes(of: Session) -> dict[str, tuple[str, str]]:
    found = {check.name: of.result(check.name) for check in of.checks}
    return {name: (result.outcome, result.reason) for name, result in found.items()}


def test_each_check_has_an_outcome_and_a_reason() -> None:
    tried = outcomes(trial(Check(check_passes), Check(check_fails), Check(check_crashes), Check(check_leaves)))
    assert tried == {
        "check_passes": ("passed", ""),
        "check_fails": ("failed", "it is blue; paint it"),
        "check_crashes": ("failed", "KeyError: 'colour'"),
        "check_leaves": ("failed", "SystemExit: 0"),
    }


def test_what_builds_on_a_broken_promise_is_not_reached() -> None:
    second = Check(check_passes, needs=("check_fails",))
    third = Check(check_crashes, needs=("check_passes",))
    tried = outcomes(trial(Check(check_fails), second, third))
    assert tried["check_passes"] == ("not reached", "check_fails comes first")
    assert tried["check_crashes"] == ("not reached", "check_passes comes first")


def test_a_declared_exception_is_shown_with_its_reason_and_one_that_is_not_needed_fails() -> None:
    excused = {"check_fails": "blue is what it is for", "check_passes": "it was broken once"}
    tried = outcomes(trial(Check(check_passes), Check(check_fails), excused=excused))
    assert tried["check_fails"] == ("excused", "blue is what it is for")
    outcome, reason = tried["check_passes"]
    assert outcome == "failed"
    assert "it was broken once" in reason
    assert "take the declaration out" in reason


def test_a_plugin_declares_exceptions_itself() -> None:
    @options
    class Blue(Norms):
        """Norms train, in blue."""

        excused: ClassVar[Mapping[str, str]] = {"check_fails": "blue is what it is for"}

    assert outcomes(trial(Check(check_fails), plugin=Blue())) == {"check_fails": ("excused", "blue is what it is for")}


@pytest.mark.parametrize(
    ("excused", "message"),
    [({"check_nothing": "why"}, "'check_nothing', which is no check"), ({"check_passes": " "}, "has no reason")],
)
def test_an_exception_from_no_check_or_without_reason_is_refused(excused: dict[str, str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        trial(Check(check_passes), excused=excused)


def test_a_check_that_does_not_concern_a_plugin_is_not_tried() -> None:
    assert outcomes(trial(Check(check_fails, concerns=lambda plugin: False))) == {}


def test_a_check_that_never_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "LONGEST", 1)
    assert outcomes(trial(Check(check_waits)))["check_waits"][1].startswith("it had not finished after 1 s")


def test_a_check_is_a_plain_function() -> None:
    check_hooks_exist(Norms())
    with pytest.raises(Failed, match="'merge' is a hook's name and the method is not marked"):
        check_hooks_exist(Unmarked())


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_has_a_promise_a_name_and_builds_on_others(kind: str) -> None:
    every = {check.name for checks in CHECKS.values() for check in checks}
    names = [check.name for check in CHECKS[kind]]  # type: ignore[index]
    for check in CHECKS[kind]:  # type: ignore[index]
        assert check.name.startswith("check_")
        assert len(check.promise.split()) > 3
        assert set(check.needs) <= every - {check.name}, check.name
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", CHECKS)
def test_no_check_builds_on_itself_in_the_end(kind: str) -> None:
    needs = {check.name: set(check.needs) for check in CHECKS[kind]}  # type: ignore[index]
    while needs:
        free = {name for name, needed in needs.items() if not needed & needs.keys()}
        assert free, f"these build on each other: {sorted(needs)}"
        needs = {name: needed for name, needed in needs.items() if name not in free}


def test_every_check_can_be_imported_from_the_kit() -> None:
    import ftcore.testing

    names = {check.name for checks in CHECKS.values() for check in checks}
    assert [name for name in sorted(names) if not callable(getattr(ftcore.testing, name, None))] == []


SEVEN_LINES = """
from broken_plugins.anyone import {name}
from ftcore.testing import method_checks

@method_checks({name}(), {{"check_is_documented": "it speaks for itself"}})
def test_contract(check):
    check()
"""


def test_the_seven_lines_are_a_test_file(tmp_path: Path) -> None:
    file = tmp_path / "test_undocumented.py"
    file.write_text(SEVEN_LINES.format(name="Undocumented").lstrip())
    assert len(file.read_text().splitlines()) == 6
    command = [sys.executable, "-m", "pytest", "-q", "-rx", "-p", "no:cacheprovider", str(file)]
    path = ["-o", f"pythonpath={Path(__file__).parent}"]
    done = subprocess.run([*command, *path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout
    assert "it speaks for itself" in done.stdout


def test_a_broken_plugin_shows_what_it_raised() -> None:
    tests = method_checks(Unmarked())
    names, tried = tests.args
    assert names == "check"
    broken = dict(zip(tests.kwargs["ids"], tried, strict=True))["check_hooks_exist"]
    with pytest.raises(Failed, match="not marked"):
        broken()


# The command


def told(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ftcore", "check", *arguments], capture_output=True, text=True)


def test_the_command_reports_each_promise_and_ends_well() -> None:
    done = told("full")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines = done.stdout.strip().splitlines()
    assert first.startswith("method 'full' (ftcore-full ")
    assert " broken" in lines[-1]
    excused = [line for line in lines if line.startswith("  excused")]
    assert len(excused) == len([r for r in lines if "excused" in r]) - 1
    assert sum(line.startswith("  ok") for line in lines) > 20


def test_the_command_tells_programs_in_json() -> None:
    (one,) = json.loads(CliRunner().invoke(cli, ["check", "pretrain", "--json"]).stdout)
    assert (one["kind"], one["name"], one["distribution"]) == ("task", "pretrain", "ftcore-pretrain")
    assert one["failed"] == 0
    assert {check["outcome"] for check in one["checks"]} <= {"passed", "excused"}
    assert all(check["promise"] and check["seconds"] >= 0 for check in one["checks"])


def test_the_command_takes_the_plugins_options() -> None:
    done = told("lora", "--lora.r", "zero")
    assert done.returncode == 2
    assert "option 'r' is 'zero'" in done.stderr
    assert "--lora.r INT" in told("lora", "--help").stdout


def test_the_command_refuses_what_is_not_installed() -> None:
    done = told("lroa")
    assert done.returncode == 2
    assert "did you mean 'lora'?" in done.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import os; os._exit(3)", "exit code 3"), ("import absent_library", "No module named 'absent_library'")],
)
def test_the_command_survives_a_plugin_that_cannot_be_imported(tmp_path: Path, source: str, reason: str) -> None:
    info = tmp_path / "ftcore_bad-1.0.dist-info"
    info.mkdir()
    (tmp_path / "ftcore_bad.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftcore-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ftcore.methods]\nbad = ftcore_bad:Bad\n")
    command = [sys.executable, "-m", "ftcore", "check", "bad"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("ftcore: method 'bad' (ftcore-bad 1.0): ")
    assert reason in done.stderr


def test_a_report_counts_and_explains() -> None:
    results = list(examine("method", Unmarked()))
    assert report.closing(results).startswith(f"{report.count(results, 'passed')} kept, 1 broken")
    (failed,) = (r for r in results if r.outcome == "failed")
    assert "FAILED" in report.line(failed)
    assert "[check_hooks_exist]" in report.line(failed)
    assert "put @ftcore.hookimpl before it" in " ".join(report.line(failed).split())
