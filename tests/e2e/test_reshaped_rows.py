"""A run reads rows of any form that its options describe, and says what it read otherwise than it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
from ftcore.hooks import Data, Run
from ftcore.settings import Settings
from ftcore.testing.stage import rows_file
from ftcore_causal import Causal

Row = dict[str, Any]
PLAIN = [
    {"instruction": "Where is the cat?", "output": "By the door."},
    {"instruction": "And now?", "output": "Outside."},
]


@pytest.fixture
def prepare(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Data, list[str]]]:
    """The data of a run on these rows and options, and what the run said."""

    def prepared(rows: list[Row], **options: Any) -> tuple[Data, list[str]]:
        file, said = rows_file(tmp_path / "rows.jsonl", rows), list[str]()
        run = Run(Settings(data=(str(file),), cache="off", **options), "train", "causal-lm", say=said.append)
        return Causal().prepare_data(run, ftcore.load("qwen", checkpoint=checkpoint("qwen2"))), said

    return prepared


def test_every_form_of_a_row_gives_the_same_tokens(prepare: Callable[..., Any], tmp_path: Path) -> None:
    wanted = [row.input_ids.tolist() for row in prepare(PLAIN)[0].train]
    template = tmp_path / "rows.yaml"
    template.write_text('instruction: "{{ q | trim }}"\noutput: "{{ a }}"\n')
    forms: list[tuple[list[Row], Row]] = [
        ([{"q": one["instruction"], "a": one["output"]} for one in PLAIN], {"columns": ("input=q", "output=a")}),
        ([{"q": f" {one['instruction']}\n", "a": one["output"]} for one in PLAIN], {"row_template": str(template)}),
        ([{"question": one["instruction"], "response": one["output"]} for one in PLAIN], {"data_format": "openorca"}),
    ]
    for rows, options in forms:
        assert [row.input_ids.tolist() for row in prepare(rows, **options)[0].train] == wanted


def test_a_misspelt_key_is_said_once_with_its_count(prepare: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"instrution": one["instruction"], "output": one["output"]} for one in PLAIN]
    data, said = prepare(rows)
    assert len(data.train) == 2
    noted = [line for text in said for line in text.splitlines() if "instrution" in line]
    assert noted == [f'2 × {tmp_path / "rows.jsonl"}: "instrution" read as "instruction"']


def test_rows_that_the_form_cannot_read_are_listed_by_file_and_line(prepare: Callable[..., Any]) -> None:
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1: row has no column q; it has instruction, output"):
        prepare(PLAIN, columns=("input=q", "output=output"))
