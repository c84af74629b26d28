"""Wheels, each built once, and clean environments to install them in."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*_cache")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """`wheels(project, …)` are the wheels of these folders, the first of all being the core's."""
    folder = tmp_path_factory.mktemp("wheels")
    built: dict[Path, Path] = {}

    def make(*projects: Path) -> list[Path]:
        new = [project for project in (ROOT, *projects) if project not in built]
        sources = [copied(project, folder / "sources" / name_of(project)) for project in new]
        if new:
            pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", *map(str, sources))
        for project in new:
            (built[project],) = folder.glob(f"{name_of(project)}-*.whl")
        return [built[project] for project in (ROOT, *projects)]

    return make


def name_of(project: Path) -> str:
    """What the file of a project's wheel begins with."""
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return str(described["project"]["name"]).replace("-", "_")


def copied(project: Path, place: Path) -> Path:
    """A copy to build from, so that the sources stay clean; of the repository only what the core's wheel needs."""
    if project != ROOT:
        return Path(shutil.copytree(project, place, ignore=NOT_SOURCES))
    shutil.copytree(ROOT / "core", place / "core", ignore=NOT_SOURCES)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place)
    return place


def pip(*arguments: str) -> None:
    """pip has done what was asked."""
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    assert done.returncode == 0, done.stderr


def variables() -> dict[str, str]:
    """The process's own without what would lead back to the working tree."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def environment(
    wheels: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Environment]:
    """`environment(project, …)` is a clean one: ftcore and these projects from wheels, the rest linked from here."""

    def make(*projects: Path) -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        packages = next((folder / "lib").glob("python*/site-packages"))
        for source in map(Path, site.getsitepackages()):
            for entry in source.iterdir() if source.is_dir() else ():
                if not is_ours(entry.name) and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
        made = Environment(folder / "bin")
        made.install(*wheels(*projects))
        return made

    return make


def is_ours(name: str) -> bool:
    """Whether an entry of site-packages belongs to this repository or would lead back into it."""
    return name.lower().startswith(("ftcore", "__editable__", "_ftcore")) or name.endswith((".pth", ".egg-link"))


class Environment:
    """An environment of its own, by its folder of scripts."""

    def __init__(self, scripts: Path) -> None:
        self.scripts = scripts
        self.variables = variables()

    def install(self, *wheels: Path) -> None:
        """The wheels are installed in it."""
        pip(f"--python={self.scripts / 'python'}", "install", "--no-index", "--no-deps", *map(str, wheels))

    def call(self, *words: str, folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
        """What came of a command in `folder`: it ended with 0 and without a traceback."""
        done = subprocess.run(
            [str(self.scripts / words[0]), *words[1:]],
            input=typed, capture_output=True, text=True, cwd=folder, env=self.variables,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done
