"""Whatever shape a row has, what is learnt from it is exactly the answers that stand in it."""

from __future__ import annotations

import pytest
from ftcore.problems import KNOWN_KEYS, BadRow, Problem
from ftcore.records import Record
from ftcore.shapes import SHAPES, conversations_of, mendings, pair_of, shape_of

Row = dict[str, object]

ASK, SAY = {"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "Seven."}
HUMAN, BOT = {"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "Seven."}
CALL = '{"name": "add", "arguments": {"a": 3, "b": 4}}'
TOOLS = '[{"name": "add", "description": "Adds two numbers."}]'


def record(row: Row, line: int = 3) -> Record:
    return Record(row, "rows.jsonl", line)


CONVERSATIONS: list[tuple[str, Row, list[str]]] = [
    ("alpaca", {"instruction": "Name a prime.", "output": "Seven."}, ["Seven."]),
    ("messages", {"messages": [ASK, SAY, ASK, SAY]}, ["Seven.", "Seven."]),
    ("sharegpt", {"conversations": [HUMAN, BOT]}, ["Seven."]),
    (
        "sharegpt",
        {
            "tools": TOOLS,
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "7"},
                BOT,
            ],
        },
        [CALL, "Seven."],
    ),
]


@pytest.mark.parametrize(("shape", "row", "answers"), CONVERSATIONS)
def test_what_is_learnt_is_exactly_the_answers(shape: str, row: Row, answers: list[str]) -> None:
    assert shape_of(row) == shape
    assert [answer for found in conversations_of(record(row)) for answer in found.answers] == answers


MISSPELT: list[tuple[Row, str]] = [
    ({"instrution": "Name a prime.", "output": "Seven."}, '"instrution" read as "instruction"'),
    ({"Instruction": "Name a prime.", "Output": "Seven."}, '"Instruction" read as "instruction"'),
    ({"instruction": "Name a prime.", "outptu": "Seven."}, '"outptu" read as "output"'),
    ({"mesages": [ASK, SAY]}, '"mesages" read as "messages"'),
    ({"conversation": [HUMAN, BOT]}, '"conversation" read as "conversations"'),
]


@pytest.mark.parametrize(("row", "note"), MISSPELT)
def test_a_misspelt_key_is_read_and_said_once_a_file(row: Row, note: str) -> None:
    found = [one for line in range(3) for one in conversations_of(record(row, line))]
    assert {one.answers for one in found} == {("Seven.",)}
    (said,) = mendings(found)
    assert said.startswith(f"rows.jsonl: {note}")
    assert said.endswith("in 3 rows")


def test_every_key_that_a_shape_is_recognised_by_is_known() -> None:
    assert {key for shape in SHAPES for key in shape.keys} - {"conversation"} <= KNOWN_KEYS


def fault(row: Row) -> Problem:
    with pytest.raises(BadRow) as caught:
        conversations_of(record(row))
    assert caught.value.problem.place == "rows.jsonl:3"
    return caught.value.problem


def test_a_pair_is_one_question_and_its_right_answers() -> None:
    pair = pair_of(record({"mr": "name[Zizzi]", "ref": ["Zizzi is a pub.", "A pub, Zizzi."]}))
    assert (pair.input, pair.outputs) == ("name[Zizzi]", ("Zizzi is a pub.", "A pub, Zizzi."))
    assert pair_of(record({"messages": [ASK, SAY]})).outputs == ("Seven.",)
    with pytest.raises(BadRow, match="has 4 turns"):
        pair_of(record({"messages": [ASK, SAY, ASK, SAY]}))
