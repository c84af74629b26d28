"""Turns of every role in every shape: what is learned reads as the answers do, and nothing that is read is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.batches import IGNORED, TokenRow
from ftcore.chat import converse
from ftcore.cli import cli
from ftcore.families import read_tokenizer
from ftcore.hooks import Data, Intent, Loaded, Run
from ftcore.problems import Problems
from ftcore.records import Record, iter_records
from ftcore.settings import Settings
from ftcore.shapes import Conversation, conversations_of
from ftcore.templates import ROLES, Turns
from ftcore.testing.stage import rows_file
from ftcore_causal import Causal
from torch import nn
from torch.nn.functional import cross_entropy

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"
STARTERS = sorted(
    path
    for path in ROOT.glob("plugins/models/*/*/starter")
    if json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0].endswith("ForCausalLM")
)
NEEDS_SENTENCEPIECE = {"llama", "mistral", "internlm2", "tinyllamas-512"}
READABLE = {"qwen2-derived", "gpt2", "bloom"} | (NEEDS_SENTENCEPIECE if find_spec("sentencepiece") else set())
TOKENIZERS = sorted(path for path in (SHARED / "tokenizers").glob("*") if path.name in READABLE)

CALL = '{"name": "look", "arguments": {"where": "厨房"}}'
TOOLS = [{"name": "look", "description": "Looks somewhere.", "parameters": {"type": "object", "properties": {}}}]
TOLD = "The kettle is in the kitchen, and it is hot."
SHAPES: dict[str, tuple[Row, list[list[str]]]] = {
    "alpaca": ({"instruction": "Where?", "input": "A cat.", "output": "Here."}, [["Here."]]),
    "alpaca with history": (
        {"system": "Be kind.", "history": [["Hi", "Hello!"]], "instruction": "On.", "output": "a\n\nb  c"},
        [["Hello!", "a\n\nb  c"]],
    ),
    "messages": (
        {
            "messages": [
                {"role": "user", "content": "user"},
                {"role": "assistant", "content": "assistant"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "a"},
            ]
        },
        [["assistant", "a"]],
    ),
    "tools": (
        {
            "messages": [
                {"role": "system", "content": "You know a house."},
                {"role": "user", "content": "Where is the kettle?"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": json.loads(CALL)}]},
                {"role": "tool", "content": TOLD},
                {"role": "assistant", "content": "In the kitchen."},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Still there."},
            ],
            "tools": TOOLS,
        },
        [[CALL, "In the kitchen.", "Still there."]],
    ),
    "sharegpt with calls": (
        {
            "conversations": [
                {"from": "human", "value": "Where is it?"},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": TOLD},
                {"from": "gpt", "value": "厨房里。 🙂"},
            ],
            "tools": json.dumps(TOOLS),
        },
        [[CALL, "厨房里。 🙂"]],
    ),
    "moss": (
        {
            "meta_instruction": "You can reckon.",
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: 2 + 3?<eoh>",
                    "Inner Thoughts": "<|Inner Thoughts|>: I reckon.<eot>",
                    "Commands": "<|Commands|>: Calculate(2+3)<eoc>",
                    "Tool Responses": f"<|Results|>: {TOLD}<eor>",
                    "MOSS": "<|MOSS|>: It is 5.<eom>",
                },
                "turn_2": {
                    "Human": "<|Human|>: Thanks<eoh>",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>",
                    "Commands": "<|Commands|>: None<eoc>",
                    "Tool Responses": "<|Results|>: None<eor>",
                    "MOSS": "<|MOSS|>: You are welcome.<eom>",
                },
            },
        },
        [["<think>\nI reckon.\n</think>\nCalculate(2+3)", "It is 5.", "You are welcome."]],
    ),
    "oasst tree": (
        {
            "prompt": {
                "role": "prompter",
                "text": "Hi",
                "replies": [
                    {
                        "role": "assistant",
                        "text": "Hello.",
                        "replies": [
                            {"role": "prompter", "text": "One", "replies": [{"role": "assistant", "text": "1"}]},
                            {"role": "prompter", "text": "Two", "replies": [{"role": "assistant", "text": "2"}]},
                        ],
                    }
                ],
            }
        },
        [["Hello.", "1"], ["2"]],
    ),
    "kept from being learnt": (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Wrong.", "loss": False},
                {"role": "user", "content": "Again"},
                {"role": "assistant", "content": "Right."},
            ]
        },
        [["Right."]],
    ),
    "xtuner": (
        {
            "conversation": [
                {"system": "Be kind.", "input": "Hi", "output": "Hello."},
                {"input": "Bye", "output": "Farewell."},
            ]
        },
        [["Hello.", "Farewell."]],
    ),
}
# The published form of calls and tools as we write it: a list of tools in the system turn, calls between two marks.
NATIVE = (
    "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n"
    "{% endif %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}{% if not tools %}<|im_start|>system\n{{ m['content'] }}"
    "<|im_end|>\n{% endif %}{% elif m['role'] == 'tool' %}<|im_start|>user\n<result>{{ m['content'] }}</result>"
    "<|im_end|>\n{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "<call>{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# One that takes nothing but user and assistant in turn, and says so.
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant only') }}{% endif %}"
    "{{ '[Q]' if m['role'] == 'user' else '[A]' }}{{ m['content'] }}"
    "{{ '<|endoftext|>' if m['role'] == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)


def prepared(loaded: Loaded, file: Path, intent: Intent = "train", **keys: Any) -> Data:
    """The task's rows; options of the task are given by name."""
    own = {name: keys.pop(name) for name in tuple(keys) if name in Causal.__annotations__}
    settings = Settings(**{"data": (str(file),), **keys})
    return Causal(**own).prepare_data(Run(settings, intent, "causal-lm"), loaded)


def bare(folder: Path, template: str | None = None) -> Loaded:
    """A tokenizer beside no model, with its own chat template unless another is given."""
    tokenizer = read_tokenizer(str(folder))
    assert tokenizer is not None
    if template is not None:
        tokenizer.chat_template = template or None
    return Loaded(nn.Identity(), tokenizer, {}, str(folder), 4096, len(tokenizer))


def runs(row: TokenRow) -> Iterator[list[int]]:
    """The runs of tokens that are taught."""
    labelled = zip(row.input_ids.tolist(), row.labels.tolist(), strict=True)
    for taught, run in groupby(labelled, lambda pair: pair[1] != IGNORED):
        if taught:
            yield [token for token, _ in run]


def taught(loaded: Loaded, row: TokenRow, *, spaces: bool = True) -> list[str]:
    """What is taught, without the special token that must end each answer."""
    specials = set(loaded.tokenizer.all_special_ids) | {
        number for number, token in loaded.tokenizer.added_tokens_decoder.items() if token.special
    }
    said = []
    for run in runs(row):
        assert run[-1] in specials
        assert specials.isdisjoint(run[:-1])
        text = loaded.tokenizer.decode(run[:-1])
        said.append(text.lstrip() if spaces else "".join(text.split()))
    return said


def squeezed(answers: Sequence[Sequence[str]]) -> list[list[str]]:
    """Answers without white space: some tokenizers add or drop some."""
    return [["".join(text.split()) for text in row] for row in answers]


@pytest.mark.parametrize("folder", STARTERS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize("template", [None, ""], ids=["own", "plain"])
def test_only_the_answers_are_learned_of_every_shape_by_every_starter(
    folder: Path, template: str | None, tmp_path: Path
) -> None:
    loaded = bare(folder, template)
    for name, (row, answers) in SHAPES.items():
        data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]))
        assert [taught(loaded, one) for one in data.train] == answers, name
        assert_nothing_is_lost(loaded, data.train[0], row)


def assert_nothing_is_lost(loaded: Loaded, row: TokenRow, source: Row) -> None:
    """Every text of the conversation, and the tools, stand in what the model reads."""
    read = loaded.tokenizer.decode(row.input_ids.tolist())
    conversation = conversations_of(Record(source, "", 0))[0]
    for message in conversation.messages:
        assert message.text in read
    if conversation.tools:
        assert "Looks somewhere." in read


def test_only_the_answers_are_learned_of_every_shape_with_real_tokenizers(tmp_path: Path) -> None:
    for folder in TOKENIZERS:
        for template in (None, ""):
            loaded = bare(folder, template)
            for name, (row, answers) in SHAPES.items():
                data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]))
                found = [taught(loaded, one, spaces=False) for one in data.train]
                assert found == squeezed(answers), (folder, name)


def test_a_result_and_the_tools_are_read_by_a_template_that_knows_them_in_its_own_form(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = bare(checkpoint("qwen2"), NATIVE)
    row, _ = SHAPES["tools"]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]))
    said = taught(loaded, data.train[0])
    assert said == ['<call>look {"where": "厨房"}</call>', "In the kitchen.", "Still there."]
    read = loaded.tokenizer.decode(data.train[0].input_ids.tolist())
    assert f"<result>{TOLD}</result>" in read
    assert read.startswith('<|im_start|>system\nYou know a house.\n{"type": "function", "function": {"name": "look"')
    plain = {"role": "assistant", "content": "", "tool_calls": ["look()"]}
    turns = [row["messages"][1], plain, *row["messages"][3:]]
    data = prepared(loaded, rows_file(tmp_path / "other.jsonl", [{"messages": turns}]))
    assert taught(loaded, data.train[0])[0] == "look()"  # a call without name and arguments is text


def test_a_template_without_system_and_tools_gets_them_in_turns_of_the_user(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = bare(checkpoint("qwen2"), STRICT)
    row, answers = SHAPES["tools"]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]))
    assert [taught(loaded, one) for one in data.train] == answers
    read = loaded.tokenizer.decode(data.train[0].input_ids.tolist())
    assert read.startswith("[Q]You know a house.\n\nTools:\n[{")
    assert f"}}]\n\nWhere is the kettle?[A]{CALL}<|endoftext|>[Q]Tool: {TOLD}[A]In the kitchen." in read


def test_a_conversation_that_the_template_refuses_is_refused_by_file_and_line(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = bare(checkpoint("qwen2"), STRICT)
    turns = [("user", "Hi"), ("assistant", "Hm."), ("assistant", "Hello.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "tools": TOOLS}
    file = rows_file(tmp_path / "rows.jsonl", [SHAPES["alpaca"][0], row])
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: row cannot be written .*\(user and assistant only\)"):
        prepared(loaded, file)


def test_only_the_last_turn_is_learned_when_that_is_asked_for(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = bare(checkpoint("qwen2"))
    wanted = {"tools": ["Still there."], "moss": ["You are welcome."], "alpaca with history": ["a\n\nb  c"]}
    for name, answers in [*wanted.items(), ("sharegpt with calls", SHAPES["sharegpt with calls"][1][0])]:
        data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [SHAPES[name][0]]), train_on="last-turn")
        assert taught(loaded, data.train[0]) == answers


def test_a_template_that_rewrites_earlier_answers_can_be_taught_the_last(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}…"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    loaded, file = bare(checkpoint("qwen2"), template), rows_file(tmp_path / "rows.jsonl", [SHAPES["messages"][0]])
    with pytest.raises(ftcore.Refused, match="'train_on' as last-turn"):
        prepared(loaded, file)
    data = prepared(loaded, file, train_on="last-turn")
    assert taught(loaded, data.train[0]) == ["a"]
    assert sum(data.counts[f"tokens_{role}"] for role in ROLES) == data.counts["tokens"]


def test_an_answer_that_no_turn_leaves_to_learn_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No.", "loss": False}]
    file = rows_file(tmp_path / "rows.jsonl", [{"messages": turns}])
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1: row has no answer to learn"):
        prepared(bare(checkpoint("qwen2")), file)


# --- counted and shown -----------------------------------------------------------------------------------


def test_tokens_are_counted_by_the_role_whose_turn_they_stand_in(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = bare(checkpoint("qwen2"))
    row, _ = SHAPES["tools"]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]))
    conversation = conversations_of(Record({**row, "tools": []}, "", 0))[0]
    system = f"You know a house.\n\nTools:\n{json.dumps(TOOLS)}"
    wanted = dict.fromkeys(ROLES, 0)
    for message in conversation.messages:
        text = system if message.role == "system" else message.text
        turn = f"<|im_start|>{message.role}\n{text}<|im_end|>\n"
        wanted[message.role] += len(loaded.tokenizer(turn)["input_ids"])
    assert {role: data.counts[f"tokens_{role}"] for role in ROLES} == wanted
    assert sum(wanted.values()) == data.counts["tokens"]
    pieces = data.sample
    assert [role for role, _ in groupby(piece.role for piece in pieces)] == [m.role for m in conversation.messages]
    assert "".join(piece.text for piece in pieces if piece.role == "tool") == f"<|im_start|>tool\n{TOLD}<|im_end|>\n"
    assert not any(piece.learned for piece in pieces if piece.role != "assistant")


# --- what prompts weigh ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_is_the_weighted_mean_of_cross_entropies(
    weight: float, packing: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2", max_position_embeddings=1024))
    file = rows_file(
        tmp_path / "rows.jsonl", [SHAPES[name][0] for name in ("alpaca", "tools", "kept from being learnt")]
    )
    data = prepared(loaded, file, prompt_weight=weight, packing=packing)
    batch = data.collate(data.train[:])
    with torch.no_grad():
        found = float(data.loss(loaded.model, batch))
    total, weights = 0.0, 0.0
    for row in data.train:
        ids = torch.from_numpy(row.input_ids).long()[None]
        with torch.no_grad():
            logits = loaded.model(input_ids=ids).logits[0, :-1]
        each = cross_entropy(logits, ids[0, 1:], reduction="none")
        counted = torch.tensor(by_hand(row, weight)[1:])
        total += float((each * counted).sum())
        weights += float(counted.sum())
    assert batch.weight == pytest.approx(weights)
    assert found == pytest.approx(total, rel=1e-5)


def by_hand(row: Turns, weight: float) -> list[float]:
    """What each token counts: an answer that is learned 1, what system and user say `weight`, anything else 0."""
    answer, prompts = ROLES.index("assistant"), (ROLES.index("system"), ROLES.index("user"))
    pairs = zip(row.roles.tolist(), (row.labels != IGNORED).tolist(), strict=True)
    return [1.0 if role == answer and learned else weight if role in prompts else 0.0 for role, learned in pairs]


def test_rows_are_the_same_without_a_weight_of_prompts_and_others_with_one(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded, file = bare(checkpoint("qwen2")), rows_file(tmp_path / "rows.jsonl", [SHAPES["alpaca"][0]])
    rows = [prepared(loaded, file, prompt_weight=weight).train[0] for weight in (0.0, 0.5, 0.75, 1.0)]
    assert len({row.identity() for row in rows}) == 4
    assert rows[0].weights is None
    assert "weights" not in prepared(loaded, file).collate([rows[0]]).targets


# --- answers ---------------------------------------------------------------------------------------------


def test_rows_without_answers_are_answered_and_their_questions_are_put_as_in_training(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2", max_position_embeddings=1024))
    tools, _ = SHAPES["tools"]
    rows = [
        {"instruction": "Where?", "input": "A cat."},
        {"messages": tools["messages"][:4], "tools": TOOLS},
        {"conversations": [{"from": "human", "value": "Where is it?"}]},
        tools,
    ]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    data = prepared(loaded, file, "predict", data=(), eval_data=(str(file),), max_new_tokens=5)
    whole = prepared(loaded, rows_file(tmp_path / "whole.jsonl", [SHAPES["alpaca"][0], tools])).train
    prompts = [row.input_ids[: row.asked].tolist() for row in data.eval]
    assert prompts[0] == whole[0].input_ids[: whole[0].asked].tolist()
    assert prompts[1] == whole[1].input_ids[: len(prompts[1])].tolist()
    assert prompts[3] == whole[1].input_ids[: whole[1].asked].tolist()
    assert data.scoring is not None
    lines = data.scoring.lines(data.eval, data.scoring.predict(loaded.model, data.eval[:]))
    assert [line.get("reference") for line in lines] == [None, None, None, "Still there."]
    for prompt, line in zip(prompts, lines, strict=True):
        assert line["prompt"] == loaded.tokenizer.decode(prompt)
        assert line["prediction"] == greedy(loaded, prompt, 5)
    assert data.scoring.score(lines[:3]) == {}


def greedy(loaded: Loaded, prompt: Sequence[int], count: int) -> str:
    """What the model says token by token, each the likeliest, by itself."""
    ids, stop = list(prompt), loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return str(loaded.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


def test_answers_do_not_depend_on_what_is_answered_beside_them(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    rows = [{"instruction": text, "output": "Yes."} for text in ("aaaa", "bbbb", "What?", "cccc", "A long one of them")]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", rows), metrics=("exact_match",), max_new_tokens=6)
    assert data.scoring is not None
    together = data.scoring.predict(loaded.model, data.train[:])
    assert together == [data.scoring.predict(loaded.model, [row])[0] for row in data.train]


def test_lines_of_one_prompt_are_one_with_all_their_references(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = bare(checkpoint("qwen2"))
    rows = [{"mr": mr, "ref": ref} for mr, ref in [("a", "One."), ("a", "Two."), ("b", "Three."), ("b", "Four.")]]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", rows), metrics=("exact_match", "bleu"))
    assert data.scoring is not None
    lines = data.scoring.lines(data.train[:], ["Two.", "Two.", "None.", "None."])
    assert [line["reference"] for line in lines] == ["One.", "Two.", "Three.", "Four."]
    assert data.scoring.score(lines)["exact_match"] == 50


def test_an_answer_that_was_cut_is_compared_with_nothing(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": "Hello"}, {"instruction": "Hi", "output": "rain " * 200}]
    data = prepared(
        bare(checkpoint("qwen2")), rows_file(tmp_path / "rows.jsonl", rows), metrics=("exact_match",), max_length=60
    )
    assert data.scoring is not None
    assert ["reference" in line for line in data.scoring.lines(data.train[:], ["", ""])] == [True, False]


@pytest.mark.parametrize("template", [NATIVE, STRICT, None])
def test_chat_asks_as_training_writes(
    template: str | None, checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, asked = bare(checkpoint("qwen2"), *[template] * (template is not None)), list[list[int]]()
    monkeypatch.setattr("ftcore.chat.generate", lambda model, tokenizer, prompt, *rest: asked.append(prompt) or "Fine.")
    messages = converse(loaded, iter(["Hi!", "And you?"]), lambda text: None, system="Be brief.")
    row = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [{"messages": messages}])).train[0].input_ids.tolist()
    assert [row[: len(prompt)] for prompt in asked] == asked
    assert loaded.tokenizer.decode(asked[0]).count("Be brief.") == 1


def test_a_run_measures_its_answers_and_predicts_them(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [{"instruction": "Say so.", "output": "So."}] * 4)
    outcome = ftcore.run(
        method="full", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=file, eval_data=file,
        steps=30, lr=0.01, output=tmp_path / "run", causal={"metrics": ["exact_match", "chrf"], "max_new_tokens": 8},
    )  # fmt: skip
    assert (outcome.before["exact_match"], outcome.metrics["exact_match"]) == (0, 100)
    assert outcome.metrics["chrf"] == pytest.approx(100)
    asked = rows_file(tmp_path / "asked.jsonl", [{"instruction": "Say so."}])
    said = tmp_path / "said.jsonl"
    cli.main(["predict", str(tmp_path / "run"), "--data", str(asked), "--output", str(said)], standalone_mode=False)
    assert json.loads(said.read_text(encoding="utf-8"))["prediction"] == "So."


def test_real_conversations_with_tools_are_learned_exactly(tmp_path: Path) -> None:
    files = ["moss_sft_sample/moss_conversation_with_plugins.jsonl", "glaive_toolcall/glaive_toolcall_zh_demo.json"]
    loaded = replace(bare(STARTERS[0]), max_positions=100_000)
    for file in files:
        if (SHARED / "data" / file).is_file():
            data = prepared(loaded, SHARED / "data" / file, max_length=100_000, on_bad_row="skip", cache="off")
            conversations = [one for one in real(SHARED / "data" / file) if one.place in {r.place for r in data.train}]
            assert len(data.train) > 0.9 * (len(data.train) + data.counts["rows_left_out"])
            for row, conversation in zip(data.train, conversations, strict=True):
                assert taught(loaded, row) == [text.strip() for text in conversation.answers]


def real(file: Path) -> Iterator[Conversation]:
    """The conversations of a file."""

    for record in iter_records([str(file)], Problems()):
        yield from conversations_of(record)
