"""Every messy file is either read right, with what was found out said, or refused with its line and a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ftcore.looking import Look, look

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "messy"
COUNT = 40


def row(number: int) -> dict[str, object]:
    """A row of ours, unlike the others."""
    answer = f"{number}加一等于{number + 1}，因为后一个数总比前一个数大一。"
    return {"instruction": f"{number}加一是多少？请说明原因。", "input": "", "output": answer}


def rows(**changes: Callable[[int], object]) -> list[dict[str, object]]:
    """Rows of which some fields are changed, and those that become `...` are left out."""
    changed = [row(n) | {key: change(n) for key, change in changes.items()} for n in range(COUNT)]
    return [{key: value for key, value in one.items() if value is not ...} for one in changed]


def array(given: list[dict[str, object]] | None = None) -> str:
    return json.dumps(given or rows(), ensure_ascii=False, indent=1)


def lines(given: list[dict[str, object]] | None = None) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in given or rows())


def misspelt(every: int) -> list[dict[str, object]]:
    wrong = [
        {"instrution" if key == "instruction" else key: value for key, value in row(n).items()} for n in range(COUNT)
    ]
    return [wrong[n] if n % every == 0 else row(n) for n in range(COUNT)]


def csv(delimiter: str, given: list[dict[str, object]] | None = None) -> str:
    given = given or rows()
    return "\n".join(delimiter.join(map(str, cells)) for cells in (given[0], *(one.values() for one in given))) + "\n"


def output(number: int, every: int, value: object) -> object:
    return value if number % every == 0 else row(number)["output"]


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a file: how many rows it has and cannot be used, what is noticed, or why it is refused."""

    rows: int = 0
    bad: int = 0
    problem: str = ""
    noticed: tuple[str, ...] = ()
    repeated: int = 0
    encoding: str = "UTF-8"
    newlines: str = "LF"
    refused: str = ""

    def holds(self, seen: Look) -> None:
        """The look says what the verdict says."""
        assert seen.refused == "" or self.refused, seen.refused
        assert re.search(self.refused, seen.refused)
        assert seen.sound == (not self.bad and not self.refused)
        if self.refused:
            assert seen.refused.startswith(seen.file)
            return
        assert (seen.rows, seen.cannot_be_used, seen.repeated) == (self.rows, self.bad, self.repeated)
        assert (seen.encoding, seen.newlines) == (self.encoding, self.newlines)
        assert len(seen.notices) == len(self.noticed), seen.notices
        assert all(map(re.search, self.noticed, seen.notices))
        assert bool(seen.problems) == bool(self.bad)
        assert not self.bad or re.search(self.problem, seen.problems[0])
        assert len(seen.problems) <= 30


def right(**said: object) -> Verdict:
    return Verdict(**{"rows": COUNT, **said})  # type: ignore[arg-type]


def encoded(name: str, **said: object) -> Verdict:
    return right(**{"encoding": name, "noticed": (f" is {name}, and is read as that$",), **said})


def wrong(bad: int, problem: str, **said: object) -> Verdict:
    return right(bad=bad, problem=problem, **said)


CONFLICT = f"[\n<<<<<<< HEAD\n{json.dumps(row(1))}\n=======\n{json.dumps(row(2))}\n>>>>>>> other\n]\n"
PYTHON = (
    "{\n    'instruction': 'Add.',\n    'output': 'Two.'\n}\n{\n    'instruction': 'Add.',\n    'output': None\n}\n"
)
CUT = array().encode()
MESSY: dict[str, tuple[str | bytes, Verdict]] = {
    "utf8_bom.json": (array().encode("utf-8-sig"), encoded("UTF-8 with BOM")),
    "utf8_bom.jsonl": (lines().encode("utf-8-sig"), encoded("UTF-8 with BOM")),
    "utf8_bom.csv": (csv(",").encode("utf-8-sig"), encoded("UTF-8 with BOM")),
    "gbk.json": (array().encode("gb18030"), encoded("GB18030")),
    "gbk.jsonl": (lines().encode("gb18030"), encoded("GB18030")),
    "gbk.csv": (csv(",").encode("gb18030"), encoded("GB18030")),
    "semicolon_gbk.csv": (csv(";").replace("\n", "\r\n").encode("gb18030"), encoded("GB18030", newlines="CRLF")),
    "gbk.txt": ("".join(f"{row(n)['output']}\n" for n in range(9)).encode("gb18030"), encoded("GB18030", rows=1)),
    "utf16le_bom.json": (("\ufeff" + array()).encode("utf-16-le"), encoded("UTF-16 LE")),
    "utf16be_bom.jsonl": (("\ufeff" + lines()).encode("utf-16-be"), encoded("UTF-16 BE")),
    "utf16le.json": (array().encode("utf-16-le"), Verdict(refused=r":1: byte 0x00 at offset 1 .*iconv -f UTF-16LE")),
    "crlf.json": (array().replace("\n", "\r\n"), right(newlines="CRLF")),
    "crlf_tabs.json": (array().replace("\n", "\r\n").replace(" ", "\t"), right(newlines="CRLF")),
    "crlf_and_lf.jsonl": (lines().replace("\n", "\r\n", 9), right(newlines="LF and CRLF")),
    "jsonl_named.json": (lines(), right()),
    "json_named.jsonl": (array(), right()),
    "blank_lines.jsonl": (lines().replace("\n", "\n\n \n"), right()),
    "comment_line.jsonl": (
        f"# a remark\n{lines()}",
        wrong(1, ":1:1: JSON breaks off at '# a remark'; .*remove it", rows=41),
    ),
    "bad_lines.jsonl": (
        re.sub(r"\}\n", "\n", lines(), count=3),
        wrong(3, r":1:\d+: JSON breaks off .*close its quotes"),
    ),
    "mixed_encoding.jsonl": (
        b"".join(
            line.encode("gb18030" if n % 2 else "utf-8") for n, line in enumerate(lines().splitlines(keepends=True))
        ),
        Verdict(refused=r":2: byte 0x.. at offset \d+ is not UTF-8 text; 20 of its lines are GB18030 .*convert only"),
    ),
    "western.csv": ("Café, naïve\nit’s\n".encode("cp1252"), Verdict(refused=r":1: byte 0xe9 .*save it as UTF-8")),
    "trailing_comma.json": (array()[:-1] + ",]", Verdict(refused=r":202:2: JSON breaks off at '\]'; remove the comma")),
    "comma_in_row.json": (
        array().replace('大一。"\n }', '大一。",\n }', 1),
        Verdict(refused=r":6:2: JSON breaks off .*remove the comma"),
    ),
    "comma_in_config.json": (
        '{\n "first": {\n  "file": "a.json",\n },\n "second": {"file": "b.json"}\n}',
        Verdict(refused=r":4:2: .*the comma"),
    ),
    "merge_conflict.json": (
        CONFLICT,
        Verdict(refused=r":2: a merge conflict marker \(<<<<<<<\) .*keep one of the two"),
    ),
    "merge_conflict.jsonl": (lines() + CONFLICT[2:-2], Verdict(refused=r":41: a merge conflict marker")),
    "python.jsonl": (PYTHON, Verdict(refused=r":2:5: JSON breaks off .*Python value; write it with json.dump")),
    "truncated.json": (CUT[: CUT.rindex("，".encode()) + 1], Verdict(refused=r":200: byte 0x.*cut short, so copy it")),
    "truncated_later.json": (
        CUT[: CUT.rindex("，".encode())],
        Verdict(refused=r":200:\d+: JSON breaks off .*cut short"),
    ),
    "instrution.json": (array(misspelt(1)), right(noticed=('^40 × .*"instrution" read as "instruction"',))),
    "instrution_some.json": (array(misspelt(10)), right(noticed=('^4 × .*"instrution" read as "instruction"',))),
    "instrution_alone.json": (
        json.dumps(misspelt(1)[0]),
        right(rows=1, noticed=('"instrution" read as "instruction"',)),
    ),
    "missing_output.json": (
        array(rows(output=lambda n: output(n, 8, ...))),
        wrong(5, ':2: output is missing; add "output"'),
    ),
    "empty_output.json": (
        array(rows(output=lambda n: output(n, 8, ""))),
        wrong(5, ":2: output is empty; give it text"),
    ),
    "blank_output.json": (array(rows(output=lambda n: output(n, 8, " \n"))), wrong(5, ":2: output is blank: ")),
    "null_input.json": (array(rows(input=lambda n: None)), right()),
    "null_output.json": (
        array(rows(output=lambda n: output(n, 2, None))),
        wrong(20, ":2: output is null; make it a text"),
    ),
    "number.json": (
        array(rows(output=lambda n: output(n, 2, 7))),
        wrong(20, ":2: output is the number 7; make it a text"),
    ),
    "nul.json": (
        array(rows(output=lambda n: output(n, 8, "a\0b"))),
        wrong(5, r":2: output has '\\x00' at position 1; remove"),
    ),
    "widths.json": (array(rows(output=lambda n: f"{n}\u200b\ufeff{n}")), right()),
    "duplicates.json": (array([row(n // 2) for n in range(COUNT)]), right(repeated=20)),
    "empty.json": ("", Verdict(refused="is empty; pass a file with rows or text")),
    "blank.jsonl": ("\r\n \n", Verdict(refused="is empty; pass a file with rows or text")),
    "empty_list.json": ("[]\n", Verdict(refused="holds an empty list; pass a file with rows")),
    "without_header.csv": (
        "\ufeffHow do I add one to a number, and why?;3\r\nWith plus.;4\r\n".encode("utf-16-le"),
        encoded(
            "UTF-16 LE",
            rows=1,
            newlines="CRLF",
            noticed=("is UTF-16 LE", ":1: 'How do I add one .* --header-row 0 reads", "no task reads the columns"),
        ),
    ),
}


@pytest.mark.parametrize("name", MESSY)
def test_a_messy_file_gets_its_verdict(tmp_path: Path, name: str) -> None:
    content, verdict = MESSY[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (seen,) = look([str(tmp_path / name)])
    verdict.holds(seen)


def gbk(**said: object) -> Verdict:
    return encoded("GB18030", **said)


FOUND = {
    "derived_bad_lines.jsonl": wrong(8, ":8:217: JSON", rows=120),
    "derived_blank_and_comment_lines.jsonl": wrong(1, ":7:1: JSON breaks off at '# comment'", rows=121),
    "derived_control_chars.json": wrong(6, r":2: output has '\\x00' at position 20", rows=120),
    "derived_crlf.json": right(rows=120, newlines="CRLF"),
    "derived_duplicates.json": right(rows=150, repeated=30),
    "derived_empty.json": Verdict(refused="is empty"),
    "derived_empty_list.json": Verdict(refused="holds an empty list"),
    "derived_empty_output.json": wrong(30, ":2: output is empty", rows=120),
    "derived_gbk.json": gbk(rows=120),
    "derived_instrution_key.json": right(rows=120, noticed=('^120 × .*"instrution" read as "instruction"',)),
    "derived_instrution_key_some.json": right(rows=120, noticed=('^12 × .*"instrution" read as "instruction"',)),
    "derived_jsonl_named_json.json": right(rows=120),
    "derived_missing_output.json": wrong(14, ":2: output is missing", rows=120),
    "derived_mixed_encoding.jsonl": Verdict(refused=":2: byte 0xd5 .* 60 of its lines are GB18030"),
    "derived_null_and_number.json": wrong(11, ":27: output is the number 12345", rows=120),
    "derived_semicolon_gbk.csv": gbk(rows=120, newlines="CRLF"),
    "derived_trailing_comma.json": Verdict(refused=":602:1: .*remove the comma"),
    "derived_truncated.json": Verdict(refused=":480: .*cut short"),
    "derived_utf16le_bom.json": encoded("UTF-16 LE", rows=120),
    "derived_utf8_bom.json": encoded("UTF-8 with BOM", rows=120),
    "derived_utf8_bom.jsonl": encoded("UTF-8 with BOM", rows=120),
    "real_crlf_tabs.json": right(rows=300, newlines="CRLF", repeated=1),
    "real_duplicates.json": right(rows=302, repeated=60),
    "real_empty_and_dup.json": wrong(3, ":444: output is empty", rows=312, repeated=6),
    "real_gbk.txt": gbk(rows=1),
    "real_instrution_snippet.json": right(rows=1, noticed=('"instrution" read as "instruction"',)),
    "real_instrution_snippet_as_list.json": right(rows=1, noticed=('"instrution" read as "instruction"',)),
    "real_merge_conflict.json": Verdict(refused=":1: a merge conflict marker"),
    "real_not_jsonl.jsonl": Verdict(refused=":2:13: .*Python value"),
    "real_trailing_comma.json": Verdict(refused=":606:1: .*remove the comma"),
    "real_utf16le_bom.jsonl": encoded("UTF-16 LE", rows=10, newlines="CRLF"),
}


def test_messy_files_that_people_published_get_their_verdicts() -> None:
    there = [name for name in FOUND if (REAL / name).is_file()]
    for name in there:
        (seen,) = look([str(REAL / name)])
        FOUND[name].holds(seen)
    assert there in ([], list(FOUND))
