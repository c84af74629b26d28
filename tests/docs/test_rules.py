"""The rules of CONTRIBUTING hold: the core names no plugin, imports downwards, and reads nothing that can run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted(ROOT.glob("core/ftcore/*.py"))
SHIPPED = [*CORE, *(f for f in sorted(ROOT.glob("plugins/**/*.py")) if not f.name.startswith(("test_", "conftest")))]
# Names that are also words (one is a role in a format of rows); the core names them only where a name is meant.
ENGLISH = {"adapter", "auto", "causal", "diff", "freeze", "full", "gpt", "mask", "prefix", "prompt", "seq2seq"}


def names() -> set[str]:
    """What users type for the plugins of this repository."""
    found: set[str] = set()
    for file in ROOT.glob("plugins/*/*/pyproject.toml"):
        for entries in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["entry-points"].values():
            found |= entries.keys()
    return found


def mentions(text: str) -> Iterator[str]:
    """The places of `text` that name a plugin."""
    plain = "|".join(sorted(names() - ENGLISH))
    quoted = "|".join(sorted(names() & ENGLISH))
    expression = re.compile(rf"\b({plain})\b|(?:--|\b)(?:method|task|model)[ ='\":]+({quoted})\b", re.IGNORECASE)
    for number, line in enumerate(text.splitlines(), start=1):
        if expression.search(line):
            yield f"{number}: {line.strip()}"


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.name)
def test_the_core_names_no_plugin(file: Path) -> None:
    assert list(mentions(file.read_text(encoding="utf-8"))) == []


def test_a_mention_of_a_plugin_is_found() -> None:
    assert len(list(mentions("a = 'lora'\n# as lora does\n--task causal\nmethod='full'\n"))) == 4
    assert list(mentions("is_causal=True\nin full\ncausal attention\nexplorations\n")) == []


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_code_is_taken_from_data(file: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [m for m in modules if m.split(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib")]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            cautious = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if called == "torch.load" and cautious:  # tensors only; nothing in the file is run
                continue
            if called in ("eval", "exec", "compile", "torch.load", "yaml.load", "os.system"):
                found.append(called)
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) == "True":
            found.append("trust_remote_code=True")
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [ast.unparse(k) for k, v in pairs if k and "trust_remote_code" in ast.unparse(k) and _true(v)]
    assert found == []


def _true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_the_core_imports_downwards_only() -> None:
    pytest.importorskip("importlinter")
    command = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(ROOT.glob("tests/**/test_*.py")), ids=lambda file: file.name)
def test_a_test_file_opens_with_one_sentence(file: Path) -> None:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert re.fullmatch(r"[^\n]+[.`]", said.partition("\n\n")[0])
