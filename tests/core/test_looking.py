"""`ftcore data check` says what is in a file and what is wrong with it, and loads no model for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ftcore.cli import cli
from ftcore.errors import Refused
from ftcore.looking import look
from ftcore.testing.stage import rows_file

ROWS = [
    {"instruction": "Where is the cat?", "input": "", "output": "By the door."},
    {"instruction": "And the dog?", "input": " ", "output": "Outside, in the yard behind the house."},
    {"instruction": "Where is the cat?", "input": "", "output": "By the door."},
    {"instruction": "Add.", "input": "1 + 1", "output": "2."},
    {"instruction": "Where is the cat?", "input": "", "output": "By the door."},
]


def put(folder: Path, name: str, rows: list[dict[str, object]] | list[dict[str, str]]) -> str:
    return str(rows_file(folder / name, rows))


def check(*words: str) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *words])


def test_everything_about_a_file_is_counted(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jsonl", ROWS)
    (seen,) = look([source])
    assert (seen.format, seen.encoding, seen.newlines) == ("JSON lines", "UTF-8", "LF")
    assert (seen.rows, seen.cannot_be_used, seen.sound) == (5, 0, True)
    assert (dict(seen.shapes), list(seen.keys)) == ({"alpaca": 5}, ["instruction", "input", "output"])
    assert (seen.repeated, list(seen.repeated_places)) == (2, [f"{source}:1", f"{source}:3"])
    assert seen.empty == {"input": 4}
    assert (seen.longest, seen.longest_place) == (sum(map(len, ROWS[1].values())), f"{source}:2")
    assert seen.first == ROWS[0]


def test_what_is_printed_is_what_was_counted_and_ends_well(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jsonl", ROWS)
    done = check(source)
    assert done.exit_code == 0
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in done.output.splitlines()[1:]}
    assert done.output.startswith(f"{source}: JSON lines, UTF-8, LF\n")
    assert said["rows"] == "5"
    assert said["shape"] == "alpaca (5)"
    assert said["repeated"] == f"2, first {source}:1 and {source}:3"
    assert said["empty"] == "input in 4"
    assert json.loads(said["first"]) == ROWS[0]
    (plain,) = json.loads(check(source, "--json").output)
    assert (plain["file"], plain["rows"], plain["first"], plain["refused"]) == (source, 5, ROWS[0], "")


def test_each_file_is_looked_at_whatever_is_wrong_with_the_others(tmp_path: Path) -> None:
    bad = put(tmp_path, "bad.jsonl", [*ROWS[:1], *({"instruction": f"Name {n}.", "output": ""} for n in range(25))])
    (tmp_path / "cut.json").write_text('[{"instruction": "Add."')
    good = put(tmp_path, "good.jsonl", ROWS)
    done = check(bad, str(tmp_path / "cut.json"), str(tmp_path / "absent.json"), "a/b/c", good)
    assert done.exit_code == 2
    assert "rows      26, of which 25 cannot be used" in done.output
    assert f"  {bad}:21: output is empty; give it text, or remove the row\n  … and 5 more\n" in done.output
    assert "25 × output: give it text" in done.output
    assert "cut.json:1:24: JSON breaks off because the file ends" in done.output
    assert "absent.json does not exist; " in done.output
    assert done.output.rstrip().endswith("}")
    assert [one["refused"] == "" for one in json.loads(check(bad, "a/b", good, "--json").output)] == [True, False, True]


def test_a_row_of_another_shape_than_its_neighbours_is_a_problem(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jsonl", [*ROWS[:2], {"query": "a", "reply": "b"}])
    (seen,) = look([source])
    assert seen.problems[0].startswith(f'{source}:3: row has the keys "query", "reply"')


def test_columns_that_no_task_reads_are_noticed_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,age\nAda,36\nBen,20\n")
    (seen,) = look([str(tmp_path / "a.csv")])
    assert seen.sound
    assert seen.shapes == {"unknown": 2}
    assert seen.notices == [f"{tmp_path}/a.csv: no task reads the columns name, age as they are; --columns names them"]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen/rejected"),
        ({"tokens": ["a", "b"], "tags": ["O", "B-X"]}, "tokens/tags"),
        ({"context": "Tom sleeps.", "question": "Who?", "answers": {"text": ["Tom"], "answer_start": [0]}}, "squad"),
        ({"text": "a"}, "text"),
        ({"text": "a", "label": "b"}, "text/label"),
        ({"question": "a", "answer": "b"}, "question/answer"),
    ],
)
def test_a_row_that_a_task_reads_is_sound_and_its_shape_named(
    tmp_path: Path, row: dict[str, object], shape: str
) -> None:
    (seen,) = look([put(tmp_path, "a.jsonl", [row, row])])
    assert seen.problems == ()
    assert seen.shapes == {shape: 2}


def test_with_a_task_the_rows_are_tried_on_what_it_reads(tmp_path: Path) -> None:
    texts = put(tmp_path, "a.jsonl", [{"text": "Once upon a time."}])
    story = tmp_path / "book.txt"
    story.write_text("One day\tit rained.\n<|endoftext|>\nThen\tit stopped.\n")
    assert check(texts).exit_code == check(texts, "--task", "pretrain").exit_code == 0
    refused = check(texts, "--task", "causal")
    assert refused.exit_code == 2
    assert 'a.jsonl:1: row has the keys "text"' in refused.output
    (rows,) = look([str(story)], task="pretrain")
    assert (rows.format, rows.rows, rows.first) == ("running text", 2, {"text": "One day\tit rained."})


def test_the_sheet_and_the_line_of_the_header_are_told(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.create_sheet("Rows")
    for cells in (["of Monday"], ["question", "answer"], ["Where is the cat?", "By the door."]):
        sheet.append(cells)
    book.save(tmp_path / "a.xlsx")
    done = check(str(tmp_path / "a.xlsx"), "--sheet", "Rows", "--header-row", "2")
    assert done.exit_code == 0
    assert '{"question": "Where is the cat?", "answer": "By the door."}' in done.output
    assert check(str(tmp_path / "a.xlsx"), "--sheet", "None").exit_code == 2


def test_columns_are_named_as_for_a_run(tmp_path: Path) -> None:
    source = str(tmp_path / "a.csv")
    Path(source).write_text("Question,Answer\nWhere is the cat?,By the door.\nAnd the dog?,\n", encoding="utf-8")
    done = check(source, "--columns", "instruction=Question,output=Answer")
    assert done.exit_code == 2
    assert '{"instruction": "Where is the cat?", "output": "By the door."}' in done.output
    assert f"  {source}:3: output is empty" in done.output
    assert "has no column Reply; it has Question, Answer" in check(source, "--columns", "output=Reply").output
    both = check(source, "--columns", "output=Answer", "--data-format", "medical")
    assert isinstance(both.exception, Refused)


def test_looking_loads_no_model_library(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jsonl", ROWS)
    code = f"""
import sys
from ftcore.looking import look
assert [seen.rows for seen in look([{source!r}])] == [5]
print({{"torch", "transformers", "datasets", "pyarrow", "openpyxl"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
