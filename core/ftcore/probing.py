"""Plugins looked at from a distance: each is imported in a process of its own, and what came of it is told.

This file is also the program that does it, free of what the asking process has loaded. It imports once what plugins
have in common and forks a child for each of them.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import IO, Any, Literal, NamedTuple, NoReturn

CLASS = re.compile(r"([A-Za-z_][\w.]*)\s*:\s*([A-Za-z_][\w.]*)\s*(?:\[.*\])?")
PATIENCE = 0.15  # seconds of its own that an import may take, without those in which it waits for a processor
SILENCE = 0.1  # seconds in which nothing has come of any other, before one that took longer is ended
LIFELINE = 60  # seconds after which a child ends even when nobody is left to end it
LONGEST = 300  # characters of a reason
SHARED = (
    "ftcore.adapters",
    "ftcore.batches",
    "ftcore.declaring",
    "ftcore.families",
    "ftcore.hooks",
    "ftcore.labels",
    "ftcore.rows",
    "ftcore.templates",
    "ftcore.texts",
    "ftcore.textual",
)


class Verdict(NamedTuple):
    """What came of importing a plugin, and why it is no class where it is none."""

    state: Literal["sound", "broken", "unfinished", "prints"]
    reason: str = ""


def imported(value: str) -> type[Any]:
    """The class that an entry point's `MODULE:CLASS` means."""
    module, _, names = value.partition(":")
    found = reduce(getattr, names.split("."), import_module(module))
    if not isinstance(found, type):
        raise TypeError(f"'{value}' is no class")
    return found


def reason(broken: BaseException) -> str:
    """An exception in one line."""
    lines = str(broken).strip().splitlines()
    return f"{type(broken).__name__}: {lines[0][:LONGEST]}" if lines else type(broken).__name__


def looked_at(values: Sequence[str], patience: float = PATIENCE) -> list[Verdict]:
    """What comes of importing each `MODULE:CLASS` in `patience` seconds; nothing of them is left here or running."""
    if not values:
        return []
    command, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
    asked = json.dumps({"path": list(map(str, sys.path)), "values": list(values), "patience": patience})
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0) as program:
        try:
            told, fault = program.communicate(asked)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # also what an import has started
    if program.returncode and len(values) > 1:  # one of them ended more than its own process
        half = len(values) // 2
        return looked_at(values[:half], patience) + looked_at(values[half:], patience)
    if program.returncode:
        last = (fault.strip().splitlines() or [f"exit code {program.returncode}"])[-1]
        return [Verdict("broken", f"the process that looks at plugins ended: {last[:LONGEST]}")]
    return [Verdict(*one) for one in json.loads(told)]


# The program


@dataclass(frozen=True)
class Child:
    """A process that imports one plugin; its files hold what it says of it and what the plugin printed."""

    pid: int
    since: float
    said: IO[bytes]
    printed: IO[bytes]

    def own_time(self) -> float:
        """Seconds since it began, without those in which it was ready and got no processor."""
        try:
            with open(f"/proc/{self.pid}/schedstat", encoding="ascii") as file:
                waited = int(file.read().split()[1]) / 1e9
        except OSError:
            waited = 0.0
        return time.monotonic() - self.since - waited


def main() -> None:
    """Read what to import, and write a verdict for each."""
    gc.disable()  # nobody lives long enough here for it to be worth its time
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # what forks has one thread
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # which are found in everybody's metadata
    for name in SHARED:
        import_module(name)
    children = [_begun(value) for value in asked["values"]]
    statuses, ended = _awaited({child.pid: child for child in children}, asked["patience"])
    json.dump([_verdict(child, statuses[child.pid], child.pid in ended) for child in children], sys.stdout)


def _begun(value: str) -> Child:
    said, printed = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if pid:
        return Child(pid, time.monotonic(), said, printed)
    try:
        _look(value, said.fileno(), printed.fileno())
    finally:
        os._exit(0)


def _look(value: str, said: int, printed: int) -> NoReturn:
    """Import the plugin and say what came of it; nothing that it does reaches the terminal or the other processes."""
    signal.alarm(LIFELINE)
    _dump_no_core()
    nothing = os.open(os.devnull, os.O_RDWR)
    for here, there in ((nothing, 0), (printed, 1), (nothing, 2)):
        os.dup2(here, there)
    try:
        imported(value)
        found = ""
    except BaseException as broken:
        found = reason(broken)
    with suppress(Exception):
        sys.stdout.flush()
    os.write(said, f"{json.dumps(found)}\n".encode())
    os._exit(0)


def _dump_no_core() -> None:
    """An abort leaves no core; a limit of one byte, unlike 0, also holds where a program takes them."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if most == 0 else 1, most))


def _awaited(going: dict[int, Child], patience: float) -> tuple[dict[int, int], set[int]]:
    """How each child ended, and which of them had to be ended.

    One is ended once it has had its time and nothing has come of any other for a while: a machine with much to do,
    where all are slow, condemns none.
    """
    statuses: dict[int, int] = {}
    ended: set[int] = set()
    news = time.monotonic()
    while len(statuses) < len(going):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid], news = status, time.monotonic()
            continue
        if time.monotonic() - news > SILENCE:
            late = {p for p, child in going.items() if p not in statuses and child.own_time() > patience}
            for pid in late - ended:
                os.kill(pid, signal.SIGKILL)
            ended |= late
        time.sleep(0.002)
    return statuses, ended


def _verdict(child: Child, status: int, ended: bool) -> Verdict:
    said, printed = _content(child.said), _content(child.printed)
    if said:
        found = json.loads(said.splitlines()[0])  # a plugin that forks itself says it twice
        if found or not printed:
            return Verdict("broken" if found else "sound", found)
        return Verdict("prints", printed.strip().partition("\n")[0][:LONGEST])
    if ended:
        return Verdict("unfinished")
    code = os.waitstatus_to_exitcode(status)
    names = {number.value: number.name for number in signal.Signals}
    how = f"exit code {code}" if code >= 0 else f"signal {names.get(-code, -code)}"
    return Verdict("broken", f"its import ended the process with {how}")


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(4096).decode(errors="replace")


if __name__ == "__main__":
    main()
