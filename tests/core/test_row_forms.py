"""Rows of any form become rows of a known shape: by columns, by a sandboxed template, or by a dataset's name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ftcore.declaring import build
from ftcore.errors import Refused
from ftcore.problems import BadRow, Problem
from ftcore.records import Record
from ftcore.settings import Settings, form_of
from ftcore.shapes import (
    MAPS,
    Form,
    conversations_of,
    document_of,
    form_from,
    pair_of,
    question_of,
    reshaped,
)
from pydantic import ValidationError

Row = dict[str, Any]
Turns = list[tuple[str, str]]


def record(row: Row) -> Record:
    return Record(row, "rows.jsonl", 3)


def turns(row: Row, form: Form) -> Turns:
    (found,) = conversations_of(reshaped(record(row), form))
    return [(message.role, message.text) for message in found.messages]


def fault(row: Row, form: Form) -> Problem:
    with pytest.raises(BadRow) as caught:
        conversations_of(reshaped(record(row), form))
    assert caught.value.problem.place == "rows.jsonl:3"
    assert "\n" not in str(caught.value)
    return caught.value.problem


# --- columns ---------------------------------------------------------------------------------------------------


def test_columns_are_what_they_are_said_to_be() -> None:
    form = form_from(["input=Question", " output = Answer "], None, None)
    row = {"Question": "Name a prime.", "Answer": "Seven.", "text": "kept out", "messages": 3}
    assert turns(row, form) == [("user", "Name a prime."), ("assistant", "Seven.")]


def test_a_column_may_lie_inside_another() -> None:
    row = {"translation": {"en": "seven", "zh": "七"}, "turns": [{"said": "a"}, {"said": "b"}], "x.y": "c"}
    pair = pair_of(reshaped(record(row), form_from(["input=translation.en", "output=translation.zh"], None, None)))
    assert (pair.input, pair.outputs) == ("seven", ("七",))
    pair = pair_of(reshaped(record(row), form_from(["input=turns.1.said", "output=x.y"], None, None)))
    assert (pair.input, pair.outputs) == ("b", ("c",))


@pytest.mark.parametrize("path", ["Quest", "Answer.text", "list.9", "list.first", "null.a"])
def test_a_column_that_a_row_lacks_is_named_with_those_it_has(path: str) -> None:
    row = {"Question": "a", "Answer": "b", "list": [1], "null": None}
    problem = fault(row, form_from([f"input={path}", "output=Answer"], None, None))
    assert str(problem).endswith(
        f"row has no column {path}; it has Question, Answer, list, null; give --columns a name that the row has"
    )


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ("Question", "--columns was given 'Question'; write what a column is to be"),
        ("=Question", "write what a column is to be"),
        ("inputt=Question", "--columns names 'inputt', which no shape of row has; did you mean input?"),
        ("zzzzz=Question", "use one that a shape has"),
    ],
)
def test_columns_that_no_shape_has_are_refused(given: str, phrase: str) -> None:
    with pytest.raises(Refused, match="--columns") as refused:
        form_from([given], None, None)
    assert phrase in str(refused.value)


# --- templates -------------------------------------------------------------------------------------------------


def templated(folder: Path, text: str) -> Form:
    file = folder / "rows.yaml"
    file.write_text(text, encoding="utf-8")
    return form_from([], str(file), None)


def test_templates_write_the_keys_of_a_row(tmp_path: Path) -> None:
    form = templated(tmp_path, 'instruction: "Translate: {{ en }}"\noutput: "{{ row[\'zh text\'] | trim }}"\n')
    row = {"en": "seven", "zh text": " 七 "}
    assert turns(row, form) == [("user", "Translate: seven"), ("assistant", "七")]


def test_templates_may_stand_inside_lists_of_turns(tmp_path: Path) -> None:
    form = templated(
        tmp_path,
        """
messages:
  - {role: system, content: "{{ rule }}"}
  - {role: user, content: "{% for line in laws %}{{ loop.index }}. {{ line }}\\n{% endfor %}{{ q }}"}
  - {role: assistant, content: "{{ a }}", loss: true}
""",
    )
    assert turns({"rule": None, "laws": ["x", "y"], "q": "Which?", "a": "y"}, form) == [
        ("user", "1. x\n2. y\nWhich?"),
        ("assistant", "y"),
    ]


def test_a_name_that_a_row_lacks_is_named_with_its_columns(tmp_path: Path) -> None:
    form = templated(tmp_path, 'instruction: "{{ english }}"\noutput: "{{ zh }}"\n')
    problem = fault({"en": "seven", "zh": "七"}, form)
    assert "'english' is undefined" in problem.found
    assert problem.found.endswith("it has en, zh")
    form = templated(tmp_path, 'instruction: "{{ 1 // english }}"\noutput: "{{ zh }}"')
    problem = fault({"english": 0, "zh": "七"}, form)
    assert "ZeroDivisionError" in problem.found


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ q.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ laws.append('z') }}",
        "{{ row.update({'q': 'z'}) }}",
        "{{ '{0.__class__}'.format(q) }}",
        "{% for n in range(10000000000) %}x{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_but_the_row(template: str, tmp_path: Path) -> None:
    form = templated(tmp_path, f'instruction: {json.dumps(template)}\noutput: "x"\n')
    row: Row = {"q": "Which?", "laws": ["x"]}
    with pytest.raises((Refused, BadRow)) as refused:
        reshaped(record(row), form)
    assert "object at" not in str(refused.value)
    assert row == {"q": "Which?", "laws": ["x"]}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "holds no keys"),
        ("- a\n", "holds no keys"),
        ("instruction: [", "is no YAML"),
        ('instruction: "{{ en "\n', "instruction is no Jinja template"),
        ('instrution: "{{ en }}"\n', "did you mean instruction?"),
        ("instruction: !!python/object/apply:os.getcwd []\n", "is no YAML"),
    ],
)
def test_a_file_that_holds_no_templates_is_refused(text: str, phrase: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        templated(tmp_path, text)
    assert phrase in str(refused.value)
    assert "rows.yaml" in str(refused.value)


def test_a_template_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"away\.yaml cannot be read: No such file"):
        form_from([], str(tmp_path / "away.yaml"), None)


# --- settings --------------------------------------------------------------------------------------------------


def test_settings_say_at_most_once_what_rows_are(tmp_path: Path) -> None:
    assert form_of(Settings()) == Form()
    named = build(Settings, {"columns": "input=a,output=b c"}, "ftcore")
    assert form_of(named).columns == (("input", "a"), ("output", "b c"))
    assert form_of(Settings(data_format="openorca")).name == "openorca"
    with pytest.raises(ValidationError, match="--columns and --data-format each say what the rows are"):
        Settings(columns=("input=a",), data_format="openorca")


def test_reading_settings_loads_no_template_engine() -> None:
    heavy = ("jinja2", "yaml", "torch")
    code = f"import sys, ftcore.settings, ftcore.shapes; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_other_shapes_are_read_through_a_form() -> None:
    form = form_from(["context=passage", "question=query", "answers=spans"], None, None)
    row = {"passage": "Ann is here.", "query": "Who?", "spans": [{"text": "Ann", "answer_start": 0}]}
    assert question_of(reshaped(record(row), form)).answers == (("Ann", 0),)


# --- datasets by name ------------------------------------------------------------------------------------------

THINK = '好的。<|startofthink|>```JSON\n{"api_name": "add", "url": "x", "parameters": {"a": 3}}\n```<|endofthink|>\n\n'
EXEC = '<|startofexec|>```JSON\n{"sum": 7}\n```<|endofexec|>\n'
AGENT = [
    {"from": "user", "value": "3+4？"},
    {"from": "assistant", "value": THINK + EXEC + "是7。"},
    {"from": "user", "value": "谢谢"},
    {"from": "assistant", "value": "不客气。"},
]
REACTED = [
    ("user", "3+4？"),
    ("assistant", 'Thought:好的。\nAction:add\nAction Input:{"a": 3}'),
    ("tool", 'Response:{"sum": 7}'),
    ("assistant", "Final Answer:是7。"),
    ("user", "谢谢"),
    ("assistant", "Final Answer:不客气。"),
]
HUMAN, BOT = {"from": "human", "value": "One?"}, {"from": "gpt", "value": "Seven."}
ASK, SAY = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Seven."}
ONE = [("user", "One?"), ("assistant", "Seven.")]

MAPPED: list[tuple[str, Row, Turns]] = [
    ("alpaca_zh", {"instruction_zh": "One?", "input_zh": "", "output_zh": "Seven."}, ONE),
    ("alpaca_zh", {"instruction_zh": "加。", "input_zh": "3+4", "output_zh": "七"},
     [("user", "加。\n3+4"), ("assistant", "七")]),
    ("arxiv", {"abstract": "We add.", "title": "On sums"}, [("user", "We add."), ("assistant", "On sums")]),
    ("code_alpaca", {"prompt": "One?", "completion": "Seven."}, ONE),
    ("colors", {"color": "#ff0000", "description": "Red: a colour: warm"},
     [("user", "a colour: warm"), ("assistant", "#ff0000")]),
    ("crime_kg_assitant", {"input": "One?", "output": "Seven."}, ONE),
    ("crime_kg_assistant", {"input": "One?", "output": "Seven."}, ONE),
    ("law_reference", {"question": "One?", "answer": "Seven.", "reference": ["x"]}, ONE),
    ("medical", {"instruction": "One?", "input": "", "output": "Seven."}, ONE),
    ("openorca", {"id": "1", "system_prompt": "", "question": "One?", "response": "Seven."}, ONE),
    ("openorca", {"system_prompt": "Go.", "question": "One?", "response": "Seven."}, [("system", "Go."), *ONE]),
    ("sql", {"question": "How many?", "context": "CREATE TABLE t (a)", "answer": "SELECT 7"},
     [("user", "CREATE TABLE t (a)\nHow many?"), ("assistant", "SELECT 7")]),
    ("stack_exchange", {"qid": 1, "question": "One?", "response": "Seven."}, ONE),
    ("stack_exchange", {"question": "One?", "response_j": "Seven.", "response_k": "Nine."}, ONE),
    ("tiny_codes", {"prompt": "One?", "response": "Seven."}, ONE),
    ("wizardlm", {"conversations": [BOT, HUMAN, BOT, HUMAN]}, ONE),
    ("openai", {"messages": [SAY, ASK, SAY, ASK]}, ONE),
    ("openai", {"messages": [ASK, ASK, SAY]}, [("user", "One?\nOne?"), ("assistant", "Seven.")]),
    ("oasst1", {"text": "### Human: One?### Assistant: Seven.\n### Sum\n3 + 4### Human: More?"},
     [("user", "One?"), ("assistant", "Seven.\n### Sum\n3 + 4")]),
    ("alpaca", {"instruction": "One?", "input": "", "output": "Seven.", "text": "Below …"}, ONE),
    ("msagent_react", {"conversations": AGENT}, REACTED),
    ("msagent_react", {"conversations": repr(AGENT)}, REACTED),
    ("moss", {"meta_instruction": "Go.", "chat": {"turn_1": {"Human": "One?", "MOSS": "Seven."}}},
     [("system", "Go."), *ONE]),
    ("default", {"conversation": [{"input": "One?", "output": "Seven."}]}, ONE),
]  # fmt: skip


WITH_SYSTEM = {name for name, one in MAPS.items() if one.system}


@pytest.mark.parametrize(("name", "row", "wanted"), MAPPED)
def test_a_row_of_a_known_dataset_gives_its_conversation(name: str, row: Row, wanted: Turns) -> None:
    opening = [("system", MAPS[name].system)] if name in WITH_SYSTEM else []
    assert turns(row, form_from([], None, name)) == [*opening, *wanted]


def test_every_map_of_xtuner_is_there_and_tried() -> None:
    listed = """alpaca alpaca_zh arxiv code_alpaca colors crime_kg_assitant crime_kg_assistant law_reference medical
        msagent_react oasst1 openai openorca pretrain sql stack_exchange tiny_codes wizardlm moss default"""
    assert set(listed.split()) <= MAPS.keys()
    assert {name for name, *_ in MAPPED} | {"pretrain"} == set(listed.split())
    told = """alpaca arxiv code_alpaca colors crime_kg_assitan crime_kg_assitant crime_kg_assistant law_reference
        medical sql tiny_codes"""
    assert set(told.split()) == WITH_SYSTEM


def test_rows_to_pretrain_on_are_running_text() -> None:
    assert document_of(reshaped(record({"text": " Once upon a time.\n"}), form_from([], None, "pretrain"))).text == (
        "Once upon a time."
    )


def test_an_agents_tools_are_described_and_nothing_in_a_row_is_run() -> None:
    tool = '{"name": "add", "description": "Adds.", "parameters": [{"name": "a", "description": "one"}]}'
    system = {"from": "system", "value": f"你是助手。\n1. {tool}\n\n"}
    found = turns({"conversations": [system, *AGENT]}, form_from([], None, "msagent_react"))
    assert found[1:] == REACTED
    assert "add: " in found[0][1]
    assert '"parameters": [{"name": "a"' in found[0][1]
    for text in ("__import__('os').abort()", "[{'from': 'user', 'value': open('x')}]", "[" * 5000):
        assert fault({"conversations": text}, form_from([], None, "msagent_react")).field == "conversations"


def thinking(call: str) -> Row:
    return {"conversations": [{"from": "assistant", "value": f"<|startofthink|>{call}<|endofthink|>"}]}


@pytest.mark.parametrize(
    ("name", "row", "phrase"),
    [
        ("openorca", {"question": "a", "answer": "b"}, "has no column response; it has question, answer"),
        ("alpaca", {"instruction": "a", "input": "", "output": "<nooutput>"}, "output is <nooutput>"),
        ("oasst1", {"text": "no marks"}, "messages has no assistant turn"),
        ("pretrain", {"content": "a"}, "has no column text"),
        ("msagent_react", thinking("{"), "is no JSON"),
        ("msagent_react", thinking("{}"), "api_name"),
        ("default", {"messages": []}, "has no column conversation"),
    ],
)  # fmt: skip
def test_a_row_of_another_dataset_is_named(name: str, row: Row, phrase: str) -> None:
    assert phrase in str(fault(row, form_from([], None, name)))


def test_a_dataset_that_is_not_known_is_refused() -> None:
    with pytest.raises(Refused, match=r"knows no rows called 'opnorca'; did you mean openorca\?"):
        form_from([], None, "opnorca")
