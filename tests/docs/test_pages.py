"""What is written about the code is what the code says, and the site builds from it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(file.parent for file in ROOT.glob("plugins/*/*/pyproject.toml"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/**/README.md")])


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_every_generated_page_and_table_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_page_is_found(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "pages", lambda: {tmp_path / "page.md": "new\n"})
    (tmp_path / "page.md").write_text("old\n")
    assert CliRunner().invoke(generator.main, ["--check"]).exit_code == 1
    assert CliRunner().invoke(generator.main, []).exit_code == 0
    assert (tmp_path / "page.md").read_text() == "new\n"
    assert CliRunner().invoke(generator.main, ["--check"]).exit_code == 0


def test_every_hook_is_documented_with_its_exact_signature(generator: ModuleType) -> None:
    import inspect

    from ftcore import hooks

    page = (ROOT / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert len(generator.specs()) >= 8
    for name in generator.specs():
        spec = getattr(hooks, name)
        source = inspect.getsource(spec)
        written = source[source.index("def ") : source.index('"""')].rstrip().rstrip(":")
        assert f"## {name}\n\n```python\n{written}\n```" in page
        assert inspect.getdoc(spec) in page


def test_every_value_of_the_contract_is_documented_field_by_field(generator: ModuleType) -> None:
    import dataclasses

    from ftcore import hooks

    page = (ROOT / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
    for name in generator.VALUES:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        value = getattr(hooks, name)
        fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else ["size", "place"]
        assert all(f"| `{field}` |" in section for field in fields), name


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugins_readme_has_its_parts_in_order(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ .*$", without_code, re.MULTILINE)
    assert titles[:3] == [f"# {project['name']}", "## Install", "## Use"]
    assert titles[-1] == "## Options"
    assert re.search(r"^# .+\n\n[A-Z].+\n", text), "it opens with a sentence"
    assert f"pip install {project['name']}" in text


@pytest.mark.parametrize("folder", [one for one in PLUGINS if one.parent.name == "methods"], ids=lambda one: one.name)
def test_a_methods_readme_names_its_paper_its_cost_and_when_to_choose_it(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    if folder.name not in ("full", "freeze", "peft"):  # they have no paper of their own
        assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert re.search(r"\bcosts?\b", text, re.IGNORECASE)
    assert re.search(r"\bchoose\b", text, re.IGNORECASE)


def test_requirements_name_every_plugin_once() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").split("\n")
    listed = [line.removeprefix("-e ./") for line in lines if line.startswith("-e ./plugins/")]
    folders = [str(folder.relative_to(ROOT)) for folder in PLUGINS]
    assert sorted(listed) == sorted([*folders, "plugins/all"])


def test_the_metapackage_names_every_plugin() -> None:
    metapackage = tomllib.loads((ROOT / "plugins" / "all" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] for folder in PLUGINS]
    assert [d.partition(">")[0] for d in metapackage["dependencies"]] == sorted(names)


def test_the_readme_names_the_two_commands_to_begin_with() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "lint", "docs", "proofs", "clean"} <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_and_a_test_that_a_page_names_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    tests = re.findall(r"`(tests/[\w/]+\.py)`", prose)
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert [name for name in tests if not (ROOT / name).exists()] == []


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "reference" / "hooks" / "index.html").exists()
    assert not (tmp_path / "site" / "generate.py").exists()
