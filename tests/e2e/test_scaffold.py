"""What `ftcore new` writes is built, installed in a clean environment, kept to the contract, and trains, as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
LORA = (PLUGINS / "methods" / "peft", PLUGINS / "methods" / "lora")
CAUSAL, QWEN = PLUGINS / "tasks" / "causal", PLUGINS / "models" / "qwen"
QUICK = ("--steps", "3", "--batch-size", "4", "--lr", "0.01")


@dataclass(frozen=True)
class New:
    """A project to be written, and the plugins of this repository that a run with it needs."""

    kind: str
    name: str
    beside: tuple[Path, ...]
    flags: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """What its module is called."""
        return f"ftcore_{self.name.replace('-', '_')}"


PROJECTS = [
    New("method", "low-tide", (CAUSAL, QWEN)),
    New("task", "ebb", (*LORA, QWEN), ("--licence", "Apache-2.0")),
    New("model", "tidal", (*LORA, CAUSAL), ("--type", "codegen")),
]


@pytest.mark.slow
@pytest.mark.parametrize("new", PROJECTS, ids=lambda new: new.kind)
def test_a_new_project_is_built_installed_checked_and_trains(
    new: New,
    environment: Callable[..., Any],
    wheels: Callable[..., list[Path]],
    checkpoint: Callable[..., Path],
    rows: Path,
    tmp_path: Path,
) -> None:
    clean = environment(*new.beside)
    clean.call("ftcore", "new", new.kind, new.name, "--author", "Ada Lovelace", *new.flags, folder=tmp_path)
    project = tmp_path / f"ftcore-{new.name}"
    clean.install(wheels(project)[-1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    keeps_the_contract(clean, new, project, elsewhere)
    shutil.copy(rows, elsewhere / "rows.jsonl")
    for command in commands(project, elsewhere, checkpoint("codegen", rotary_dim=4)):
        clean.call(*command, folder=elsewhere)
    trained_with(new, elsewhere / "runs" / new.name)


def keeps_the_contract(clean: Any, new: New, project: Path, folder: Path) -> None:
    """Its own test passes in a folder without its sources."""
    for file in ("pyproject.toml", f"test_{new.module}.py"):
        shutil.copy(project / file, folder)
    said = clean.call("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=folder).stdout
    assert re.match(r"\d\d passed(, \d+ warnings?)? in ", said.splitlines()[-1]), said


def commands(project: Path, folder: Path, checkpoint: Path) -> Iterator[list[str]]:
    """The commands of its README, made quick; a row that the README shows is in the files that they name."""
    readme = (project / "README.md").read_text(encoding="utf-8").split("## Use")[1].split("## Options")[0]
    for row in re.findall(r"```json\n(.*?)\n```", readme):
        for file in ("rows.jsonl", "heldout.jsonl"):
            (folder / file).write_text(f"{row}\n" * 12, encoding="utf-8")
    for line in re.findall(r"^ftcore .*$", readme, re.MULTILINE):
        words = [str(checkpoint) if word == "CHECKPOINT" else word for word in line.split()]
        yield [*words, *QUICK] if words[1] == "run" else words


def trained_with(new: New, output: Path) -> None:
    """The run in `output` has finished with the installed plugin."""
    plugins = json.loads((output / "ftcore.json").read_text(encoding="utf-8"))["plugins"]
    (used,) = (plugin for plugin in plugins if plugin["kind"] == new.kind)
    assert (used["name"], used["distribution"], used["version"]) == (new.name, f"ftcore-{new.name}", "0.1.0")
    assert (output / "report.html").is_file()
