"""Looking around costs nothing: importing ftcore, help and the list of plugins load none of the heavy libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate")
HELP_SECONDS = 0.15

COMMAND = """
import sys
sys.argv = ["ftcore", *{arguments!r}]
from ftcore.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""


def loaded_by(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `code`, which must end well."""
    code += "\nimport sys; print('\\nLOADED', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("\nLOADED ")[2].split())


def loaded_by_command(*arguments: str) -> set[str]:
    return loaded_by(COMMAND.format(arguments=list(arguments)))


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a child process that must end with 0."""
    nothing = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=nothing)
    _, status, used = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return used.ru_utime + used.ru_stime


def test_importing_ftcore_loads_nothing_heavy_and_nothing_of_the_core() -> None:
    loaded = loaded_by("import sys, ftcore; dir(ftcore); assert not [n for n in sys.modules if 'ftcore.' in n]")
    assert not loaded & {*HEAVY, "pydantic", "click", "pluggy", "numpy", "yaml"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugins"],
        ["plugins", "--json"],
        ["plugins", "show", "lora"],
        ["run", "--help"],
        ["run", "--method", "lora", "--help"],
        ["run", "--method", "lora", "--task", "causal", "--model", "qwen", "--help"],
        ["plan", "--help"],
        ["merge", "--help"],
        ["evaluate", "--help"],
        ["chat", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_and_listing_load_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by_command(*arguments) & set(HEAVY)


def test_the_top_level_help_needs_no_pydantic() -> None:
    assert not loaded_by_command("--help") & {*HEAVY, "pydantic", "pluggy", "numpy", "yaml", "rich"}


def test_shell_completion_loads_nothing_heavy() -> None:
    environment = {**os.environ, "_FTCORE_COMPLETE": "bash_complete", "COMP_WORDS": "ftcore ru", "COMP_CWORD": "1"}
    code = (
        "import sys; sys.argv = ['ftcore']; from ftcore.cli import cli\n"
        "try: cli.main(prog_name='ftcore')\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', *(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "plain,run" in done.stdout
    assert done.stdout.rstrip().endswith("HEAVY")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--method", "lroa", "--task", "causal", "--model", "qwen"],
        ["run", "--method", "lora", "--task", "causal", "--model", "qwen", "--lora.r", "x"],
        ["run", "--method", "lora", "--task", "causal"],
    ],
    ids=" ".join,
)
def test_a_misspelt_run_is_refused_before_anything_heavy_is_loaded(arguments: list[str]) -> None:
    code = COMMAND.format(arguments=arguments).replace("assert not ended.code, ended.code", "assert ended.code == 2")
    assert not loaded_by(code) & set(HEAVY)


def test_the_top_level_help_takes_next_to_no_time() -> None:
    command = [sys.executable, "-m", "ftcore", "--help"]
    best = min(cpu_seconds(command) for _ in range(7))
    assert best < HELP_SECONDS, f"{best:.3f} s"
