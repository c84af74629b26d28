"""Distributions that are installed for one test, and the command line in a process that sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Publish = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish("ftcore-nova", "method", "nova", source)` is the folder of an installed distribution that announces it.

    Its module is `ftcore_nova_module` and its version 1.5, unless others are given.
    """

    def install(
        distribution: str, kind: str, name: str, source: str, target: str = "It", *, version: str = "1.5",
        requires: str = "", package: bool = False,
    ) -> Path:  # fmt: skip
        module = distribution.replace("-", "_") + "_module"
        folder = tmp_path / "installed" / distribution
        announced = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        announced.mkdir(parents=True)
        file = folder / module / "__init__.py" if package else folder / f"{module}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        required = f"Requires-Dist: {requires}\n" if requires else ""
        described = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{required}"
        (announced / "METADATA").write_text(described)
        (announced / "entry_points.txt").write_text(f"[ftcore.{kind}s]\n{name} = {module}:{target}\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return folder

    return install


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`command("plugins", "--json")` is what ftcore does in a process of its own that sees what was published."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "installed").mkdir(exist_ok=True)
        path = {"PYTHONPATH": os.pathsep.join(map(str, sorted((tmp_path / "installed").iterdir())))}
        kept = {name: value for name, value in os.environ.items() if name != "FTCORE_PLUGINS"}
        return subprocess.run(
            [sys.executable, "-m", "ftcore", *arguments],
            capture_output=True, text=True, env=kept | path | environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run
