"""The page of what goes with what names every method, family and head, and is what trying them gives."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> Any:
    """The script that writes the page, with the one that it takes the shipped plugins from."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec = importlib.util.spec_from_file_location("matrix", ROOT / "docs" / "matrix.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["matrix"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "docs"))
        sys.modules.pop("matrix", None)
        sys.modules.pop("generate", None)


def test_every_method_has_a_row_and_every_family_and_head_a_column(matrix: Any) -> None:
    table = [
        line.strip("| ").split(" | ") for line in matrix.PAGE.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    assert table[0] == ["method", *(column.title for column in matrix.columns())]
    assert [row[0].strip("`") for row in table[2:]] == list(matrix.methods())
    assert {len(row) for row in table} == {len(table[0])} | {len(table[1])}


def test_every_sign_is_explained_and_every_refusal_says_what_to_do(matrix: Any) -> None:
    text = matrix.PAGE.read_text(encoding="utf-8")
    cells = [cell for line in text.splitlines() if line.startswith("| `") for cell in line.strip("| ").split(" | ")[1:]]
    used = {cell.removeprefix("✓") for cell in cells} - {""}
    reasons = dict(re.findall(r"^- \*\*(\w+)\*\* (.*)$", text, re.MULTILINE))
    assert used == reasons.keys()
    assert all(";" in reason or ":" in reason for reason in reasons.values())


@pytest.mark.slow
def test_the_page_is_what_trying_every_method_everywhere_gives(matrix: Any) -> None:
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page()
