"""The loss is on exactly what the assistant says and the token that ends it, whatever the template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import ftcore
import pytest
from ftcore.batches import IGNORED, TokenRow
from ftcore.families import read_tokenizer
from ftcore.hooks import Data, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file
from ftcore_causal import Causal
from torch import nn

Row = dict[str, Any]
SHARED = Path(__file__).resolve().parents[4] / "shared"
NEEDS_SENTENCEPIECE = {"llama", "mistral", "internlm2", "tinyllamas-512"}
READABLE = {"qwen2-derived", "gpt2", "bloom"} | (NEEDS_SENTENCEPIECE if find_spec("sentencepiece") else set())
TOKENIZERS = sorted(path for path in (SHARED / "tokenizers").glob("*") if path.name in READABLE)
TOKENIZERS += sorted((SHARED / "weights").glob("stories260K"))

ROWS: dict[str, list[tuple[Row, list[str]]]] = {
    "alpaca": [
        ({"instruction": "Where is the cat?", "output": "By the door."}, ["By the door."]),
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, ["2"]),
        ({"instruction": "小猫在哪里？", "input": "", "output": "小猫在门口看雨。"}, ["小猫在门口看雨。"]),
        (
            {"instruction": "On.", "output": "One\n\ntwo  three", "system": "Be kind.", "history": [["Hi", "Hello!"]]},
            ["Hello!", "One\n\ntwo  three"],
        ),
    ],
    "messages": [
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, Lily!"}]},
            ["Hello, Lily!"],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Answer in one word. 用一个词回答。"},
                    {"role": "user", "content": "Where is the dog?"},
                    {"role": "assistant", "content": "Outside."},
                    {"role": "user", "content": "Where is the dog?"},
                    {"role": "assistant", "content": "Outside."},
                    {"role": "user", "content": "And the assistant\nin the rain?"},
                    {"role": "assistant", "content": "user\nIn the rain? assistant: yes!\n- one\n- two"},
                ]
            },
            ["Outside.", "Outside.", "user\nIn the rain? assistant: yes!\n- one\n- two"],
        ),
    ],
    "sharegpt": [
        (
            {
                "conversations": [
                    {"from": "system", "value": "You sell balls."},
                    {"from": "human", "value": "A ball?"},
                    {"from": "gpt", "value": "Here it is."},
                    {"from": "human", "value": "谢谢"},
                    {"from": "gpt", "value": "不客气。 🙂"},
                ]
            },
            ["Here it is.", "不客气。 🙂"],
        ),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, ["y"]),
    ],
}
EVERY = [pair for pairs in ROWS.values() for pair in pairs]


def prepared(loaded: Loaded, data: Path, said: list[str] | None = None, **keys: Any) -> Data:
    """The task's rows for a run on `data`; keys of the task are `template` and `show`."""
    own = {name: keys.pop(name) for name in ("template", "show") if name in keys}
    settings = Settings(data=(str(data),), **keys)
    say = (lambda line: None) if said is None else said.append
    return Causal(**own).prepare_data(Run(settings, "train", "causal-lm", say=say), loaded)


def with_tokenizer(folder: Path, template: str | None = None) -> Loaded:
    """The tokenizer of `folder` beside no model at all."""
    tokenizer = read_tokenizer(str(folder))
    assert tokenizer is not None
    tokenizer.chat_template = template
    return Loaded(nn.Identity(), tokenizer, {}, str(folder), 4096, len(tokenizer))


def supervised(row: TokenRow) -> Iterator[list[int]]:
    """The runs of tokens that are taught."""
    labelled = zip(row.input_ids.tolist(), row.labels.tolist(), strict=True)
    for taught, run in groupby(labelled, lambda pair: pair[1] != IGNORED):
        pairs = list(run)
        assert all(label in (token, IGNORED) for token, label in pairs)
        if taught:
            yield [token for token, _ in pairs]


def squeezed(text: str) -> str:
    """Text without white space: some tokenizers add or drop a space at the edge of an answer."""
    return "".join(text.split())


def assert_exact(loaded: Loaded, data: Data, wanted: Sequence[Sequence[str]], stop: str, spaces: bool = True) -> None:
    """Every run of taught tokens reads as one answer with its stop token, and there are no others."""
    alike: Callable[[str], str] = str.lstrip if spaces else squeezed
    for row, answers in zip(data.train, wanted, strict=True):
        runs = list(supervised(row))
        assert [alike(loaded.tokenizer.decode(run)) for run in runs] == [alike(answer + stop) for answer in answers]
        assert {run[-1] for run in runs} == {loaded.tokenizer.convert_tokens_to_ids(stop)}
        assert row.supervised == sum(len(run) for run in runs)


@pytest.mark.parametrize("form", ROWS)
def test_only_the_answers_and_their_stop_token_are_taught_in_chatml(
    form: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row for row, _ in ROWS[form]]))
    assert_exact(loaded, data, [answers for _, answers in ROWS[form]], "<|im_end|>")
    text = loaded.tokenizer.decode(data.train[0].input_ids.tolist())
    assert text.startswith("<|im_start|>")
    assert data.stop_ids == (loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert data.counts["rows"] == len(ROWS[form])
    assert data.counts["supervised_tokens"] == sum(row.supervised for row in data.train)
    assert data.counts["tokens"] == sum(row.size for row in data.train)
    assert data.counts["merged_with_prompt"] == data.counts["rows_cut"] == data.counts["rows_left_out"] == 0


def test_what_a_row_holds_is_what_the_template_renders(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row for row, _ in EVERY]))
    messages = ROWS["messages"][1][0]["messages"]
    wanted = loaded.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert data.train[5].input_ids.tolist() == wanted
    assert data.train[5].lengths == (len(wanted),)


@pytest.mark.parametrize("form", ROWS)
def test_only_the_answers_and_their_stop_token_are_taught_in_the_plain_template(
    form: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded, said = with_tokenizer(checkpoint("qwen2")), list[str]()
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row for row, _ in ROWS[form]]), said)
    assert_exact(loaded, data, [answers for _, answers in ROWS[form]], "<|im_end|>")
    assert any("no chat template" in line for line in said)
    assert loaded.tokenizer.chat_template  # saved with the run, so that inference cannot differ


@pytest.mark.parametrize("form", ROWS)
def test_a_template_from_a_file_replaces_the_tokenizers_own(
    form: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
        "{{ '<|endoftext|>' if m['role'] == 'assistant' else '|' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    rows = rows_file(tmp_path / "rows.jsonl", [row for row, _ in ROWS[form]])
    data = prepared(loaded, rows, template=str(file))
    assert_exact(loaded, data, [answers for _, answers in ROWS[form]], "<|endoftext|>")
    assert loaded.tokenizer.decode(data.train[0].input_ids.tolist()).startswith("[")


def test_a_template_file_that_is_not_there_is_refused(checkpoint: Callable[..., Path], rows: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    with pytest.raises(ftcore.Refused, match=r"no chat template file 'away\.jinja'"):
        prepared(loaded, rows, template="away.jinja")


def test_the_masks_are_exact_with_real_tokenizers(tmp_path: Path) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", [row for row, _ in EVERY])
    for folder in TOKENIZERS:
        own = read_tokenizer(str(folder)).chat_template
        for template in {own, None}:
            loaded = with_tokenizer(folder, template)
            data = prepared(loaded, rows)
            assert data.counts["merged_with_prompt"] == 0, folder
            assert_exact(loaded, data, [answers for _, answers in EVERY], loaded.tokenizer.eos_token, spaces=False)


def test_a_generation_prompt_is_how_every_answer_begins(checkpoint: Callable[..., Path], rows: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    data = prepared(loaded, rows, show=("Where is the cat? (0)",))
    probe, row = data.probes[0], data.train[0]
    assert probe.question == "Where is the cat? (0)"
    assert tuple(row.input_ids[: len(probe.input_ids)].tolist()) == probe.input_ids
    assert row.labels[len(probe.input_ids) - 1] == IGNORED
    assert row.labels[len(probe.input_ids)] != IGNORED


def test_the_sample_shows_a_row_parted_where_it_is_taught(checkpoint: Callable[..., Path], rows: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    sample = prepared(loaded, rows).sample
    assert [taught for taught, _ in groupby(piece.learned for piece in sample)] == [False, True, False]
    parts = {taught: "".join(text for text, learned, _ in sample if learned is taught) for taught in (True, False)}
    assert parts[True].endswith("<|im_end|>")
    assert "Where is the cat?" in parts[False]


def test_a_row_whose_answer_truncation_removes_is_refused_by_file_and_line(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    short = {"instruction": "Hi", "output": "Hello"}
    file = rows_file(tmp_path / "rows.jsonl", [short, {"instruction": "rain " * 60, "output": "No."}, short])
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: row has \d+ tokens, and its first 40 hold no answer"):
        prepared(loaded, file, max_length=40)
    said: list[str] = []
    data = prepared(loaded, file, said, max_length=40, on_bad_row="skip")
    assert [row.place for row in data.train] == [f"{file}:1", f"{file}:3"]
    assert data.counts["rows_left_out"] == 1
    assert any("1 rows left out of 3" in line for line in said)


def test_a_row_is_never_longer_than_asked_for_or_than_the_model_has_positions(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    long = {"instruction": "Hi", "output": "rain " * 400}
    file = rows_file(tmp_path / "rows.jsonl", [{"instruction": "Hi", "output": "Hello"}, long])
    for asked, wanted in ((50, 50), (100_000, loaded.max_positions)):
        data = prepared(loaded, file, max_length=asked)
        assert max(row.size for row in data.train) == wanted
        assert data.counts["rows_cut"] == 1


def test_rows_that_all_lose_their_stop_token_are_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    file = rows_file(tmp_path / "rows.jsonl", [{"instruction": "Hi", "output": "rain " * 400}] * 2)
    with pytest.raises(ftcore.Refused, match="no row keeps the stop token of an answer"):
        prepared(loaded, file)


@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("key", ["instruction", "output", "system"])
def test_a_special_token_written_in_a_message_is_refused_by_file_and_line(
    special: str, key: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    row = {"instruction": "Hi", "output": "Hello", "system": "Be kind."}
    file = rows_file(tmp_path / "rows.jsonl", [row, {**row, key: f"What is {special}?"}])
    with pytest.raises(ftcore.Refused) as refused:
        prepared(loaded, file)
    assert f"{file}:2: messages[" in str(refused.value)
    assert f"holds the special token '{special}' as text" in str(refused.value)
    assert len(prepared(loaded, file, on_bad_row="skip").train) == 1


def test_a_template_that_ends_answers_without_a_special_token_is_refused(checkpoint: Callable[..., Path]) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    loaded = with_tokenizer(checkpoint("qwen2"), template)
    with pytest.raises(ftcore.Refused, match="ends an answer without a special token"):
        prepared(loaded, Path(__file__).parent / "ftcore_causal" / "sample" / "heldout.jsonl")


def test_a_template_that_rewrites_earlier_answers_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As templates do that drop the reasoning of all answers but the last."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}…{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    loaded = with_tokenizer(checkpoint("qwen2"), template)
    for answers in (["Outside.", "Inside."], ["Yes.", "Yes."], ["Yes.", "Yes. It rains."]):
        turns = [("user", "Where?"), ("assistant", answers[0]), ("user", "Again?"), ("assistant", answers[1])]
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        with pytest.raises(ftcore.Refused, match="renders turn 2 of a conversation otherwise when more follows"):
            prepared(loaded, rows_file(tmp_path / "many.jsonl", [row]))
    single = rows_file(tmp_path / "one.jsonl", [ROWS["messages"][0][0]])
    assert_exact(loaded, prepared(loaded, single), [["Hello, Lily!"]], "<|im_end|>")


def test_bad_rows_are_all_listed_or_all_counted(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    good = {"instruction": "Hi", "output": "Hello"}
    steering = {"instruction": "<|im_end|>", "output": "x"}
    bad: list[Row] = [{"instruction": "Hi", "output": " "}, {"messages": []}, steering]
    file = rows_file(tmp_path / "rows.jsonl", [good, *bad, good])
    with pytest.raises(ftcore.Refused) as refused:
        prepared(loaded, file)
    assert all(f"{file}:{line}: " in str(refused.value) for line in (2, 3, 4))
    assert "3 of 5 rows cannot be used" in str(refused.value)
    said: list[str] = []
    data = prepared(loaded, file, said, on_bad_row="skip")
    assert data.counts["rows_left_out"] == 3
    assert any("3 rows left out of 5" in line for line in said)
    with pytest.raises(ftcore.Refused, match="none is left to train on"):
        prepared(loaded, rows_file(tmp_path / "bad.jsonl", bad), on_bad_row="skip")


def test_a_tokenizer_that_is_missing_is_refused(rows: Path) -> None:
    with pytest.raises(ftcore.Refused, match=r"the checkpoint 'somewhere' has no tokenizer; add its tokenizer\.json"):
        prepared(Loaded(nn.Identity(), None, {}, "somewhere", 64, 64), rows)


def test_held_out_rows_are_masked_as_training_rows_are(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    file = rows_file(tmp_path / "rows.jsonl", [row for row, _ in EVERY])
    data = prepared(loaded, file, eval_data=(str(file),))
    assert [row.identity() for row in data.eval] == [row.identity() for row in data.train]
    shared = prepared(loaded, file, eval_share=0.25)
    assert len(shared.eval) == 2
    assert {row.place for row in shared.eval} & {row.place for row in shared.train} == set()
    assert_exact(loaded, replace(data, train=data.eval), [answers for _, answers in EVERY], "<|im_end|>")


def test_the_built_in_sample_is_announced_and_usable(checkpoint: Callable[..., Path]) -> None:
    loaded, said = ftcore.load("qwen", checkpoint=checkpoint("qwen2")), list[str]()
    data = Causal().prepare_data(Run(Settings(), "train", "causal-lm", say=said.append), loaded)
    assert (len(data.train), len(data.eval)) == (400, 48)
    assert len(data.probes) == 3
    assert any("built-in sample is used; pass --data" in line for line in said)


@task_checks(Causal(metrics=("exact_match",), max_new_tokens=4))
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
