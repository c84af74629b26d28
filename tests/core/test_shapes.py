"""Whatever shape a row has, what is learnt from it is exactly the answers that stand in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ftcore.problems import KNOWN_KEYS, BadRow, Problem, Problems
from ftcore.records import Record, iter_records
from ftcore.shapes import (
    SHAPES,
    Conversation,
    Message,
    conversations_of,
    document_of,
    judged_of,
    labelled_of,
    mended,
    pair_of,
    preference_of,
    question_of,
    shape_of,
    tagged_of,
    words_of,
)

Row = dict[str, Any]
T = TypeVar("T")

ASK, SAY = {"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "Seven."}
HUMAN, BOT = {"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "Seven."}
CALL = '{"name": "add", "arguments": {"a": 3, "b": 4}}'
TOOLS = '[{"name": "add", "description": "Adds two numbers."}]'
TOLD = {"role": "tool", "content": "7"}
REPLY = {"text": "Seven.", "role": "assistant"}


def record(row: Row, line: int = 3) -> Record:
    return Record(row, "rows.jsonl", line)


def only(row: Row) -> Conversation:
    (found,) = conversations_of(record(row))
    return found


def fault(reader: Callable[[Record], object], row: Row) -> Problem:
    with pytest.raises(BadRow) as caught:
        reader(record(row))
    assert caught.value.problem.place == "rows.jsonl:3"
    assert "\n" not in str(caught.value)
    return caught.value.problem


# --- conversations -----------------------------------------------------------------------------------------


def moss(human: str, moss: str, thought: str = "None", command: str = "None", result: str = "None") -> Row:
    return {
        "Human": f"<|Human|>: {human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thought}<eot>\n",
        "Commands": f"<|Commands|>: {command}<eoc>\n",
        "Tool Responses": f"<|Results|>:\n{result}\n<eor>\n",
        "MOSS": f"<|MOSS|>: {moss}<eom>\n",
    }


def tool_call(arguments: object) -> Row:
    return {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}


CONVERSATIONS: list[tuple[str, Row, list[str]]] = [
    ("alpaca", {"instruction": "Name a prime.", "output": "Seven."}, ["Seven."]),
    ("alpaca", {"instruction": "Another.", "output": "Five.", "history": [["One.", "Seven."]]}, ["Seven.", "Five."]),
    ("messages", {"messages": [ASK, SAY, ASK, SAY]}, ["Seven.", "Seven."]),
    ("messages", {"messages": [ASK, {**SAY, "loss": False}, ASK, SAY]}, ["Seven."]),
    ("messages", {"messages": [ASK, {**SAY, "loss": "False"}, ASK, {**SAY, "loss": "True"}]}, ["Seven."]),
    ("messages", {"messages": [ASK, {**SAY, "weight": 0}, ASK, {**SAY, "train": True}]}, ["Seven."]),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, ASK, SAY]}, ["Seven."]),
    ("messages", {"messages": [HUMAN, BOT]}, ["Seven."]),
    (
        "messages",
        {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "Seven."}]}]},
        ["Seven."],
    ),
    (
        "messages",
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": None, "tool_calls": [tool_call({"a": 3, "b": 4})]},
                TOLD,
                SAY,
            ]
        },
        [CALL, "Seven."],
    ),
    (
        "messages",
        {"messages": [ASK, {**SAY, "tool_calls": [tool_call('{"a": 3, "b": 4}')] * 2}, TOLD, TOLD, SAY]},
        [f"Seven.\n{CALL}\n{CALL}", "Seven."],
    ),
    ("messages", {"messages": [ASK, {**SAY, "reasoning_content": "3 + 4"}]}, ["<think>\n3 + 4\n</think>\n\nSeven."]),
    (
        "messages",
        {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "3 + 4"},
                        {"type": "tool_call", "value": CALL},
                    ],
                },
                {"role": "tool", "content": [{"type": "text", "value": "7"}]},
                SAY,
            ]
        },
        [f"<think>\n3 + 4\n</think>\n{CALL}", "Seven."],
    ),
    ("sharegpt", {"conversations": [HUMAN, BOT], "system": "Be brief."}, ["Seven."]),
    ("sharegpt", {"conversations": [ASK, SAY]}, ["Seven."]),
    (
        "sharegpt",
        {
            "tools": TOOLS,
            "conversations": [
                HUMAN,
                {"from": "gpt", "value": "Let me add."},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "7"},
                BOT,
            ],
        },
        ["Let me add.", CALL, "Seven."],
    ),
    (
        "xtuner conversation",
        {
            "conversation": [
                {"system": "Be brief.", "input": "One?", "output": "Seven.", "output_with_loss": False},
                {"system": "Be brief.", "input": "Another?", "output": "Five."},
            ]
        },
        ["Five."],
    ),
    ("prompt/completion", {"prompt": "Name a prime.", "completion": "Seven."}, ["Seven."]),
    ("prompt/completion", {"prompt": [ASK], "completion": [SAY]}, ["Seven."]),
    ("prompt/response", {"prompt": "Name a prime.", "response": "Seven."}, ["Seven."]),
    ("query/response", {"query": "Name a prime.", "response": "Seven.", "history": []}, ["Seven."]),
    ("instruction/response", {"instruction": "Name it.", "context": "7", "response": "Seven."}, ["Seven."]),
    ("question/answer", {"question": "Which?", "context": "Seven is a prime.", "answer": "Seven."}, ["Seven."]),
    ("squad", {"question": "Which?", "context": "7", "answers": {"text": ["7", "7"], "answer_start": [0, 0]}}, ["7"]),
    ("ask/answer", {"department": "maths", "title": "x", "ask": "Which?", "answer": "Seven."}, ["Seven."]),
    ("input/output", {"input": "Name a prime.", "output": "Seven."}, ["Seven."]),
    ("source/target", {"source": "sieben", "target": "Seven."}, ["Seven."]),
    ("dialogue/summary", {"dialogue": "A: 3 + 4? B: 7.", "summary": "Seven."}, ["Seven."]),
    ("document/summary", {"document": "3 + 4 is 7.", "summary": "Seven."}, ["Seven."]),
    ("text/summary", {"text": "3 + 4 is 7.", "summary": "Seven."}, ["Seven."]),
    ("mr/ref", {"mr": "prime[7]", "ref": "Seven."}, ["Seven."]),
    ("1/2", {"1": "sieben", "2": "Seven."}, ["Seven."]),
    ("oasst tree", {"prompt": {"text": "Which?", "role": "prompter", "replies": [REPLY]}}, ["Seven."]),
    (
        "moss",
        {
            "meta_instruction": "You are MOSS.",
            "chat": {
                "turn_2": moss("Again?", "Five.", "Add.", "Calculate(2+3)", "Calculate(2+3) => 5"),
                "turn_1": moss("One?", "Seven."),
            },
        },
        ["Seven.", "<think>\nAdd.\n</think>\nCalculate(2+3)", "Five."],
    ),
    (
        "moss plain_text",
        {
            "prefix": "You are MOSS.",
            "plain_text": "[Human]: One?<eoh> [MOSS]: Seven.<eoa> [Human]: Two?<eoh> [MOSS]: 5.<eoa>",
        },
        ["Seven.", "5."],
    ),
    (
        "moss plain_text",
        {"plain_text": "".join(moss("One?", "Seven.", "Add.", "Calculate(3+4)", "7").values())},
        ["<think>\nAdd.\n</think>\nCalculate(3+4)", "Seven."],
    ),
]


@pytest.mark.parametrize(("shape", "row", "answers"), CONVERSATIONS)
def test_what_is_learnt_is_exactly_the_answers(shape: str, row: Row, answers: list[str]) -> None:
    assert shape_of(row) == shape
    found = only(row)
    assert found.place == "rows.jsonl:3"
    assert list(found.answers) == answers
    assert found.messages[-1].role == "assistant"
    assert all(message.learned is False for message in found.messages if message.role == "tool")


def test_what_comes_before_the_question_and_after_it_is_kept() -> None:
    asked = {
        "Seven is a prime.\nWhich?": {"question": "Which?", "context": "Seven is a prime.", "answer": "7"},
        "Name it.\nseven": {"instruction": "Name it.", "context": "seven", "response": "7"},
        "Name it.\nsix": {"instruction": "Name it.", "input": "six", "output": "7"},
    }
    for text, row in asked.items():
        assert only(row).messages[0] == Message("user", text)


def test_a_tool_speaks_between_turns_of_the_assistant() -> None:
    row = {
        "tools": TOOLS,
        "conversations": [HUMAN, {"from": "function_call", "value": CALL}, {"from": "tool", "value": "7"}, BOT],
    }
    found = only(row)
    assert found.tools == TOOLS
    assert found.messages == (
        Message("user", "Name a prime."),
        Message("assistant", "", calls=(CALL,)),
        Message("tool", "7", learned=False),
        Message("assistant", "Seven."),
    )
    assert json.loads(only({**row, "tools": json.loads(TOOLS)}).tools) == json.loads(TOOLS)
    assert only({**row, "tools": "[]"}).tools == ""


def test_turns_of_moss_part_thoughts_commands_and_results() -> None:
    row = {
        "meta_instruction": "You are MOSS.",
        "chat": {"turn_1": moss("One?", "Seven.", "Add.", "Calculate(3+4)", "7")},
    }
    assert only(row).messages == (
        Message("system", "You are MOSS."),
        Message("user", "One?"),
        Message("assistant", "<think>\nAdd.\n</think>", calls=("Calculate(3+4)",)),
        Message("tool", "7", learned=False),
        Message("assistant", "Seven."),
    )


def node(text: str, *replies: Row, **keys: Any) -> Row:
    return {"text": text, "role": "assistant" if text.isupper() else "prompter", "replies": list(replies), **keys}


def test_every_answer_of_a_tree_is_learnt_once() -> None:
    tree = node(
        "a",
        node("B", node("c", node("D"), node("E")), node("f"), node("G")),
        node("H", node("i")),
        node("J", deleted=True),
    )
    found = conversations_of(record({"prompt": tree}))
    paths = ["".join(message.content for message in one.messages) for one in found]
    assert paths == ["aBcD", "aBcE", "aBG", "aH"]
    assert [one.answers for one in found] == [("B", "D"), ("E",), ("G",), ("H",)]
    assert "no reply of the assistant" in str(fault(conversations_of, {"prompt": node("a")}))


BROKEN: list[tuple[Row, str, str]] = [
    ({"conversations": [HUMAN, BOT], "tools": "add(a, b)"}, "tools", "make it JSON text"),
    ({"messages": [ASK, SAY, TOLD]}, "messages", "ends with a tool turn"),
    ({"messages": [ASK, SAY, TOLD, ASK, SAY]}, "messages[3]", "a turn of the assistant is due"),
    ({"messages": [ASK, {**SAY, "loss": "maybe"}]}, "messages[1].loss", "make it true or false"),
    ({"messages": [ASK, {**SAY, "loss": True, "weight": 0}]}, "messages[1]", "has loss and weight that differ"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAY]}, "messages[0].content[0].type", "text"),
    ({"messages": [ASK, {**SAY, "tool_calls": [{"id": 1}]}]}, "messages[1].tool_calls[0]", '"name" and "arguments"'),
    ({"conversation": [{"input": "", "output": "running text"}]}, "conversation[0].input", "is empty"),
    ({"chat": {"turn_1": {"Human": "<|Human|>: Hi<eoh>"}}}, "chat[0].MOSS", "is empty"),
    ({"plain_text": "no marks"}, "plain_text", "has no assistant turn"),
    ({"prompt": {"text": "a", "role": "narrator"}}, "prompt.role", "use prompter or assistant"),
    ({"output": "x"}, "row", "--columns"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "field", "phrase"), BROKEN)
def test_a_row_that_is_no_conversation_is_named(row: Row, field: str, phrase: str) -> None:
    problem = fault(conversations_of, row)
    assert problem.field == field
    assert phrase in str(problem)


# --- keys that are nearly right ----------------------------------------------------------------------------

MISSPELT: list[tuple[Row, str]] = [
    ({"instrution": "Name a prime.", "output": "Seven."}, '"instrution" read as "instruction"'),
    ({"Instruction": "Name it.", "Output": "Seven."}, '"Instruction" read as "instruction", "Output" read as "output"'),
    ({"instruction": "Name a prime.", "outptu": "Seven."}, '"outptu" read as "output"'),
    ({"instruction": "Name one.", "imput": "prime", "output": "Seven."}, '"imput" read as "input"'),
    ({"Question ": "Name a prime.", "Answer": "Seven."}, '"Question " read as "question", "Answer" read as "answer"'),
    ({"instrution": "Name one.", "input": "", "output": "Seven."}, '"instrution" read as "instruction"'),
    ({"mesages": [ASK, SAY]}, '"mesages" read as "messages"'),
    ({"conversation": [HUMAN, BOT]}, '"conversation" read as "conversations"'),
]


@pytest.mark.parametrize(("row", "note"), MISSPELT)
def test_a_misspelt_key_is_read_and_said(row: Row, note: str) -> None:
    assert only(row).answers == ("Seven.",)
    assert mended(row)[1] == note
    assert mended(mended(row)[0]) == (mended(row)[0], "")


def test_a_key_that_could_be_two_misspelt_ones_is_not_mended() -> None:
    assert fault(conversations_of, {"instrution": "a", "instructon": "b", "output": "c"}).place == "rows.jsonl:3"
    assert mended({"instruction": "a", "output": "c", "outputs": 3})[1] == ""


@pytest.mark.parametrize("row", [row for _, row, _ in CONVERSATIONS])
def test_a_sound_row_is_left_as_it_is(row: Row) -> None:
    assert mended(row) == (row, "")


def test_every_key_that_a_shape_is_recognised_by_is_known() -> None:
    assert {key for shape in SHAPES for key in shape.keys} - {"conversation"} <= KNOWN_KEYS


READERS = {
    "a conversation": conversations_of,
    "a pair": pair_of,
    "a preference": preference_of,
    "a question": question_of,
    "tagged words": tagged_of,
    "a labelled": labelled_of,
    "running text": document_of,
}


def test_the_docs_show_a_row_of_every_shape() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "your-own-data.md").read_text(encoding="utf-8")
    lines = page.split("| shape | a row | gives |\n|---|---|---|\n")[1].split("\n\n")[0].split("\n")
    names = []
    for line in lines:
        name, shown, gives = line.strip("| ").split(" | ")
        names.append(name)
        row = json.loads(shown.split("`")[1])
        assert shape_of(row) == name
        for kind in gives.split(", "):
            assert [reader(record(row)) for start, reader in READERS.items() if kind.startswith(start)], kind
    assert names == list(dict.fromkeys(shape.name for shape in SHAPES))


# --- pairs and running text --------------------------------------------------------------------------------


def test_a_pair_is_one_question_and_its_right_answers() -> None:
    pair = pair_of(record({"mr": "name[Zizzi]", "ref": ["Zizzi is a pub.", "A pub, Zizzi."]}))
    assert (pair.input, pair.outputs) == ("name[Zizzi]", ("Zizzi is a pub.", "A pub, Zizzi."))
    assert pair_of(record({"messages": [ASK, SAY]})).outputs == ("Seven.",)
    assert (
        pair_of(record({"system": "Be brief.", "instruction": "Add.", "input": "3", "output": "4"})).input
        == "Be brief.\nAdd.\n3"
    )
    assert "has 4 turns" in str(fault(pair_of, {"messages": [ASK, SAY, ASK, SAY]}))
    assert "history is not empty" in str(fault(pair_of, {"instruction": "a", "output": "b", "history": [["c", "d"]]}))


@pytest.mark.parametrize(("shape", "row", "answers"), [one for one in CONVERSATIONS if "/" in one[0]])
def test_a_pair_of_columns_is_a_pair_of_texts(shape: str, row: Row, answers: list[str]) -> None:
    pair = pair_of(record(row))
    assert (pair.input, list(pair.outputs)) == (only(row).messages[0].text, answers)


def test_running_text_is_the_text_or_what_answers_nothing() -> None:
    assert document_of(record({"text": "Once upon a time."})).text == "Once upon a time."
    assert (
        document_of(record({"conversation": [{"input": "", "output": "Once upon a time."}]})).text
        == "Once upon a time."
    )
    assert "is not empty" in str(fault(document_of, {"conversation": [{"input": "a", "output": "b"}]}))


# --- preferences and judgements ------------------------------------------------------------------------------

GOOD, POOR = Message("assistant", "Seven."), Message("assistant", "Nine.")
WORSE = {"role": "assistant", "content": "Nine."}
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a prime.\n\nAssistant:"
ASKED = [("user", "Name a prime.")]
BOTH = {"chosen": "Seven.", "rejected": "Nine."}
PREFERENCES: list[tuple[Row, list[tuple[str, str]]]] = [
    ({"prompt": "Name a prime.", **BOTH}, ASKED),
    ({"prompt": [ASK], "chosen": [SAY], "rejected": [WORSE]}, ASKED),
    ({"prompt": "Name a prime.", "chosen": [ASK, SAY], "rejected": [ASK, WORSE]}, ASKED),
    ({"chosen": [ASK, SAY], "rejected": [ASK, WORSE]}, ASKED),
    ({"system": "Go.", "question": "Name a prime.", **BOTH}, [("system", "Go."), *ASKED]),
    ({"instruction": "Name", "input": "a prime.", **BOTH}, [("user", "Name\na prime.")]),
    ({"conversations": [HUMAN], "chosen": BOT, "rejected": {"from": "gpt", "value": "Nine."}}, ASKED),
    ({"messages": [ASK], "chosen": SAY, "rejected": WORSE}, ASKED),
    ({"instruction": "Name a prime.", "input": "", "output": ["Seven.", "Eight.", "Nine."], "history": []}, ASKED),
    (
        {"chosen": TRANSCRIPT + " Seven.", "rejected": TRANSCRIPT + " Nine."},
        [("user", "Hi"), ("assistant", "Hello."), *ASKED],
    ),
    ({"prompt": TRANSCRIPT, **BOTH}, [("user", "Hi"), ("assistant", "Hello."), *ASKED]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), PREFERENCES)
def test_two_answers_follow_one_prompt(row: Row, prompt: list[tuple[str, str]]) -> None:
    found = preference_of(record(row))
    assert [(message.role, message.content) for message in found.prompt] == prompt
    assert [message.content.strip() for message in found.chosen] == ["Seven."]
    assert [message.content.strip() for message in found.rejected] == ["Nine."]


BAD_PREFERENCES: list[tuple[Row, str]] = [
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected is the same as chosen"),
    ({"prompt": "a", "chosen": "b"}, 'rejected is missing; add "rejected"'),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
    ({"prompt": "", "chosen": "b", "rejected": "c"}, "prompt is empty"),
    ({"instruction": "a", "output": ["b"]}, "a better and a worse answer"),
    ({"messages": [ASK, SAY], "chosen": SAY, "rejected": WORSE}, "does not end with a user turn"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "the same prompt"),
    ({"chosen": "b", "rejected": "c"}, "chosen is the text 'b'; begin it with \"\\n\\nHuman:\""),
    ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT + " Nine."}, "chosen is empty"),
    ({"instruction": "a", "output": "b"}, 'has the keys "instruction", "output"'),
]


@pytest.mark.parametrize(("row", "phrase"), BAD_PREFERENCES)
def test_a_row_without_two_answers_to_one_prompt_is_named(row: Row, phrase: str) -> None:
    assert phrase in str(fault(preference_of, row))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY]},
        {"prompt": "Name a prime.", "completion": "Seven."},
        {"prompt": [ASK], "completion": [SAY]},
    ],
)
@pytest.mark.parametrize(("label", "good"), [(True, True), (False, False), ("true", True), (0, False)])
def test_an_answer_is_judged(row: Row, label: object, good: bool) -> None:
    found = judged_of(record({**row, "label": label}))
    assert (found.prompt, found.answer, found.good) == ((Message("user", "Name a prime."),), (GOOD,), good)


def test_an_answer_without_a_judgement_is_named() -> None:
    assert fault(judged_of, {"messages": [ASK, SAY]}).field == "label"
    assert "make it true or false" in str(fault(judged_of, {"messages": [ASK, SAY], "label": "good"}))


# --- questions -----------------------------------------------------------------------------------------------

CONTEXT = "北京是中国的首都。 Paris is in France, and Paris is old."
SQUAD = {"id": "q1", "context": CONTEXT, "question": "What is old?"}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Paris", "France"], "answer_start": [10, 22]},
        [{"text": "Paris", "answer_start": 10}, {"text": "France", "answer_start": 22, "id": "1", "answer_end": 28}],
    ],
)
def test_answers_stand_where_they_are_said_to(answers: object) -> None:
    found = question_of(record({**SQUAD, "answers": answers}))
    assert (found.id, found.impossible) == ("q1", False)
    assert mended({**SQUAD, "answers": answers})[1] == ""
    row = {"context": "aaa", "answers": [{"text": "aa", "answer_start": 1}]}
    assert mended(row) == (row, "")
    assert [CONTEXT[start : start + len(text)] for text, start in found.answers] == ["Paris", "France"]


def test_an_answer_that_stands_in_one_other_place_is_found_there() -> None:
    for answers in ([{"text": "中国", "answer_start": 0}], {"text": ["中国"], "answer_start": [1]}):
        row = {**SQUAD, "answers": answers}
        assert question_of(record(row)).answers == (("中国", 3),)
        assert mended(row)[1] == "an answer found where its start does not say"


def test_a_question_may_be_impossible() -> None:
    for row in ({"answers": [], "is_impossible": True}, {"answers": {"text": [], "answer_start": []}}):
        found = question_of(record({**SQUAD, **row}))
        assert (found.impossible, found.answers) == (True, ())
    assert question_of(Record({**SQUAD, "id": None, "answers": []}, "a.json", 7)).id == "a.json:7"


@pytest.mark.parametrize(
    ("row", "phrase"),
    [
        ({"answers": [{"text": "Paris", "answer_start": 0}]}, "at several other places"),
        ({"answers": [{"text": "Rome", "answer_start": 0}]}, "has it nowhere"),
        ({"answers": [{"text": "Paris"}]}, "answers[0].answer_start is null"),
        ({"answers": [], "is_impossible": False}, 'or say "is_impossible": true'),
        ({"answers": [], "question": ""}, "question is empty"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "has 1 texts and 0 starts"),
    ],
)
def test_a_question_without_its_answer_in_the_context_is_named(row: Row, phrase: str) -> None:
    assert phrase in str(fault(question_of, {**SQUAD, **row}))


def test_an_answer_that_is_judged_bad_is_not_learnt() -> None:
    assert fault(conversations_of, {"messages": [ASK, SAY], "label": False}).field == "label"
    assert conversations_of(record({"messages": [ASK, SAY], "label": True}))


# --- labels and tags -------------------------------------------------------------------------------------------

LABELLED: list[tuple[Row, tuple[str, str, tuple[str, ...]]]] = [
    ({"text": "好看", "label": "good"}, ("好看", "", ("good",))),
    ({"text": "nice", "label": 3}, ("nice", "", ("3",))),
    ({"text": "nice", "labels": ["a", "b", "a"]}, ("nice", "", ("a", "b"))),
    ({"text": "nice", "labels": []}, ("nice", "", ())),
    ({"1": "体验2D巅峰", "2": "8"}, ("体验2D巅峰", "", ("8",))),
    ({"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 1}, ("It rains.", "It is wet.", ("0",))),
    ({"sentence1": "a", "sentence2": "b", "label": True}, ("a", "b", ("true",))),
]


@pytest.mark.parametrize(("row", "wanted"), LABELLED)
def test_a_text_has_its_labels(row: Row, wanted: tuple[str, str, tuple[str, ...]]) -> None:
    found = labelled_of(record(row))
    assert (found.text, found.second, found.labels) == wanted


def test_a_text_without_a_label_is_named() -> None:
    assert fault(labelled_of, {"text": "a"}).field == "label"
    assert fault(labelled_of, {"text": "a", "label": None}).field == "label"
    assert 'name them "text" and "label"' in str(fault(labelled_of, {"a": "b"}))


def test_words_have_their_tags() -> None:
    for row in (
        {"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]},
        {"words": ["in", "Rome"], "labels": ["O", "B-LOC"]},
    ):
        found = tagged_of(record(row))
        assert (found.words, found.tags) == (("in", "Rome"), ("O", "B-LOC"))
    assert tagged_of(record({"tokens": ["a", "b"], "ner_tags": [0, 7]})).tags == ("0", "7")
    assert "has 1 entries for 2 words" in str(fault(tagged_of, {"tokens": ["a", "b"], "tags": ["O"]}))
    assert fault(tagged_of, {"tokens": [], "tags": []}).field == "tokens"


def test_numbers_that_only_count_the_characters_of_words_are_left_out() -> None:
    row = {"tokens": ["科0", "技1", "，0", "好0"], "tags": ["O"] * 4}
    assert tagged_of(record(row)).words == ("科", "技", "，", "好")
    assert mended(row)[1] == "the numbers behind the characters left out"
    for words in (["P2", "M0"], ["科0", "技2"], ["科0", "技"]):
        assert tagged_of(record({"tokens": words, "tags": ["O"] * 2})).words == tuple(words)


def spelt(words: Iterable[str], tags: Iterable[str]) -> list[tuple[str, str]]:
    """The entities that tags mark, without white space."""
    found: list[tuple[str, str]] = []
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            found.append((word, tag[2:]))
        elif tag != "O":
            found[-1] = (found[-1][0] + word, found[-1][1])
    return found


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("李白出生在碎叶城，后来去了Chang'an。", [(0, 2, "PER"), (5, 8, "LOC"), (13, 21, "LOC")]),
        ("Ann Lee's dog (Rex) is in New York, NY.", [(0, 7, "PER"), (15, 18, "DOG"), (26, 34, "LOC"), (36, 38, "LOC")]),
        ("iPhone15发布", [(0, 6, "BRAND"), (6, 8, "NUM")]),
        ("nothing here", []),
    ],
)
def test_tags_mark_exactly_the_characters_of_the_entities(text: str, spans: list[tuple[int, int, str]]) -> None:
    objects = [{"start": start, "end": end, "label": label, "text": text[start:end]} for start, end, label in spans]
    for row in ({"text": text, "entities": objects}, {"text": text, "label": [list(span) for span in spans[::-1]]}):
        found = tagged_of(record(row))
        assert "".join(found.words) == "".join(text.split())
        wanted = [("".join(text[start:end].split()), label) for start, end, label in spans]
        assert spelt(found.words, found.tags) == wanted


@pytest.mark.parametrize("text", ["Ann's 3 dogs, in 北京 (さくら)!\n—x_y ½ naïve", "", " \t"])
def test_words_leave_nothing_but_white_space_between_them(text: str) -> None:
    words = words_of(text)
    assert all(text.startswith(word, start) for word, start in words)
    assert "".join(word for word, _ in words) == "".join(text.split())


@pytest.mark.parametrize(
    ("entity", "phrase"),
    [
        ({"start": 0, "end": 9, "label": "A"}, "reaches from 0 to 9 in a text of 5"),
        ({"start": 0, "end": 2, "label": "A", "text": "cd"}, "but the text has the text 'ab' there"),
        ({"start": "0", "end": 2, "label": "A"}, "entities[0].start is the text '0'"),
        ([0, 2], "entities[0] is the list [0, 2]"),
    ],
)
def test_an_entity_that_the_text_does_not_have_is_named(entity: object, phrase: str) -> None:
    assert phrase in str(fault(tagged_of, {"text": "ab cd", "entities": [entity]}))


def test_entities_that_overlap_are_named() -> None:
    entities = [{"start": 0, "end": 3, "label": "A"}, {"start": 2, "end": 4, "label": "B"}]
    assert "overlap at 2" in str(fault(tagged_of, {"text": "abcdef", "entities": entities}))


# --- real files, where they are at hand --------------------------------------------------------------------

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


# The file, what it is read as, its rows, and how many of them are problems.
REAL: list[tuple[str, Callable[[Record], object], int, int]] = [
    ("alpaca_en/alpaca_5000.json", conversations_of, 3500, 1),
    ("alpaca_zh_gpt4_demo/alpaca_zh_demo.json", conversations_of, 700, 0),
    ("ruozhiba_qa/ruozhiba_qa_gpt4o.json", conversations_of, 1700, 0),
    ("huatuo_med/liver_cancer.json", conversations_of, 700, 0),
    ("oasst_zh_sft/oaast_sft_zh.json", conversations_of, 520, 0),
    ("sharegpt_zh/sharegpt_zh_1K_format.jsonl", conversations_of, 420, 3),
    ("glaive_toolcall/glaive_toolcall_en_demo.json", conversations_of, 200, 0),
    ("glaive_toolcall/glaive_toolcall_zh_demo.json", conversations_of, 200, 0),
    ("tooluse_reasoning/reason_tool_use_demo_50.jsonl", conversations_of, 35, 0),
    ("moss_sft_sample/moss_conversation_with_plugins.jsonl", conversations_of, 100, 0),
    ("moss_sft_sample/moss_conversation_without_plugins.jsonl", conversations_of, 120, 0),
    ("moss_sft_sample/raw_mix_plugin_conversation_1.json", conversations_of, 1, 0),
    ("sql_create_context/sqlqa.jsonl", conversations_of, 2800, 0),
    ("lawyer_llama/legal_counsel_with_article_v2.json", conversations_of, 500, 0),
    ("lawyer_llama/legal_counsel_multi_turn_with_article_v2.json", conversations_of, 309, 309),
    ("medical_dialogue_gbk/样例_内科.csv", conversations_of, 2500, 0),
    ("dpo_demo/dpo_en_demo.json", preference_of, 200, 0),
    ("dpo_demo/dpo_zh_demo.json", preference_of, 200, 0),
    ("oasst_zh_rm/oaast_rm_zh.json", preference_of, 520, 2),
    ("hh_rlhf/harmless-base-test.jsonl", preference_of, 1000, 5),
    ("dpo_demo/kto_en_demo.json", judged_of, 200, 0),
    ("cmrc2018/cmrc2018_trial.json", question_of, 1002, 2),
    ("squad_v1_xquad/xquad.en.json", question_of, 826, 0),
    ("squad_v1_xquad/xquad.zh.json", question_of, 826, 0),
    ("squad_v2/dev-v2.0.json", question_of, 3749, 0),
    ("weibo_ner/weiboNER_2nd_conll.train", tagged_of, 1350, 0),
    ("wnut17_ner/wnut17train.conll", tagged_of, 3394, 0),
    ("thucnews_titles/dev.txt", labelled_of, 10000, 0),
    ("tatoeba_en_zh/cmn.txt", pair_of, 12081, 0),
    ("dialogsum/dialogsum.dev.jsonl", pair_of, 500, 0),
    ("e2e_nlg/devset.csv", pair_of, 4672, 0),
    ("wikisql_mlx/train.jsonl", document_of, 1000, 0),
]


def test_every_row_of_a_real_file_is_read_or_named() -> None:
    for source, reader, rows, bad in (one for one in REAL if (SHARED / one[0]).exists()):
        problems, found = Problems(), 0
        for one in iter_records([str(SHARED / source)], problems):
            try:
                found += bool(reader(one))
            except BadRow as error:
                problems.add(error.problem)
        assert (found, len(problems)) == (rows - bad, bad), source
