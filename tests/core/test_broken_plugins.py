"""Twelve kinds of broken plugin harm nothing that does not name them, cost little, and are listed with the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ftcore
import pytest
from ftcore import Refused, chat, probing
from ftcore.config import resolve
from ftcore.discovery import find, listing, offers

SECONDS = 0.3  # that broken plugins may add to a command
TRIES = 10
FINE = "class It: pass"


class Broken(NamedTuple):
    """A plugin's module, what its distribution requires, and what the list says of it."""

    source: str
    said: str
    requires: str = ""


MARK = "open(__file__ + '.imported', 'w').close()\n"
KINDS: Mapping[str, Broken] = {
    "raises": Broken("raise RuntimeError('no luck')", "(RuntimeError: no luck)"),
    "is no python": Broken("def (", "(SyntaxError: invalid syntax"),
    "leaves": Broken("raise SystemExit(3)", "(SystemExit: 3)"),
    "interrupts": Broken("raise KeyboardInterrupt", "(KeyboardInterrupt)"),
    "exits": Broken("import os; os._exit(3)", "(its import ended the process with exit code 3)"),
    "aborts": Broken("import os; os.abort()", "(its import ended the process with signal SIGABRT)"),
    "loops": Broken("while True: pass", "its import had not finished after 0.15 s; 'ftcore check loops' waits for it"),
    "sleeps": Broken(
        "import time; time.sleep(10)", "its import had not finished after 0.15 s; 'ftcore check sleeps' waits for it"
    ),
    "prints": Broken(f"print('hello')\n{FINE}", "it writes to standard output when imported: 'hello'"),
    "fits another": Broken(f"{MARK}{FINE}", "was built for ftcore >=2,<3 and this is ftcore", "ftcore>=2,<3"),
    "lacks a library": Broken("import absent_library", "(ModuleNotFoundError: No module named 'absent_library')"),
    "clashes": Broken(f"{MARK}{FINE}", "provided by ftcore-clashes 1.5 and other-clashes 1.5; write "),
}
NAMED = ["--method", "lora", "--task", "causal", "--model", "qwen"]
PLAIN = ["run", *NAMED, "--help"]
PLAN = ["plan", *NAMED, "--steps", "2", "--json"]


def name_of(how: str) -> str:
    return how.replace(" ", "-")


@pytest.fixture
def breaks(publish: Callable[..., Path]) -> Callable[..., None]:
    """`breaks("loops", "exits")` has plugins installed that are broken in these ways."""

    def install(*kinds: str) -> None:
        for how in kinds:
            name, broken = name_of(how), KINDS[how]
            publish(f"ftcore-{name}", "method", name, broken.source, requires=broken.requires)
            if how == "clashes":
                publish("other-clashes", "method", name, broken.source)

    return install


@pytest.fixture
def added(command: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., float]:
    """`added("plugins")` is how many seconds a command takes longer than without what was published.

    Both are the best of a few tries in turn, which end as soon as the difference is within the limit. They are seconds
    of a processor of one's own: where several share one, they are divided by how many.
    """

    def seconds(*arguments: str, **environment: str) -> float:
        before = time.perf_counter()
        assert command(*arguments, **environment).returncode == 0
        return time.perf_counter() - before

    def measure(*arguments: str) -> float:
        without = broken = float("inf")
        for _ in range(TRIES):
            without = min(without, seconds(*arguments, PYTHONPATH=""))
            broken = min(broken, seconds(*arguments))
            difference = (broken - without) / crowd()
            if difference <= SECONDS:
                break
        return difference

    return measure


def crowd() -> float:
    """How many share a processor now: the wall time of a little work over its processor time."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() - own < 0.1:
        pass
    return max(1.0, (time.perf_counter() - wall) / (time.process_time() - own))


def left_running(folder: Path) -> list[int]:
    """The processes that were started with this folder in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.fsencode(folder) in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(folder: Path) -> bool:
    end = time.monotonic() + 5
    while left_running(folder) and time.monotonic() < end:
        time.sleep(0.01)
    return not left_running(folder)


# The list


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_a_broken_plugin_is_listed_with_its_reason_within_the_time_and_harms_no_other(
    how: str, breaks: Callable[..., None], command: Callable[..., subprocess.CompletedProcess[str]],
    added: Callable[..., float], tmp_path: Path,
) -> None:  # fmt: skip
    breaks(how)
    errors = told_errors(command("plugins", "--json"))
    wrong = {name for name, error in errors.items() if error}
    assert wrong == {name_of(how)}
    assert KINDS[how].said in (errors[name_of(how)] or "")
    assert f"method '{name_of(how)}' " in (errors[name_of(how)] or "")
    assert added("plugins") <= SECONDS
    assert gone(tmp_path)
    assert not list(tmp_path.rglob("*.imported"))
    assert not list(tmp_path.rglob("core*"))


def told_errors(done: subprocess.CompletedProcess[str]) -> dict[str, str | None]:
    assert (done.returncode, done.stderr) == (0, "")
    return {plugin["name"]: plugin["error"] for plugin in json.loads(done.stdout)}


def test_twelve_broken_plugins_at_once_are_all_named_within_the_time(
    breaks: Callable[..., None], command: Callable[..., subprocess.CompletedProcess[str]],
    added: Callable[..., float], tmp_path: Path,
) -> None:  # fmt: skip
    breaks(*KINDS)
    errors = told_errors(command("plugins", "--json"))
    assert [how for how, broken in KINDS.items() if broken.said not in (errors[name_of(how)] or "")] == []
    assert {name for name, error in errors.items() if error} == set(map(name_of, KINDS))
    listed = command("plugins")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.count("unusable: ") == len(KINDS) + 1
    for arguments in (["plugins"], ["plugins", "--json"], ["--help"], ["run", "--help"], PLAIN):
        assert added(*arguments) <= SECONDS, arguments
    assert gone(tmp_path)


def test_a_run_that_names_none_of_twelve_broken_plugins_is_unharmed(
    breaks: Callable[..., None], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    breaks(*KINDS)
    done = command(*PLAN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refused"] is None


@pytest.mark.slow
def test_a_plan_that_names_none_of_twelve_broken_plugins_takes_no_longer(
    breaks: Callable[..., None], added: Callable[..., float]
) -> None:
    breaks(*KINDS)
    assert added(*PLAN) <= SECONDS


def test_the_list_imports_nothing_here_and_leaves_no_process_behind(
    breaks: Callable[..., None], command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    breaks("loops", "sleeps", "prints", "exits")
    folders = [str(folder) for folder in (tmp_path / "installed").iterdir()]
    program = (
        f"import sys, os; sys.path[:0] = {folders!r}; import ftcore\n"
        "errors = {p['name']: p['error'] for p in ftcore.plugins()}\n"
        "assert all(errors[name] for name in ('loops', 'sleeps', 'prints', 'exits')), errors\n"
        "assert not [name for name in sys.modules if name.startswith('ftcore_')]\n"
        "try: os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError: print('none')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("none\n", "")


@pytest.mark.slow  # on a busy machine the list may be complete before it is interrupted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_list_that_is_interrupted_leaves_nothing_running(
    breaks: Callable[..., None], tmp_path: Path, number: signal.Signals
) -> None:
    breaks("loops", "sleeps")
    folders = os.pathsep.join(map(str, (tmp_path / "installed").iterdir()))
    process = subprocess.Popen(
        [sys.executable, "-m", "ftcore", "plugins"], env={**os.environ, "PYTHONPATH": folders},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while len(left_running(tmp_path)) < 4 and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode in (75, 130)
    assert "Traceback" not in said
    assert gone(tmp_path)


@pytest.mark.slow  # what a machine that is busy with other things gives each of them varies
def test_many_slow_imports_on_a_busy_machine_are_no_broken_ones(
    publish: Callable[..., Path], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    busy = "import time\nend = time.process_time() + 0.06\nwhile time.process_time() < end: pass\n"
    for number in range(24):
        publish(f"ftcore-busy{number}", "method", f"busy{number}", busy + FINE)
    errors = told_errors(command("plugins", "--json"))
    assert len(errors) >= 24
    assert {name: error for name, error in errors.items() if error} == {}


def test_what_an_import_starts_ends_with_it(
    publish: Callable[..., Path], command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    publish("ftcore-parent", "method", "parent", f"import subprocess; subprocess.Popen(['sleep', '60'])\n{FINE}")
    publish("ftcore-fork", "method", "fork", f"import os; os.fork()\n{FINE}")
    assert [error for error in told_errors(command("plugins", "--json")).values() if error] == []
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys; sys.stdout.write('x' * 200_000)", "it writes to standard output when imported: 'xxx"),
        ("import os; os.write(1, b'\\xff\\n')", "it writes to standard output when imported: "),
        ("raise RuntimeError('é' * 5000)", "(RuntimeError: éé"),
        ("import os; os.closerange(3, 100)", ""),
        ("import sys; sys.stdout = sys.stderr = None", ""),
        ("class Odd(Exception):\n    def __str__(self): raise self\nraise Odd", "ended the process"),
        ("import os; os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("import os; os.killpg(0, 9)", "the process that looks at plugins ended: exit code -9"),
    ],
)
def test_what_else_an_import_may_do_is_told_too(publish: Callable[..., Path], source: str, said: str) -> None:
    publish("ftcore-odd", "method", "odd", f"{source}\n{FINE}")
    error = {plugin["name"]: plugin["error"] for plugin in listing()}["odd"] or ""
    assert said in error
    assert len(error) < 600


def test_what_is_no_class_is_told(publish: Callable[..., Path]) -> None:
    publish("ftcore-odd", "method", "odd", "def It(): pass")
    assert "(TypeError: 'ftcore_odd_module:It' is no class)" in (errors()["odd"] or "")


def test_two_plugins_of_one_name_are_listed_each_with_how_to_choose_it(breaks: Callable[..., None]) -> None:
    breaks("clashes")
    said = {plugin["distribution"]: plugin["error"] or "" for plugin in listing() if plugin["name"] == "clashes"}
    assert said.keys() == {"ftcore-clashes", "other-clashes"}
    for distribution, error in said.items():
        assert error.endswith(f"write {distribution}:clashes to choose")


# Runs that name a broken one


def test_a_plugin_that_prints_when_imported_leaves_the_json_of_a_command_alone(
    publish: Callable[..., Path], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    talking = "from ftcore import options\nprint('hello')\n@options\nclass It:\n    '''Says hello.'''\n"
    publish("ftcore-talking", "extension", "talking", talking)
    done = command(*PLAN, "--with", "talking")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert "hello" in done.stderr
    shown = command("plugins", "show", "talking", "--json")
    assert json.loads(shown.stdout)["properties"] == {}


def test_an_interrupt_while_a_plugin_is_imported_is_an_interrupt(
    breaks: Callable[..., None], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    breaks("interrupts")
    done = command("plugins", "show", "interrupts")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_family_is_found_beside_broken_families(
    publish: Callable[..., Path], checkpoint: Callable[..., Path]
) -> None:
    for number, how in enumerate(("exits", "loops", "raises", "fits another")):
        broken = KINDS[how]
        publish(f"ftcore-a{number}", "model", f"a{number}", broken.source, requires=broken.requires)
    assert chat._family(str(checkpoint("qwen2"))) == "qwen"


# Metadata that is broken


def entry_points(folder: Path) -> Path:
    return next(folder.glob("*.dist-info")) / "entry_points.txt"


def errors() -> dict[str, str | None]:
    return {plugin["name"]: plugin["error"] for plugin in ftcore.plugins()}


def test_a_distribution_without_metadata_is_listed_and_cannot_be_used(publish: Callable[..., Path]) -> None:
    folder = publish("ftcore-nameless", "method", "nameless", FINE)
    (entry_points(folder).parent / "METADATA").unlink()
    known = errors()
    assert known.pop("nameless") == (
        "method 'nameless' is announced by a package without METADATA; install that package anew"
    )
    assert set(known.values()) == {None}
    with pytest.raises(Refused, match="without METADATA"):
        find("method", "nameless")
    assert find("method", "lora").distribution == "ftcore-lora"


@pytest.mark.parametrize("line", ["odd", "odd = module", "odd = a module:It", "odd = module:", "odd = :It", "odd ="])
def test_an_entry_that_names_no_class_is_listed_and_cannot_be_used(publish: Callable[..., Path], line: str) -> None:
    entry_points(publish("ftcore-odd", "method", "odd", FINE)).write_text(f"[ftcore.methods]\n{line}\n")
    known = errors()
    assert "which is no NAME = MODULE:CLASS" in (known.pop("odd") or "")
    assert set(known.values()) == {None}
    with pytest.raises(Refused, match="no NAME = MODULE:CLASS"):
        resolve({"method": "odd", "task": "causal", "model": "qwen"})


@pytest.mark.parametrize("name", ["a b", "a+b", "../up", "a:b"])
def test_a_name_that_nobody_could_type_is_no_name(publish: Callable[..., Path], name: str) -> None:
    module = "ftcore_odd_module:It"
    entry_points(publish("ftcore-odd", "method", "odd", FINE)).write_text(f"[ftcore.methods]\n{name} = {module}\n")
    assert "which is no NAME = MODULE:CLASS" in (errors()[name] or "")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"no group\nodd = x:y", b"[ftcore.methods\n=\n[]\n]", b""])
def test_entry_points_that_cannot_be_read_hide_no_other_plugin(publish: Callable[..., Path], content: bytes) -> None:
    before = {(offer.kind, offer.name) for offer in offers()}
    entry_points(publish("ftcore-odd", "method", "odd", FINE)).write_bytes(content)
    assert before <= {(offer.kind, offer.name) for offer in offers()}
    assert find("method", "lora").distribution == "ftcore-lora"


def test_an_entry_may_be_spelled_with_blanks_and_extras(publish: Callable[..., Path]) -> None:
    written = "[ftcore.methods]\n# a comment\nodd = ftcore_odd_module : It [fast]\n"
    entry_points(publish("ftcore-odd", "method", "odd", FINE)).write_text(written)
    assert find("method", "odd").load().__name__ == "It"
    assert errors()["odd"] is None


def test_looking_at_nothing_starts_nothing() -> None:
    assert probing.looked_at([]) == []
