"""Rows are the same from every kind of file, packed or not, named or told by content, in any encoding that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from documents import iter_documents, read_documents
from ftcore.errors import Refused
from ftcore.problems import Problems, settle
from ftcore.records import (
    Layout,
    Record,
    fingerprint,
    iter_records,
    read_records,
    weighted,
)

ROWS = [
    {"ask": "Where is the cat?", "say": "By the door, asleep."},
    {"ask": "小猫在哪里？", "say": '它在"门口"\n看雨; 等人,\t不睡。'},
    {"ask": "And the dog?", "say": "Outside."},
]


def put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(*sources: str, layout: Layout | None = None) -> tuple[list[Record], Problems]:
    problems = Problems()
    return read_records(sources, problems, layout), problems


def fields(*sources: str, layout: Layout | None = None) -> list[Mapping[str, object]]:
    records, problems = read(*sources, layout=layout)
    assert len(problems) == 0, problems.summary()
    return [dict(record.fields) for record in records]


def table(delimiter: str, rows: list[dict[str, str]] = ROWS) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: list[dict[str, str]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(rows: list[dict[str, str]] = ROWS) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue()


def workbook(**sheets: list[list[object]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def zipped(name: str, content: bytes, *others: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        for other in others:
            archive.writestr(other, "")
    return out.getvalue()


def tar(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


GRID: list[list[object]] = [["ask", "say"], *([row["ask"], row["say"]] for row in ROWS)]
KINDS: dict[str, Callable[[], str | bytes]] = {
    "a.json": lambda: json.dumps(ROWS, indent=1),
    "object.json": lambda: json.dumps({f"row {n}": row for n, row in enumerate(ROWS)}, indent=1),
    "data.json": lambda: json.dumps({"version": 1, "data": ROWS}),
    "lines.json": lines,
    "array.jsonl": lambda: json.dumps(ROWS, indent=1),
    "a.jsonl": lines,
    "a.ndjson": lines,
    "a.txt": lines,
    "noname": lines,
    "a.train": lambda: json.dumps(ROWS, indent=1),
    "a.csv": lambda: table(","),
    "semicolon.csv": lambda: table(";"),
    "tab.csv": lambda: table("\t"),
    "a.tsv": lambda: table("\t"),
    "a.parquet": parquet,
    "part-0": parquet,
    "a.xlsx": lambda: workbook(Rows=GRID),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert fields(put(tmp_path, name, KINDS[name]())) == ROWS


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_file_gives_the_same_rows_whatever_its_name(tmp_path: Path, packing: str, name: str) -> None:
    content = KINDS[name]()
    packed = PACKINGS[packing](content if isinstance(content, bytes) else content.encode())
    assert fields(put(tmp_path, name + packing, packed)) == ROWS
    assert fields(put(tmp_path, name, packed)) == ROWS


def test_an_archive_is_read_when_it_holds_one_file(tmp_path: Path) -> None:
    content = table(";").encode("gb18030")
    assert fields(put(tmp_path, "a.zip", zipped("in/rows.csv", content, "__MACOSX/in/._rows.csv"))) == ROWS
    with pytest.raises(Refused, match=r"two.zip holds 2 files, rows.csv, b.csv; unpack it"):
        read(put(tmp_path, "two.zip", zipped("rows.csv", content, "b.csv")))


def test_a_damaged_packed_file_is_refused(tmp_path: Path) -> None:
    noise = json.dumps([{"n": random.Random(n).random()} for n in range(200)]).encode()
    for packing, pack in PACKINGS.items():
        with pytest.raises(Refused, match=r"cannot be unpacked .*; copy it again whole|cut short"):
            read(put(tmp_path, f"a.json{packing}", pack(noise)[:-60]))
    with pytest.raises(Refused, match=r"cannot be unpacked .*; copy it again whole"):
        read(put(tmp_path, "a.zip", zipped("a.json", noise)[:-60]))


@pytest.mark.parametrize(("module", "name"), [("zstandard", "a.jsonl.zst"), ("openpyxl", "a.xlsx")])
def test_what_needs_a_library_that_is_absent_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    source = put(tmp_path, name, zstd(lines().encode()) if module == "zstandard" else workbook(Rows=GRID))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=f"run `pip install {module}`"):
        read(source)


@pytest.mark.parametrize(
    ("name", "opening", "phrase"),
    [
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as .xlsx or .csv"),
        ("a.arrow", b"ARROW1\0\0", "save it as Parquet"),
        ("a.json", b"%PDF-1.7\n", "save its text as .txt"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.tar.gz", gzip.compress(tar("a.jsonl"), mtime=0), "is an archive of files: unpack it"),
        ("a.xlsx", zipped("xl/workbook.xml", b""), "is no sound workbook"),
        ("a.bin", bytes(range(1, 200)), "is not UTF-8 text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_no_rows_is_refused_with_what_to_do(tmp_path: Path, name: str, opening: bytes, phrase: str) -> None:
    with pytest.raises(Refused, match=phrase):
        read(put(tmp_path, name, opening))


# --- encodings -------------------------------------------------------------------------------------------

ENCODINGS = {"utf-8-sig": "UTF-8 with BOM", "utf-16-le": "UTF-16 LE", "utf-16-be": "UTF-16 BE", "gb18030": "GB18030"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_an_encoding_is_told_and_named(tmp_path: Path, name: str, encoding: str, ending: str) -> None:
    content = str(KINDS[name]()).replace("\n", ending)
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    content = json.dumps(ROWS, ensure_ascii=False) if name == "a.json" else content
    source = put(tmp_path, name, (mark + content).encode(encoding))
    records, problems = read(source)
    assert [dict(record.fields) for record in records] == ROWS
    assert problems.notices() == [f"{source} is {ENCODINGS[encoding]}, and is read as that"]


def test_plain_utf8_is_not_worth_a_notice(tmp_path: Path) -> None:
    assert read(put(tmp_path, "a.jsonl", lines()))[1].notices() == []


def test_an_encoding_is_told_by_the_end_of_a_long_file_too(tmp_path: Path) -> None:
    plain = '{"n": "prime"}\n' * 100_000
    chinese = '{"n": "素数是只能被一和它自己整除的数，我们在这里说的是七。"}\n'
    source = put(tmp_path, "a.jsonl", plain.encode() + chinese.encode("gb18030"))
    assert read(source)[0][-1].fields == json.loads(chinese)
    with pytest.raises(
        Refused, match=rf"a.jsonl:100002: byte 0x.* at offset {len(plain) + len(chinese.encode()) + 7}.* 1 of its lines"
    ):
        read(put(tmp_path, "a.jsonl", plain.encode() + chinese.encode() + chinese.encode("gb18030")))


def test_a_file_of_two_encodings_is_refused_however_few_lines_are_of_the_other(tmp_path: Path) -> None:
    line = '{"n": "素数是只能被一和它自己整除的数"}\n'
    with pytest.raises(Refused, match="99 of its lines are GB18030 and the others UTF-8: convert only those lines"):
        read(put(tmp_path, "a.jsonl", line.encode("gb18030") * 99 + line.encode()))


def test_rows_that_are_repeated_are_read_and_counted_in_a_notice(tmp_path: Path) -> None:
    one, two = put(tmp_path, "a.jsonl", lines()), put(tmp_path, "b.csv", table(";"))
    records, problems = read(one, two)
    assert len(records) == 2 * len(ROWS)
    assert problems.notices() == [f"3 rows repeated, first {one}:1 and {two}:2"]
    notice = settle(problems, "error", len(records))
    assert notice == problems.notices()[0]


# --- tables ----------------------------------------------------------------------------------------------


def test_a_row_of_a_table_is_placed_on_the_line_where_it_begins(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", 'a,b\r\n\r\n1,"x\r\ny\r\n"\r\n2,z\r\n')
    records, _ = read(source)
    assert [(record.line, dict(record.fields)) for record in records] == [
        (3, {"a": "1", "b": "x\ny\n"}),
        (6, {"a": "2", "b": "z"}),
    ]


def test_rows_of_other_widths_are_problems_of_their_lines(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", 'a,b\n1,2\n3\n4,5,6\n7,8,,\n"9" 9,0\n10,11\n')
    records, problems = read(source)
    assert [record.fields["a"] for record in records] == ["1", "7", "10"]
    found = problems.summary().split("\n")
    assert found[0].startswith(f"{source}:3: row has 1 cell where there are 2 columns (a, b); add or remove cells")
    assert found[1].startswith(f"{source}:4: row has 3 cells")
    assert found[2].startswith(f"{source}:6: row goes on behind the quote")


def test_a_carriage_return_ends_lines_only_where_nothing_else_does(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "array.jsonl"):
        content = str(KINDS[name]()).replace("\n", "\r")
        assert fields(put(tmp_path, name, content)) == ROWS
    source = put(tmp_path, "b.csv", 'a,b\n1,x\ry\n2,"x\ry"\n')
    records, problems = read(source)
    assert [dict(record.fields) for record in records] == [{"a": "2", "b": "x\ry"}]
    assert problems.summary().startswith(f"{source}:2: row has a carriage return in a cell")


def test_a_quote_that_stays_open_is_refused_where_it_opens(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a.csv:3: a cell opens with a quote that is not closed"):
        read(put(tmp_path, "a.csv", 'a,b\n1,2\n3,"4\n5,6\n'))


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    text = "a long text " * 50_000
    assert fields(put(tmp_path, "a.csv", table(",", [{"a": text, "b": "x"}]))) == [{"a": text, "b": "x"}]


def test_a_table_of_one_column_is_read_whatever_its_texts_hold(tmp_path: Path) -> None:
    rows = [{"text": "one; two; three"}, {"text": "four, five"}]
    assert fields(put(tmp_path, "a.csv", table(",", rows))) == rows


def test_columns_without_a_header_are_numbered(tmp_path: Path) -> None:
    content = '"Help!\t"救命！\nHi.\t嗨。\n'
    expected = [{"1": '"Help!', "2": '"救命！'}, {"1": "Hi.", "2": "嗨。"}]
    for name in ("cmn.txt", "dev", "dev.tsv"):
        layout = Layout(header_row=0) if name.endswith(".tsv") else None
        assert fields(put(tmp_path, name, content), layout=layout) == expected
    assert fields(put(tmp_path, "b.txt", "en\tzh\nHi.\t嗨。\n"), layout=Layout(header_row=1)) == [
        {"en": "Hi.", "zh": "嗨。"}
    ]


def test_the_line_of_the_header_can_be_named(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", "Export of Monday,\n\na,b\n1,2\n")
    records, _ = read(source, layout=Layout(header_row=3))
    assert [(record.line, dict(record.fields)) for record in records] == [(4, {"a": "1", "b": "2"})]


def test_a_header_that_looks_like_a_row_is_noticed(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", "How do I sort a list of words in place?;12\nWith sort.;3\n".encode("utf-16"))
    records, problems = read(source)
    assert len(records) == 1
    assert "'How do I sort a list of words in place?' is read as the name of a column" in problems.notices()[1]
    assert [dict(r.fields) for r in read(source, layout=Layout(header_row=0))[0]][1] == {"1": "With sort.", "2": "3"}


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a.csv:1: the header names 'a' twice; .*--header-row 0"):
        read(put(tmp_path, "a.csv", "a,b,a\n1,2,3\n"))
    with pytest.raises(Refused, match="holds no row under its header"):
        read(put(tmp_path, "b.csv", "a,b\n"))


def test_a_sheet_is_named_and_its_values_are_text(tmp_path: Path) -> None:
    import datetime

    day = datetime.datetime(2024, 5, 17)
    source = put(
        tmp_path,
        "a.xlsx",
        workbook(
            Notes=[["nothing", "here"], ["a", "b"]],
            Rows=[["of Monday"], [], ["q", "n", "x"], ["a\r\nb", 3, None], [], ["c", 4.5, True], ["d", day, 7.0]],
        ),
    )
    assert fields(source, layout=Layout("Rows", 3)) == [
        {"q": "a\nb", "n": "3", "x": ""},
        {"q": "c", "n": "4.5", "x": "TRUE"},
        {"q": "d", "n": "2024-05-17T00:00:00", "x": "7"},
    ]
    records, problems = read(source)
    assert [(record.line, dict(record.fields)) for record in records] == [(2, {"nothing": "a", "here": "b"})]
    assert problems.notices() == [f"{source}: of the sheets Notes, Rows the first is read; --sheet names another"]
    with pytest.raises(Refused, match="has no sheet 'Row'; it has Notes, Rows"):
        read(source, layout=Layout("Row"))


# --- tokens and questions --------------------------------------------------------------------------------

CONLL = "-DOCSTART- -X- O\n\nAda NNP B-PER\nLovelace NNP I-PER\nwrote VBD O\n\n\n# a remark\n# # O\n1 CD O\n"


@pytest.mark.parametrize("name", ["a.conll", "ner.train", "ner.dev", "ner", "a.txt", "a.bio"])
@pytest.mark.parametrize("gap", [" ", "\t"])
def test_tokens_with_tags_are_sentences(tmp_path: Path, name: str, gap: str) -> None:
    content = CONLL if gap == " " else CONLL.replace(" ", "\t").replace("#\ta\tremark", "# a remark")
    records, problems = read(put(tmp_path, name, content))
    assert len(problems) == 0
    assert [(record.line, record.fields["tokens"], record.fields["tags"]) for record in records] == [
        (3, ["Ada", "Lovelace", "wrote"], ["B-PER", "I-PER", "O"]),
        (9, ["#", "1"], ["O", "O"]),
    ]


def test_a_token_without_a_tag_is_a_problem_of_its_line(tmp_path: Path) -> None:
    source = put(tmp_path, "a.conll", "a O\nb\nc O\n\nd O\n")
    records, problems = read(source)
    assert [record.fields["tokens"] for record in records] == [["d"]]
    assert problems.summary().startswith(f"{source}:2: token has no tag: 'b'")


NESTED = """{"version": "v2.0", "data": [
 {"title": "Cats", "paragraphs": [
  {"qas": [
    {"id": "a", "question": "Who sleeps?", "answers": [{"text": "Tom", "answer_start": 0}], "is_impossible": false},
    {"id": "b", "question": "Who barks?", "answers": [], "is_impossible": true}
   ], "context": "Tom sleeps."},
  {"context": "Kit eats.", "qas": [{"id": "c", "question": "Who eats?", "answers": []}, {"id": "d", "question": "?"}]}
 ]},
 {"title": "None", "paragraphs": [{"context": "Alone.", "qas": []}, {"context": "Lost."}]}
]}"""


def test_nested_questions_are_rows_on_their_own_lines(tmp_path: Path) -> None:
    whole = json.loads(NESTED)
    expected = [
        {"title": article["title"], "context": part["context"], **question}
        for article in whole["data"]
        for part in article["paragraphs"]
        for question in part.get("qas", ())
    ]
    source = put(tmp_path, "a.json", NESTED)
    records, problems = read(source)
    assert [dict(record.fields) for record in records] == expected
    columns = [NESTED.split("\n")[6].index(f'{{"id": "{name}"') + 1 for name in "cd"]
    assert [(record.line, record.column) for record in records] == [(4, 0), (5, 0), (7, 0), (7, columns[1])]
    assert problems.summary().startswith(f"{source}:9")
    assert 'give it "qas"' in problems.summary()
    for name, content in {
        "articles.json": json.dumps(whole["data"][:1]),
        "lines.jsonl": "\n".join(json.dumps(part) for part in whole["data"][0]["paragraphs"]),
        "article.json": json.dumps(whole["data"][0], indent=1),
    }.items():
        assert [row["id"] for row in fields(put(tmp_path, name, content))] == ["a", "b", "c", "d"]


# --- sources ---------------------------------------------------------------------------------------------


def test_a_directory_is_all_its_files_in_order_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    kept = {
        "b/2.jsonl": lines(),
        "b/1.jsonl.gz": gzip.compress(lines().encode()),
        "a.csv": table(","),
        "c.parquet": parquet(),
    }
    for name, content in kept.items():
        put(tmp_path, name, content)
    for name in ("README.md", "b/photo.png", ".hidden/x.json", "__pycache__/x.json", ".x.json"):
        put(tmp_path, name, "?")
    put(tmp_path, "empty.json", "")
    records, problems = read(str(tmp_path))
    names = list(dict.fromkeys(record.source for record in records))
    assert [name.removeprefix(f"{tmp_path}/") for name in names] == ["a.csv", "b/1.jsonl.gz", "b/2.jsonl", "c.parquet"]
    assert len(records) == 4 * len(ROWS)
    assert problems.notices()[0].endswith("left out, as their suffixes name no rows: README.md, b/photo.png")
    with pytest.raises(Refused, match="is a directory without a file of rows or text; it holds photo"):
        read(put(tmp_path, "other/photo.png", "?").removesuffix("/photo.png"))


def test_running_text_among_files_of_rows_is_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", lines())
    text = put(tmp_path, "notes.txt", "It was a cold day.\n")
    records, problems = read(str(tmp_path))
    assert len(records) == len(ROWS)
    assert problems.notices() == [f"{text}: left out, as it is running text"]
    with pytest.raises(Refused, match=r"notes.txt holds running text"):
        read(text)


def test_a_pattern_is_the_files_that_match_it(tmp_path: Path) -> None:
    for name in ("x1.jsonl", "x2.jsonl", "y.jsonl", "deep/er/x3.jsonl"):
        put(tmp_path, name, lines())
    found = [record.source.removeprefix(f"{tmp_path}/") for record in read(f"{tmp_path}/**/x*.jsonl")[0]]
    assert list(dict.fromkeys(found)) == ["deep/er/x3.jsonl", "x1.jsonl", "x2.jsonl"]
    assert len(fields(f"{tmp_path}/x?.jsonl")) == 2 * len(ROWS)
    put(tmp_path, "z[1].jsonl", lines())
    assert len(fields(f"{tmp_path}/z[1].jsonl")) == len(ROWS)
    with pytest.raises(Refused, match="matches no file"):
        read(f"{tmp_path}/*.csv")


def test_a_weight_stands_behind_a_colon_unless_a_file_is_so_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert weighted("a.json:0.3") == ("a.json", 0.3)
    assert weighted("house/rows:2") == ("house/rows", 2)
    assert weighted("a:b.json:.5") == ("a:b.json", 0.5)
    assert [weighted(spec)[1] for spec in ("a.json", "a:b.json", "a.json:", "a.json:x", "a.json:-1")] == [None] * 5
    put(tmp_path, "a.json:0.3", "[]")
    assert weighted("a.json:0.3") == ("a.json:0.3", None)
    with pytest.raises(Refused, match="has the weight 0"):
        weighted("a.json:0.0")


def test_a_fingerprint_changes_with_contents_order_and_kind_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = put(tmp_path, "one/a.jsonl", lines()), put(tmp_path, "two/b.jsonl", lines(ROWS[:2]))
    same = put(tmp_path, "else/b.jsonl", lines())
    assert fingerprint([one]) == fingerprint([same]) == fingerprint([str(tmp_path / "one")])
    assert fingerprint([one, two]) == fingerprint([str(tmp_path / "[ot][nw]*/*.jsonl")])
    prints = [[one], [two], [one, two], [two, one], [one, one], [put(tmp_path, "a.txt", lines())]]
    assert len({fingerprint(sources) for sources in prints}) == len(prints)
    monkeypatch.chdir(tmp_path)
    versions = []
    for version in ("1.0.0", "1.0.1", "1.0.0"):
        builder = types.SimpleNamespace(hash="abc", info=types.SimpleNamespace(version=version))
        fake = types.SimpleNamespace(load_dataset_builder=lambda name, builder=builder: builder)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        versions.append(fingerprint(["house/rows"]))
    assert versions[0] == versions[2] != versions[1]


# --- streaming -------------------------------------------------------------------------------------------

MESSY = (
    *('{"n": 1}', "", "{'n': 2}", '{"n": 3', '{"n": NaN}', "# remark", '{"text": "素数"}'),
    *("[1]", '{"n": 1}', '{"a": 1, "a": 2}'),
)


def test_a_stream_gives_the_rows_lines_and_problems_of_the_list(tmp_path: Path) -> None:
    draw = random.Random(3)
    for trial in range(20):
        content = "\n".join(draw.choice(MESSY) for _ in range(draw.randrange(3, 40)))
        source = put(tmp_path, f"{trial}.jsonl", f'{{"n": 0}}\n{content}\n')
        listed, streamed = Problems(), Problems()
        assert read_records([source], listed) == list(iter_records([source], streamed))
        assert listed.summary(10**6) == streamed.summary(10**6)
        assert read_documents([source], None, Problems()) == list(iter_documents([source], None, Problems()))


def test_documents_are_parted_alike_however_the_lines_fall(tmp_path: Path) -> None:
    draw = random.Random(5)
    for trial in range(200):
        text = "b" + "".join(draw.choice(["a", "b", "\n", "\n\n", "##", "#"]) for _ in range(draw.randrange(1, 40)))
        separator = draw.choice(["##", "\n\n", "#\n", "ab", "\n\n\n", "#"])
        lines = text.split("\n")
        if "\n" not in separator and separator in lines:
            parts = re.split(rf"(?m)^{separator}$", text)
        else:
            parts = text.split(separator)
        documents = read_documents([put(tmp_path, f"{trial}.txt", text)], separator)
        assert [document.text for document in documents] == [part.strip("\n") for part in parts if part.strip()]
        assert all(document.text.split("\n")[0] in lines[document.line - 1] for document in documents)


PEAK = """
import resource, sys
from ftcore.problems import Problems, settle
from ftcore.records import iter_records, iter_texts
source, kind = sys.argv[1:]
read = iter_records([source], Problems()) if kind == "rows" else iter_texts([source], "###", Problems())
print(sum(1 for _ in read), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(source: str, kind: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PEAK, source, kind], capture_output=True, text=True, check=True)
    count, kib = done.stdout.split()
    return int(count), int(kib)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "rows"), ("a.csv", "rows"), ("a.txt", "texts"), ("a.jsonl.gz", "rows"), ("a.parquet", "rows")],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, kind: str) -> None:
    row = {"ask": "q" * 500, "say": "s" * 1500}
    peaks = []
    for count in (1_000, 20_000):
        source = put(tmp_path, f"{count}{name}", b"")
        large(Path(source), name, row, count)
        read_rows, kib = peak(source, kind)
        assert read_rows == count
        peaks.append(kib)
    assert peaks[1] < peaks[0] + 12 * 1024, peaks  # of 40 MB that were read


def large(path: Path, name: str, row: dict[str, str], count: int) -> None:
    if name == "a.parquet":
        import pyarrow
        from pyarrow import parquet

        with parquet.ParquetWriter(path, pyarrow.schema([(key, "string") for key in row])) as writer:
            for _ in range(count // 1000):
                writer.write_table(pyarrow.Table.from_pylist([row] * 1000))
        return
    head, body = {
        "a.jsonl": ("", json.dumps(row) + "\n"),
        "a.jsonl.gz": ("", json.dumps(row) + "\n"),
        "a.csv": ("ask,say\n", f"{row['ask']},{row['say']}\n"),
        "a.txt": ("", f"{row['say']}\n{row['ask']}\n###\n"),
    }[name]
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as out:
        out.write(head)
        for _ in range(count // 1000):
            out.write(body * 1000)
