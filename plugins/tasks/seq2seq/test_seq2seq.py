"""Every token of every output is learned from the whole input and the right tokens before it, and scored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ftcore
import pytest
import sacrebleu
import torch
from ftcore.batches import IGNORED
from ftcore.generation import generate
from ftcore.hooks import Data, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file, tiny_checkpoint
from ftcore_seq2seq import Seq2Seq
from ftcore_seq2seq.rows import writer_of
from ftcore_seq2seq.scoring import Search, score, written
from tokenizers.processors import TemplateProcessing

Row = Mapping[str, Any]
PAIRS: list[Row] = [
    {"input": "The cat sat by the door.", "output": "小猫在门口。"},
    {"source": "name: Tim | kind: dog", "target": "Tim is a dog, and he ran over the hill to find its ball."},
    {"dialogue": "Lily said hello.\nThe man smiled.", "summary": "Hello 🙂"},
    {"instruction": "Where is the ball?", "input": "The ball lay by the door.", "output": "By the door."},
    {"prompt": "1 + 1 =", "completion": "2"},
]
OUTPUTS = [str(row[list(row)[-1]]) for row in PAIRS]
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "dropout": 0.0}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "attention_dropout": 0.0}


def read_by(model_type: str) -> Loaded:
    """A tiny model of that type: one whose tokenizer puts nothing around a text, one that ends, one that begins too."""
    if model_type == "mt5":
        return ftcore.load("t5", "seq2seq", tiny_checkpoint("mt5", "seq2seq-lm"))
    if model_type == "t5":
        shape = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "decoder_start_token_id": 0}
        loaded = ftcore.load("t5", "seq2seq", tiny_checkpoint("t5", "seq2seq-lm", **shape))
        return around(loaded, "$A <|im_end|>")
    loaded = ftcore.load("auto", "seq2seq", tiny_checkpoint("bart", "seq2seq-lm", **BART, decoder_start_token_id=2))
    return around(loaded, "<|im_start|> $A <|im_end|>")


def around(loaded: Loaded, template: str) -> Loaded:
    """The same with a tokenizer that puts its tokens around every text."""
    tokenizer: Any = copy.deepcopy(loaded.tokenizer)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return Loaded(**{**vars(loaded), "tokenizer": tokenizer})


TYPES = ("mt5", "t5", "bart")


def prepared(loaded: Loaded, data: Path, said: list[str] | None = None, own: Row | None = None, **keys: Any) -> Data:
    """The task's rows for a run on `data`; `own` are its options."""
    say = (lambda line: None) if said is None else said.append
    return Seq2Seq(**(own or {})).prepare_data(
        Run(Settings(data=(str(data),), **keys), "train", "seq2seq-lm", say=say), loaded
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_the_loss_is_transformers_own(model_type: str, tmp_path: Path) -> None:
    loaded = read_by(model_type)
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS))
    model: Any = loaded.model
    for rows in (list(data.train)[:1], list(data.train)):
        batch = data.collate(rows)
        labels = batch.targets["labels"].reshape(len(rows), -1)
        given = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        opened = {"decoder_input_ids": batch.inputs["decoder_input_ids"]} if model_type == "bart" else {}
        with torch.no_grad():
            wanted = model(**given, **opened, labels=labels).loss * batch.weight
            assert float(data.loss(model, batch)) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_decoder_hears_what_the_model_makes_of_the_labels(model_type: str, tmp_path: Path) -> None:
    """A token that the tokenizer puts before a text is heard, and not learned."""
    loaded = read_by(model_type)
    model, tokenizer = loaded.model, loaded.tokenizer
    for row, output in zip(prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS)).train, OUTPUTS, strict=True):
        whole = tokenizer(output)["input_ids"]
        end = [] if whole[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
        heard = model.prepare_decoder_input_ids_from_labels(torch.tensor([whole + end]))
        assert row.decoder_input_ids.tolist() == heard[0].tolist()
        before = whole.index(tokenizer(output, add_special_tokens=False)["input_ids"][0])
        assert row.labels.tolist() == [IGNORED] * before + (whole + end)[before:]


@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_read_is_what_the_tokenizer_makes_of_the_input(model_type: str, tmp_path: Path) -> None:
    loaded = read_by(model_type)
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS), own={"prefix": "say: "})
    for row, pair in zip(data.train, PAIRS, strict=True):
        text = "\n".join(list(pair.values())[:-1])
        assert row.input_ids.tolist() == loaded.tokenizer(f"say: {text}")["input_ids"]


@pytest.mark.parametrize("model_type", TYPES)
def test_supervised_tokens_read_as_the_outputs_and_their_end(model_type: str, tmp_path: Path) -> None:
    loaded = read_by(model_type)
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS))
    taught = [row.labels[row.labels != IGNORED].tolist() for row in data.train]
    assert [loaded.tokenizer.decode(ids) for ids in taught] == [f"{output}<|im_end|>" for output in OUTPUTS]
    assert data.counts["supervised_tokens"] == sum(map(len, taught)) == data.collate(data.train).weight
    assert data.counts["tokens"] == sum(row.size for row in data.train) == data.collate(data.train).tokens
    assert data.sample == (
        (loaded.tokenizer.decode(data.train[0].input_ids.tolist()), False),
        (f"{OUTPUTS[0]}<|im_end|>", True),
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_a_long_input_is_cut_before_its_end_and_counted(model_type: str, tmp_path: Path) -> None:
    loaded = read_by(model_type)
    file = rows_file(tmp_path / "rows.jsonl", [*PAIRS, {"input": "rain " * 200, "output": "No."}])
    data = prepared(loaded, file, max_length=100)
    assert (data.counts["rows"], data.counts["rows_cut"], data.counts["rows_left_out"]) == (6, 1, 0)
    whole = loaded.tokenizer("rain " * 200)["input_ids"]
    after = 1 if whole[-1] == loaded.tokenizer.eos_token_id else 0
    assert data.train[-1].input_ids.tolist() == whole[: 100 - after] + whole[len(whole) - after :]


def test_an_output_that_is_too_long_is_refused_by_file_and_line_or_counted(tmp_path: Path) -> None:
    loaded = read_by("t5")
    file = rows_file(tmp_path / "rows.jsonl", [PAIRS[0], {"input": "Rain?", "output": "rain " * 60}])
    for own, keys in (({"max_target_length": 40}, {}), ({}, {"max_length": 40})):
        with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: output has \d+ tokens, more than 40; shorten it"):
            prepared(loaded, file, own=own, **keys)
        said: list[str] = []
        data = prepared(loaded, file, said, own, on_bad_row="skip", **keys)
        assert (data.counts["rows"], data.counts["rows_left_out"]) == (1, 1)
        assert any("1 rows left out of 2" in line for line in said)


def test_an_output_just_as_long_as_it_may_be_is_whole(tmp_path: Path) -> None:
    loaded = read_by("bart")
    row = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS[1:2])).train[0]
    length = len(row.labels)
    again = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS[1:2]), own={"max_target_length": length}).train[0]
    assert again.identity() == row.identity()
    with pytest.raises(ftcore.Refused, match=f"output has {length} tokens, more than {length - 1}"):
        prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS[1:2]), own={"max_target_length": length - 1})


def test_of_several_outputs_the_first_is_learned_and_all_are_references(tmp_path: Path) -> None:
    loaded = read_by("t5")
    file = rows_file(tmp_path / "rows.jsonl", [{"input": "Where?", "output": ["Here.", "By the door."]}, PAIRS[4]])
    data = prepared(loaded, file, eval_data=(str(file),))
    taught = [loaded.tokenizer.decode(row.labels.tolist()) for row in data.train]
    assert taught == ["Here.<|im_end|>", "2<|im_end|>"]
    assert data.scoring is not None
    lines = data.scoring.lines(data.eval, ["By the door.", "3"])
    assert lines == [
        {"input": "Where?", "prediction": "By the door.", "references": ["Here.", "By the door."]},
        {"input": "1 + 1 =", "prediction": "3", "references": ["2"]},
    ]
    assert data.scoring.score(lines[:1])["rouge1"] == 100


def test_an_input_alone_is_answered_and_not_scored(tmp_path: Path) -> None:
    loaded = read_by("t5")
    rows = [{"source": "The cat sat."}, {"instruction": "Where?", "input": "Here."}, PAIRS[4]]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    run = Run(Settings(eval_data=(str(file),)), "predict", "seq2seq-lm")
    data = Seq2Seq(max_new_tokens=5).prepare_data(run, loaded)
    assert data.scoring is not None
    lines = data.scoring.lines(data.eval, data.scoring.predict(loaded.model, data.eval))
    assert [line["input"] for line in lines] == ["The cat sat.", "Where?\nHere.", "1 + 1 ="]
    assert ["references" in line for line in lines] == [False, False, True]
    assert data.scoring.score(lines) == data.scoring.score(lines[2:]) != {}
    assert data.scoring.score(lines[:2]) == {}
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1"):
        prepared(loaded, file)


def test_records_of_one_input_are_references_of_one_another() -> None:
    """As in E2E's files, which have a line for each reference."""
    apart = [
        {"input": "name[Tim]", "prediction": "Tim is a cat.", "references": ["Tim is a cat."]},
        {"input": "name[Tim]", "prediction": "Tim is a cat.", "references": ["There is Tim."]},
        {"input": "name[Ben]", "prediction": "Ben is a dog.", "references": ["Ben is an old dog."]},
    ]
    assert score(apart, ("bleu",), "13a")["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(
            ["Tim is a cat.", "Ben is a dog."], [["Tim is a cat.", "Ben is an old dog."], ["There is Tim.", None]]
        ).score
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input": "Hi"}, "row has the keys"),
        ({"source": "Hi", "target": " "}, "target is blank"),
        ({"question": "Hi", "answer": []}, "answer is an empty list"),
        ({"question": "Hi", "answer": ["Yes", 3]}, r"answer\[1\] is the number 3"),
        ({"input": "Say <|im_end|>", "output": "no"}, r"input holds the special token '<\|im_end\|>' as text"),
        ({"input": "Say no", "output": "<|endoftext|>"}, "output holds the special token"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_file_and_line(row: Row, told: str, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [PAIRS[0], row])
    with pytest.raises(ftcore.Refused, match=rf"rows\.jsonl:2: {told}"):
        prepared(read_by("t5"), file)


def test_marks_of_left_out_spans_are_tokens_only_where_they_are_asked_for(tmp_path: Path) -> None:
    loaded = read_by("t5")
    loaded.tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_id_0>", "<extra_id_1>"]})
    loaded = Loaded(**{**vars(loaded), "vocab_size": len(loaded.tokenizer)})
    rows = [{"input": "The <extra_id_0> sat.", "output": "<extra_id_0> cat <extra_id_1>"}]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ftcore.Refused, match="input holds the special token '<extra_id_0>' as text"):
        prepared(loaded, file)
    row = prepared(loaded, file, own={"sentinels": True}).train[0]
    marks = loaded.tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
    assert [token for token in row.input_ids.tolist() if token in marks] == marks[:1]
    assert [token for token in row.labels.tolist() if token in marks] == marks


def test_an_end_is_the_tokenizers_or_the_models_and_without_one_or_a_begin_it_is_refused(tmp_path: Path) -> None:
    file, loaded = rows_file(tmp_path / "rows.jsonl", PAIRS), read_by("t5")
    with pytest.raises(ftcore.Refused, match=r"has no tokenizer; add its tokenizer\.json"):
        prepared(Loaded(**{**vars(loaded), "tokenizer": None}), file)
    loaded.tokenizer.eos_token = None
    end = loaded.model.config.eos_token_id
    assert {row.labels[-1] for row in prepared(loaded, file).train} == {end}
    assert {row.input_ids[-1] for row in prepared(loaded, file).train} == {end}
    loaded.model.config.eos_token_id = None
    with pytest.raises(ftcore.Refused, match="has no token that ends a text; set its eos_token"):
        prepared(loaded, file)
    loaded = read_by("t5")
    loaded.model.config.decoder_start_token_id = None
    with pytest.raises(ftcore.Refused, match="names no decoder_start_token_id; add it"):
        prepared(loaded, file)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("beams", [{}, {"num_beams": 4, "length_penalty": 0.5}])
def test_what_is_written_is_what_plain_transformers_writes_of_each_input_alone(
    model_type: str, beams: dict[str, Any], tmp_path: Path
) -> None:
    loaded = read_by(model_type)
    model: Any = loaded.model
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS))
    writer = writer_of(loaded, 100, None, "", False)
    rows = list(data.train)
    found = written(model, rows, writer, Search(**beams, max_new_tokens=12))
    for row, text in zip(rows, found, strict=True):
        alone = model.generate(
            input_ids=torch.tensor([row.input_ids.tolist()]),
            decoder_input_ids=torch.tensor([list(writer.opening)]),
            max_new_tokens=12, do_sample=False, **beams,
        )  # fmt: skip
        said = alone[0, len(writer.opening) :]
        assert text == loaded.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert len(set(found)) > 1


def test_a_probe_is_answered_by_what_the_decoder_says(tmp_path: Path) -> None:
    loaded = read_by("t5")
    model: Any = loaded.model
    probe = prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS)).probes[0]
    said = model.generate(input_ids=torch.tensor([probe.input_ids]), max_new_tokens=9, do_sample=False)[0]
    wanted = loaded.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert generate(model, loaded.tokenizer, probe.input_ids, loaded.stop_ids, 9) == wanted != ""


# --- the sample and the kit ------------------------------------------------------------------------------


def test_the_built_in_sample_is_announced_and_usable() -> None:
    said: list[str] = []
    loaded = read_by("t5")
    data = Seq2Seq().prepare_data(Run(Settings(), "train", "seq2seq-lm", say=said.append), loaded)
    assert len({row.place for row in data.train}) == 240
    assert len({row.place for row in data.eval}) == 40
    assert {row.text for row in data.train}.isdisjoint(row.text for row in data.eval)
    assert len(data.probes) == 3
    assert any("built-in sample is used; pass --data" in line for line in said)


@task_checks(Seq2Seq())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
