"""The scripts that made the starters make one of every family: a skeleton, a run, a checkpoint that loads, a figure."""

from __future__ import annotations

import importlib
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
    """What a command prints when it does what it is asked to."""
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


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
