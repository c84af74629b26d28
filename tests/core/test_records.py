"""Rows are read whole, their lines are right, and what is wrong with one is said in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from documents import read_documents
from ftcore.errors import Refused
from ftcore.problems import BadRow, Problem, Problems, settle
from ftcore.records import Record, read_records
from ftcore.shapes import Conversation, conversations_of

TURN = {"instruction": "Name a prime.", "output": "Seven."}
ASK = {"role": "user", "content": "Name a prime."}
SAY = {"role": "assistant", "content": "Seven."}
RULE = {"role": "system", "content": "Be brief."}


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(*sources: str) -> tuple[list[Record], list[str]]:
    problems = Problems()
    records = read_records(sources, problems)
    return records, problems.summary(10**6).split("\nBy kind:")[0].split("\n") if len(problems) else []


def refusal(*sources: str) -> str:
    with pytest.raises(Refused) as caught:
        read(*sources)
    message = str(caught.value)
    assert "\n" not in message
    assert "please" not in message.lower()
    assert message.endswith(".")
    return message


def fault(**fields: object) -> Problem:
    with pytest.raises(BadRow) as caught:
        conversations_of(Record(fields, "a.json", 3))
    assert caught.value.problem.place == "a.json:3"
    assert "\n" not in str(caught.value)
    return caught.value.problem


def said(**fields: object) -> list[tuple[str, str]]:
    conversation = conversations_of(Record(fields, "a.json", 3))[0]
    assert conversation == Conversation(conversation.messages, "a.json:3")
    return [(message.role, message.content) for message in conversation.messages]


# --- layouts and lines -----------------------------------------------------------------------------------

ROWS = [{"n": n, "text": f"row {n}\nwith \u2028, \x85, é and 素数", "deep": [{"n": [n]}]} for n in range(4)]
LAYOUTS = {
    "list": json.dumps(ROWS),
    "indented list": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "tabbed list": json.dumps(ROWS, indent="\t"),
    "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "lines with blanks": "\n\n  \n".join(json.dumps(row) for row in ROWS) + "\n\n",
    "list under a key": json.dumps({"version": "2.0", "note": {"a": []}, "data": ROWS}, indent=1),
    "list under a key on one line": json.dumps({"data": ROWS}),
    "a list of one line a row": "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str, suffix: str, mark: bytes, ending: str) -> None:
    content = mark + LAYOUTS[layout].replace("\n", ending).encode()
    records, problems = read(written(tmp_path, f"rows{suffix}", content))
    assert [dict(record.fields) for record in records] == ROWS
    assert problems == []


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rows_place_is_where_its_text_begins(tmp_path: Path, layout: str, ending: str) -> None:
    content = LAYOUTS[layout].replace("\n", ending)
    records, _ = read(written(tmp_path, "rows.json", content))
    lines = content.split("\n")
    for record in records:
        rest = "\n".join(lines[record.line - 1 :])
        begins = record.column - 1 if record.column else rest.index('{"n"' if '{"n"' in rest else "{")
        if record.line == 1 and "under a key" in layout and not record.column:
            begins = rest.index('{"n"')
        assert json.JSONDecoder().raw_decode(rest, begins)[0] == record.fields


def test_random_spacing_keeps_lines_exact(tmp_path: Path) -> None:
    draw = random.Random(7)
    for trial in range(30):
        text, expected = "[", []
        for number in range(draw.randrange(1, 30)):
            text += ("," if number else "") + draw.choice(["", "\n", "\r\n", " \n\n\t", "\n\n\n"])
            expected.append(text.count("\n") + 1)
            text += json.dumps({"n": number, "t": ["x", {"y": "\n"}]}, indent=draw.choice([None, 0, 3]))
        records, _ = read(written(tmp_path, f"{trial}.json", text + "\n]\n"))
        assert [record.line for record in records] == expected


def test_rows_that_share_a_line_have_columns(tmp_path: Path) -> None:
    source = written(tmp_path, "a.json", '[{"n": 1}, {"n": 2},\n {"n": 3},{"n": 4}]')
    assert [record.place for record in read(source)[0]] == [
        f"{source}:1", f"{source}:1:12", f"{source}:2", f"{source}:2:11",
    ]  # fmt: skip


def test_a_large_list_is_read_in_linear_time_with_exact_lines(tmp_path: Path) -> None:
    row = json.dumps({**TURN, "input": "x" * 900}, indent=1)
    count, height = 32 * 2**20 // len(row), row.count("\n") + 1
    source = written(tmp_path, "large.json", "[\n" + ",\n".join([row] * count) + "\n]")
    began = time.perf_counter()
    records, _ = read(source)
    assert time.perf_counter() - began < 10
    assert [record.line for record in records] == [2 + height * n for n in range(count)]


def test_a_large_list_on_one_line_is_read_in_linear_time(tmp_path: Path) -> None:
    row = json.dumps(TURN)
    count = 8 * 2**20 // len(row)
    began = time.perf_counter()
    records, _ = read(written(tmp_path, "large.json", "[" + ",".join([row] * count) + "]"))
    assert time.perf_counter() - began < 10
    assert [record.column for record in records[1:]] == [2 + n * (len(row) + 1) for n in range(1, count)]


def test_a_single_object_is_one_row(tmp_path: Path) -> None:
    rows = {"a": TURN, "b": {"messages": [ASK, SAY]}, "c": {"history": [["a", "b"]], **TURN}}
    for name, row in rows.items():
        for indent in (None, 2):
            records, _ = read(written(tmp_path, f"{name}.json", json.dumps(row, indent=indent)))
            assert [(dict(record.fields), record.line) for record in records] == [(row, 1)]


def test_files_are_read_in_the_order_named(tmp_path: Path) -> None:
    names = ("b.json", "a.jsonl", "c.json")
    sources = [written(tmp_path, name, json.dumps([{"n": name}])) for name in names]
    assert [record.source for record in read(*sources)[0]] == sources


# --- files that are refused ------------------------------------------------------------------------------

PRIMES = '[\n{"a": "p"},\n{"a": "q"}'
REFUSED = {
    "comma before the end": (PRIMES + ",\n]", ":4:1: ", "remove the comma"),
    "comma inside an object": ('[\n{"a": "p",\n}\n]', ":3:1: ", "remove the comma"),
    "no closing bracket": (PRIMES, ":3:11: ", "cut short"),
    "cut inside a text": (PRIMES[:-3], ":3:7: ", "cut short"),
    "cut after a comma": (PRIMES + ",\n", ":4:1: ", "cut short"),
    "conflict markers": (f"<<<<<<< HEAD\n{PRIMES}]\n=======\n[]\n>>>>>>> x\n", ":1: ", "merge conflict"),
    "conflict markers in lines": ('{"a": 1}\n<<<<<<< HEAD\n{"a": 2}\n=======\n', ":2: ", "merge conflict"),
    "running text": ("Once upon a time\nthere was a prime.\n", ":1:1: ", "running text goes in a .txt file"),
    "single quotes": ("[\n{'a': 'p'}\n]", ":2:2: ", "Python"),
    "None": ('[\n{"a": None}\n]', ":2:7: ", "Python"),
    "raw newline in a text": ('[\n{"a": "p\nq"}\n]', ":2:9: ", r"\n"),
    "backslash": ('[\n{"a": "C:\\primes"}\n]', ":2:10: ", r"\\"),
    "no comma between rows": ('[\n{"a": 1}\n{"a": 2}\n]', ":3:1: ", "a comma"),
    "two lists": (f"{PRIMES}]\n{PRIMES}]\n", ":4:1: ", "in one list"),
    "objects over several lines": ('{\n"a": 1\n}\n{\n"a": 2\n}', ":4:1: ", "in one list"),
    "nested too deep": ("[" * 200_000, ":1:2: ", "recursion"),
    "digits": ('[\n{"a": ' + "7" * 5000 + "}]", ":2:1: ", "digit"),
    "nothing": ("", "is empty", "pass a file with rows"),
    "a byte order mark only": ("\ufeff\r\n \n", "is empty", "pass a file with rows"),
    "empty list": ("[]\n", "empty list", "pass a file with rows"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_broken_file_is_refused_at_its_place(tmp_path: Path, case: str, suffix: str) -> None:
    content, place, phrase = REFUSED[case]
    source = written(tmp_path, f"a{suffix}", content)
    message = refusal(source)
    assert message.startswith(source)
    assert place in message
    assert phrase in message


def test_a_list_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = json.dumps([TURN, {**TURN, "input": "素数 é"}], ensure_ascii=False, indent=1).encode()
    for cut in range(1, len(whole)):
        assert "cut short" in refusal(written(tmp_path, "cut.json", whole[:cut]))


CHINESE = json.dumps([{"instruction": "说一个素数", "output": "七是素数。"}], ensure_ascii=False, indent=1)


@pytest.mark.parametrize(
    ("data", "line", "phrase"),
    [
        (CHINESE.encode("gb18030") + "数".encode("gb18030")[:1], 3, "cut short"),
        ('\ufeff{"a": "\n'.encode() + b"\xff\xff\xff", 2, "byte 0xff at offset 11 "),
        (CHINESE.encode("utf-16") + b"\n", 6, "cut short"),
        (CHINESE.encode("utf-32"), 1, "iconv -f UTF-32LE -t UTF-8"),
        (("Дом у моря. " * 9).encode("cp1251"), 1, "save it as UTF-8"),
        (("今日は素数です。" * 9).encode("euc-jp"), 1, "save it as UTF-8"),
        (("今日は素数です。" * 9).encode("shift-jis"), 1, "save it as UTF-8"),
        (("소수를 말해 보세요. " * 9).encode("euc-kr"), 1, "save it as UTF-8"),
        (("說一個質數，並說明它為什麼是質數。" * 9).encode("big5"), 1, "save it as UTF-8"),
        (CHINESE.encode("utf-16-le"), 1, "iconv -f UTF-16LE -t UTF-8"),
        (CHINESE.encode("utf-16-be"), 1, "iconv -f UTF-16BE -t UTF-8"),
        ('[\n{"a": "it’s a café"}]'.encode("cp1252"), 2, "save it as UTF-8"),
        ('{"a": "素数"}\n'.encode() + '{"a": "素数"}\n'.encode("gb18030"), 2, "1 of its lines are GB18030"),
        ('{"a": "prime"}\n{"a": "素'.encode()[:-1], 2, "cut short"),
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_encoding(
    tmp_path: Path, data: bytes, line: int, phrase: str
) -> None:
    source = written(tmp_path, "a b.jsonl", data)
    message = refusal(source)
    assert f"{source}:{line}: byte 0x" in message
    assert phrase in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_the_command_given_for_an_encoding_mends_the_file(tmp_path: Path, encoding: str) -> None:
    source = written(tmp_path, "it's.json", CHINESE.encode(encoding))
    command = refusal(source).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert len(read(str(tmp_path / "it's.utf8.json"))[0]) == 1


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "primes.json", "[]")
    (tmp_path / "inner").mkdir()
    assert "the nearest name here is primes.json" in refusal("prime.json")
    assert "the nearest name here is primes.json" in refusal("./primes")
    assert "no name in inner is near it" in refusal("inner/primes")
    assert "there is no directory absent" in refusal("absent/primes.csv")


# --- rows that are problems ------------------------------------------------------------------------------


def test_each_bad_line_is_a_problem_and_the_others_are_kept(tmp_path: Path) -> None:
    good = json.dumps(TURN)
    bad = {
        2: (good[:-1], f":2:{len(good)}: ", "close its quotes and brackets"),
        4: ("# a remark", ":4:1: ", "remove it"),
        5: ("17", ":5: ", "is the number 17"),
        6: ('[{"role": "user"}]', ":6: ", '{"messages": …}'),
        7: ('{"a": NaN}', ":7: ", "holds NaN"),
        8: ('{"a": [-Infinity]}', ":8: ", "holds -Infinity"),
        9: ('{"b": 1, "a": 1, "a": 2}', ":9: ", "has the key 'a' twice"),
        10: ('{"a": {"b": 1, "b": 1}}', ":10: ", "has the key 'b' twice"),
        11: (good + ",", f":11:{len(good) + 1}: ", "without a comma"),
        12: ("{'a': 1}", ":12:2: ", "Python"),
        13: ('{"a": "p', ":13:7: ", "close its quotes"),
        14: ("null", ":14: ", "is null"),
    }
    lines = [bad[number][0] if number in bad else good for number in range(1, 17)]
    records, problems = read(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [record.line for record in records] == [number for number in range(1, 17) if number not in bad]
    assert len(problems) == len(bad)
    for problem, (_, place, phrase) in zip(problems, bad.values(), strict=True):
        assert place in problem
        assert phrase in problem


def test_bad_rows_of_a_list_do_not_end_it(tmp_path: Path) -> None:
    source = written(tmp_path, "a.json", '[\n{"a": 1},\n{"a": 1, "a": 2},\n{"a": NaN},\n3,\n{"a": 4}\n]')
    records, problems = read(source)
    assert [record.line for record in records] == [2, 6]
    assert [problem.split(": ")[0] for problem in problems] == [f"{source}:{line}" for line in (3, 4, 5)]


def test_a_first_line_that_is_broken_does_not_hide_the_lines_after_it(tmp_path: Path) -> None:
    for first in ('{"a": 1', "# remark", '{"a": 1},', "{'a': 1}"):
        records, problems = read(written(tmp_path, "a.jsonl", f'{first}\n{{"a": 2}}\n{{"a": 3}}\n'))
        assert [record.line for record in records] == [2, 3]
        assert len(problems) == 1


def test_one_pass_collects_the_problems_of_all_files(tmp_path: Path) -> None:
    sources = [written(tmp_path, f"{n}.jsonl", f"{json.dumps({**TURN, 'n': n})}\n{'{'}\n3\n") for n in range(15)]
    problems = Problems()
    records = read_records(sources, problems)
    assert (len(records), len(problems)) == (15, 30)
    with pytest.raises(Refused) as caught:
        settle(problems, "error", len(records))
    lines = str(caught.value).split("\n")
    assert lines[0] == "30 of 45 rows cannot be used:"
    assert all(line.startswith(str(tmp_path)) for line in lines[1:21])
    assert lines[21] == "… and 10 more"
    assert sum(line.startswith("15 × ") for line in lines) == 2
    assert "`--on-bad-row skip`" in lines[-1]
    notice = settle(problems, "skip", len(records))
    assert notice is not None
    assert notice.startswith("30 rows left out of 45: 15 × ")
    assert "\n" not in notice


def test_settling_with_nothing_left_is_refused_under_either_policy() -> None:
    problems = Problems()
    assert settle(problems, "error", 3) is None
    assert settle(problems, "skip", 3) is None
    for phrase in ("The data holds no row", "1 of 1 rows cannot be used, so that none is left"):
        for policy in ("error", "skip"):
            with pytest.raises(Refused, match=phrase):
                settle(problems, policy, 0)
        problems.add(Problem("a.json:1", "output", "is empty", "give it text"))


def test_kinds_are_counted_whatever_the_place_and_value() -> None:
    problems = Problems()
    for index in range(12):
        problems.add(Problem(f"a:{index}", f"messages[{index}].content", f"is {index}", "make it a text"))
    assert problems.kinds() == ["12 × messages[].content: make it a text"]


# --- conversations ---------------------------------------------------------------------------------------


def test_every_form_gives_the_same_conversation() -> None:
    asked = [("user", "Name a prime."), ("assistant", "Seven.")]
    shared = [{"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "Seven."}]
    assert said(**TURN) == said(messages=[ASK, SAY]) == said(conversations=shared) == asked
    ruled = [("system", "Be brief."), *asked]
    assert said(system="Be brief.", **TURN) == said(messages=[RULE, ASK, SAY]) == ruled
    assert said(system="Be brief.", conversations=shared) == ruled
    assert said(conversations=[{"from": "system", "value": "Be brief."}, *shared]) == ruled
    assert said(**TURN, history=[["Name a prime.", "Seven."]]) == said(messages=[ASK, SAY] * 2) == asked * 2


def test_instruction_and_input_are_joined_only_when_both_are_there() -> None:
    for empty in ("", None, " \n"):
        assert said(input=empty, system=empty, history=None, **TURN)[0] == ("user", "Name a prime.")
    assert said(input="Above 5.", **TURN)[0] == ("user", "Name a prime.\nAbove 5.")
    assert said(instruction="", input="Above 5.", output="Seven.")[0] == ("user", "Above 5.")


def test_text_is_kept_as_it_is_and_other_keys_are_ignored() -> None:
    text = "  def f():\n\treturn '\u200b素数'\r\n"
    assert said(instruction=text, output=text, id=3, category=None, story="x")[1] == ("assistant", text)
    assert said(messages=[ASK, {**SAY, "name": "x"}], instruction=3)[1] == ("assistant", "Seven.")
    for empty in ("", None):
        assert said(messages=[{**RULE, "content": empty}, ASK, SAY])[0][0] == "user"


BAD_ROWS = [
    ({"messages": [ASK, {"role": "assistant", "contents": "b"}]}, "messages[1].'contents'", '"content"'),
    ({"asks": "a", "says": "b"}, "row", 'has the keys "asks", "says"'),
    ({"conversation_id": 1, "talk": {}}, "row", 'name them "instruction" and "output"'),
    ({"conversation_id": 1, "chat": {}}, "chat", "make it an object of turns"),
    ({"text": "a"}, "row", "reads running text"),
    ({}, "row", "is an empty object"),
    ({"instruction": "a"}, "output", "is missing"),
    ({"instruction": None, "output": "b"}, "instruction", "is null"),
    ({"instruction": "", "input": None, "output": "b"}, "instruction", "is empty"),
    ({"instruction": "a", "output": None}, "output", "is null"),
    ({"instruction": "a", "output": 7}, "output", "is the number 7"),
    ({"instruction": "a", "output": True}, "output", "is true"),
    ({"instruction": "a", "output": ["b"]}, "output", "is the list ['b']"),
    ({"instruction": "a", "output": {"b": "c" * 99}}, "output", "is the object {'b': 'c"),
    ({"instruction": "a", "output": ""}, "output", "is empty"),
    ({"instruction": "a", "output": " \n"}, "output", r"is blank: ' \n'"),
    ({"instruction": "a\0", "output": "b"}, "instruction", r"has '\x00' at position 1"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input", "is the number 3"),
    ({"instruction": "a", "output": "b\ud83d"}, "output", r"has '\ud83d' at position 1"),
    ({**TURN, "system": ["a"]}, "system", "is the list"),
    ({**TURN, "history": "a"}, "history", "make history a list"),
    ({**TURN, "history": [["a"]]}, "history[0]", "[question, answer]"),
    ({**TURN, "history": [["a", "b"], ["a", ""]]}, "history[1]", "is empty"),
    ({"messages": [ASK, SAY], "conversations": []}, "row", "keep one of the two"),
    ({"messages": [RULE, ASK, SAY], "system": "a"}, "system", "keep one of the two"),
    ({"messages": None}, "messages", "is null"),
    ({"messages": []}, "messages", "has no assistant turn"),
    ({"messages": [ASK]}, "messages", "has no assistant turn"),
    ({"messages": [RULE, RULE]}, "messages", "has no assistant turn"),
    ({"messages": ["a"]}, "messages[0]", "is the text 'a'"),
    ({"messages": [{"speaker": "human", "text": "a"}]}, "messages[0].role", "is missing"),
    ({"messages": [ASK, {"role": "narrator", "content": "b"}]}, "messages[1].role", "system, user, assistant"),
    ({"messages": [ASK, {"role": "tool", "content": "b"}, SAY]}, "messages[1]", "a turn of the assistant is due"),
    ({"messages": [ASK, {"role": ["a"], "content": "b"}]}, "messages[1].role", "is the list"),
    ({"messages": [ASK, {**SAY, "content": None}]}, "messages[1].content", "is null"),
    ({"messages": [ASK, {**SAY, "content": " "}]}, "messages[1].content", "is blank"),
    ({"messages": [ASK, SAY, ASK]}, "messages", "ends with a user turn"),
    ({"messages": [ASK, ASK, SAY]}, "messages[1]", "has the role user where a turn of the assistant is due"),
    ({"messages": [SAY]}, "messages[0]", "has the role assistant where a turn of the user is due"),
    ({"messages": [RULE, ASK, SAY, SAY]}, "messages[3]", "joining turns of the same"),
    ({"messages": [ASK, RULE, SAY]}, "messages[1]", "put the only system turn first"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, "conversations[0].from", "human, gpt"),
]


@pytest.mark.parametrize(("fields", "field", "phrase"), BAD_ROWS)
def test_a_row_that_cannot_be_learnt_from_is_named(fields: dict[str, object], field: str, phrase: str) -> None:
    problem = fault(**fields)
    assert problem.field == field
    assert phrase in str(problem)
    assert len(str(problem)) < 220


# --- documents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_equal_to_the_separator_part_documents(tmp_path: Path, ending: str) -> None:
    text = "one\n--- two\n---\n\nthree\n---\n---\n\n  four\nfive\n---"
    source = written(tmp_path, "a.txt", text.replace("\n", ending))
    documents = read_documents([source], "---")
    assert [(document.text, document.place) for document in documents] == [
        ("one\n--- two", f"{source}:1"),
        ("three", f"{source}:5"),
        ("  four\nfive", f"{source}:9"),
    ]


def test_a_separator_inside_the_text_parts_it_where_no_line_equals_it(tmp_path: Path) -> None:
    source = written(tmp_path, "a.txt", "one<|end|>two\nthree<|end|>\nfour\n")
    found = [(document.text, document.line) for document in read_documents([source], "<|end|>")]
    assert found == [("one", 1), ("two\nthree", 1), ("four", 3)]


@pytest.mark.parametrize("separator", [None, "", "###"])
def test_without_a_separator_the_file_is_one_document(tmp_path: Path, separator: str | None) -> None:
    documents = read_documents([written(tmp_path, "a.txt", "\n\none\n\ntwo\n")], separator)
    assert [(document.text, document.line) for document in documents] == [("one\n\ntwo", 3)]


def test_a_blank_line_can_part_documents(tmp_path: Path) -> None:
    documents = read_documents([written(tmp_path, "a.txt", "one\n\ntwo\n\n\nthree\n\n\n\nfour")], "\n\n")
    assert [(document.text, document.line) for document in documents] == [
        ("one", 1), ("two", 3), ("three", 6), ("four", 10),
    ]  # fmt: skip


def test_rows_of_text_are_documents_and_others_are_problems(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"txt": "two"}, {"text": 3}, {"text": " "}, {"text": "a\0"}, {"text": "six"}]
    source = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n{")
    problems = Problems()
    documents = read_documents([source], None, problems)
    assert [(document.text, document.line) for document in documents] == [("one", 1), ("six", 6)]
    places = [line.removeprefix(source).split(": ")[0] for line in problems.summary().split("\n")[:5]]
    assert places == [":2", ":3", ":4", ":5", ":7:2"]
    with pytest.raises(Refused, match="5 of 7 rows cannot be used"):
        read_documents([source], None)


def test_text_with_a_nul_character_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a.txt:3: text has '\\x00' at position 1"):
        read_documents([written(tmp_path, "a.txt", "one\n#\nt\0wo")], "#")


# --- the Hub ---------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[str]:
    asked: list[str] = []

    def load_dataset(name: str, split: str, streaming: bool) -> object:
        asked.append(f"{name} {split} {streaming}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize("name", ["primes", "house/primes-7.b"])
def test_what_is_no_path_is_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    asked = hub(monkeypatch, [TURN, TURN])
    assert [record.place for record in read(name)[0]] == [f"hub:{name}:1", f"hub:{name}:2"]
    assert asked == [f"{name} train True"]


def test_a_fault_of_the_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, ConnectionError("no route\nto host"))
    assert "did not give it (ConnectionError: no route to host); check the name" in refusal("primes")


PATHS = ["./primes", "/primes", "~/primes", "a/b/c", "primes.jsonl", "a b", "primes.csv"]


@pytest.mark.parametrize("name", PATHS)
def test_what_looks_like_a_path_never_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    asked = hub(monkeypatch, [TURN])
    assert "does not exist" in refusal(name)
    assert asked == []


def test_importing_the_module_imports_nothing_heavy() -> None:
    code = "import sys, ftcore.records; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_row_that_is_nothing_but_messages_is_read_as_them(tmp_path: Path) -> None:
    source = written(
        tmp_path, "bare.jsonl", json.dumps([ASK, SAY]) + "\n" + json.dumps({"messages": [ASK, SAY]}) + "\n"
    )
    first, second = read_records([source], Problems())
    assert first.fields == second.fields
    assert (first.line, second.line) == (1, 2)
