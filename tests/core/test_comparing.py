"""A comparison does the same job by each method, measures what it says, and leaves none out silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ftcore
import pytest
from click.testing import CliRunner
from ftcore.cli import cli


@pytest.fixture(scope="module")
def job(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small job with held-out rows."""
    rows = tmp_path_factory.mktemp("job") / "rows.jsonl"
    pairs = [{"instruction": f"Where is cat {i}?", "output": f"By door {i % 5}."} for i in range(40)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    keys = {"task": "causal", "model": "qwen", "checkpoint": str(checkpoint("qwen2")), "data": str(rows)}
    return {**keys, "eval_share": 0.2, "steps": 4, "lr": 1e-2, "max_length": 64}


def test_each_method_is_measured_as_its_own_run_says(job: dict[str, Any], tmp_path: Path) -> None:
    entries = ftcore.compare(["full", "lora"], output=tmp_path, **job, lora={"r": 2})
    assert sorted(entry.method for entry in entries) == ["full", "lora"]
    assert [entry.loss for entry in entries] == sorted(entry.loss for entry in entries)
    for entry in entries:
        own = tmp_path / entry.method
        lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
        held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
        assert (entry.before["loss"], entry.after["loss"]) == (held_out[0], held_out[-1])
        planned = ftcore.plan(method=entry.method, **job, **({"lora": {"r": 2}} if entry.method == "lora" else {}))
        assert (entry.trainable_parameters, entry.total_parameters) == (
            planned.trainable_parameters, planned.total_parameters,
        )  # fmt: skip
        assert entry.adapter_bytes == (own / "adapter_model.safetensors").stat().st_size
        assert entry.tokens_per_second > 0
        assert entry.peak_memory_bytes > 0
    assert entries[0].before == entries[1].before


def test_the_command_prints_the_table_and_leaves_it_beside_a_plot(job: dict[str, Any], tmp_path: Path) -> None:
    flags = [part for key, value in job.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    command = ["compare", "--methods", "lora,nope+lora", *flags, "--lora.r", "2", "--output", str(tmp_path)]
    assert CliRunner().invoke(cli, command).exit_code != 0  # a method that is not installed is no method to compare
    command[2] = "lora,full+lora"
    said = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert said.exit_code == 0
    assert "| lora |" in said.stdout
    assert "it trains every weight already" in said.stdout.partition("- full+lora: ")[2]
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8").strip() in said.stdout
    picture = ElementTree.fromstring((tmp_path / "comparison.svg").read_text(encoding="utf-8"))
    names = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text") if text.get("text-anchor") == "end"]
    assert names == ["lora"]
    entries = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert [(entry["method"], bool(entry["refused"])) for entry in entries] == [("lora", False), ("full+lora", True)]


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (["lora", "lora"], {}, "name each once"),
        ([], {}, "name each once"),
        (["lora"], {"eval_share": 0.0}, "nothing is held out to compare by"),
        (["lora"], {"lr": -1.0}, "option 'lr' is -1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    methods: list[str], changes: dict[str, Any], message: str, job: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.compare(methods, output=tmp_path, **{**job, **changes})
