"""The scripts that made the starters make one of every family: a skeleton, a run, a checkpoint that loads, a figure."""

from __future__ import annotations

import importlib
import random
import re
import shlex
from pathlib import Path

import click
import ftcore
import pytest
import yaml
from click.testing import CliRunner
from ftcore.cli import cli

SCRIPTS = Path(__file__).parents[2] / "examples" / "starter"
STORIES = "<|endoftext|>".join(f"Tom had {count} cats. “小猫在门口看雨,” he said." for count in range(20))


def called(command: click.Command, *words: object) -> str:
    """What a command says on standard output when it does what it is asked to."""
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("family", ["bloom", "chatglm", "internlm", "qwen"])
def test_a_starter_is_made_of_text_alone(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    skeletons, packing, measuring = (importlib.import_module(name) for name in ("make_skeleton", "pack", "measure"))
    stories, recipe = tmp_path / "stories.txt", yaml.safe_load((SCRIPTS / "starter.yaml").read_text(encoding="utf-8"))
    stories.write_text(STORIES, encoding="utf-8")
    small = {
        "data": [str(stories)],
        "eval_data": [str(stories)],
        "steps": 2,
        "warmup_steps": 1,
        "output": "run",
        "pretrain": {},
    }
    (tmp_path / "starter.yaml").write_text(yaml.safe_dump(recipe | small), encoding="utf-8")
    advice = called(skeletons.main, "skeleton", "--family", family, "--text", stories, "--vocab-size", 640)
    called(cli, *shlex.split(advice)[1:])
    ftcore.merge("run", output="merged")
    called(packing.main, "merged", "packed")
    assert ftcore.load(family, checkpoint="packed").vocab_size <= 640
    assert "bits per character on 20 stories" in called(measuring.main, "packed", stories, "--family", family)


def test_an_encoders_starter_is_made_of_text_and_another_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    names = ("make_skeleton", "first_weights", "both_ways", "pack", "measure")
    skeletons, beginning, turning, packing, measuring = (importlib.import_module(name) for name in names)
    stories = tmp_path / "stories.txt"
    stories.write_text(STORIES, encoding="utf-8")
    small = {"data": [str(stories)], "eval_data": [str(stories)], "steps": 2, "warmup_steps": 1}
    for file in ("encoder-first.yaml", "encoder.yaml"):
        recipe = yaml.safe_load((SCRIPTS / file).read_text(encoding="utf-8"))
        (tmp_path / file).write_text(yaml.safe_dump(recipe | small), encoding="utf-8")
    advice = called(skeletons.main, "skeleton", "--family", "bert", "--text", stories, "--vocab-size", 300)
    _, first, merge, _, second = (shlex.split(line)[1:] for line in advice.splitlines())
    called(beginning.main, "skeleton", ftcore.load("qwen").checkpoint, "--text", stories)
    called(cli, *first)
    called(cli, *merge)
    called(turning.main, "read", "encoder")
    called(cli, *second, "--output", "run")
    ftcore.merge("run", output="merged")
    called(packing.main, "merged", "packed")
    assert ftcore.load("bert", "mlm", "packed").vocab_size <= 300
    told = called(measuring.main, "packed", stories, "--family", "bert")
    assert re.fullmatch(r"[\d.]+ % of \d+ hidden tokens right, pseudo-perplexity [\d.]+, on 20 stories\n", told)


def test_a_starter_that_reads_and_writes_is_made_of_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    names = ("make_skeleton", "make_pairs", "train_pairs", "pack")
    skeletons, pairing, training, packing = map(importlib.import_module, names)
    Path("stories.txt").write_text(STORIES, encoding="utf-8")
    recipe = yaml.safe_load((SCRIPTS / "starter-seq2seq.yaml").read_text(encoding="utf-8"))
    small = {"data": ["pairs.jsonl"], "eval_data": ["pairs.jsonl"], "steps": 2, "warmup_steps": 1}
    Path("starter-seq2seq.yaml").write_text(yaml.safe_dump(recipe | small), encoding="utf-8")
    called(pairing.main, "pairs.jsonl", "--text", "stories.txt", "--rows", 60)
    advice = called(skeletons.main, "skeleton", "--family", "t5", "--text", "stories.txt", "--vocab-size", 640)
    called(training.main, *shlex.split(advice)[2:])
    called(packing.main, "merged", "packed")
    loaded = ftcore.load("t5", "seq2seq", "packed")
    assert loaded.tokenizer is not None
    assert loaded.vocab_size <= 640
    assert loaded.tokenizer("He <extra_id_0> cats.")["input_ids"][-1] == loaded.tokenizer.eos_token_id == 1


def test_rows_of_a_starter_hold_the_words_of_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    pairing = importlib.import_module("make_pairs")
    draw = random.Random(0)
    words = STORIES.replace("<|endoftext|>", " ").split()[:40]
    for _ in range(50):
        read, asked = pairing.spans(words, draw)
        for mark, left_out in re.findall(r"(<extra_id_\d+>) (.*?) (?=<extra_id_)", f"{asked} <extra_id_"):
            read = read.replace(mark, left_out, 1)
        assert read == " ".join(words)
        read, asked = pairing.continuation(words, draw)
        assert f"{read} {asked}" == f"continue: {' '.join(words)}"
        read, asked = pairing.mending(words, draw)
        assert set(read.partition(": ")[2].replace(" |", "").split()) <= set(words)
        assert asked == " ".join(words)
