"""Runs in one process do not touch each other, nor anything outside their own directories."""

from __future__ import annotations

import copy
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import numpy
import pytest
import torch


@pytest.fixture(scope="module")
def asked(checkpoint: Callable[..., Path], rows: Path) -> dict[str, dict[str, Any]]:
    """Two runs that differ in seed, rank, dropout and precision, on a base that drops out attention too."""
    shared: dict[str, Any] = {
        "method": "lora",
        "task": "causal",
        "model": "qwen",
        "checkpoint": str(checkpoint("qwen2", attention_dropout=0.1)),
        "data": str(rows),
        "eval_share": 0.2,
        "steps": 12,
        "batch_size": 2,
        "accumulate": 2,
        "lr": 1e-3,
        "save_every": 4,
        "log_every": 1,
    }
    return {
        "first": {**shared, "seed": 1, "lora": {"r": 2, "dropout": 0.1}},
        "second": {**shared, "seed": 2, "precision": "bf16", "lora": {"r": 4, "dropout": 0.3, "parts": ["mlp"]}},
    }


@pytest.fixture(scope="module")
def alone(asked: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output of each run with nothing beside it."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: ftcore.run(**keys, output=str(folder / name)).output for name, keys in asked.items()}


def results(output: Path) -> dict[str, bytes]:
    """What a run makes, bit for bit: adapter, optimizer, metrics and answers."""
    names = ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "samples.json"]
    names += [f"checkpoints/step-000000012/{stem}.safetensors" for stem in ("adapter", "optimizer")]
    return {name: (output / name).read_bytes() for name in names}


def tree(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*"))


def test_two_runs_in_two_threads_are_each_what_they_are_alone(
    asked: dict[str, dict[str, Any]], alone: dict[str, Path], tmp_path: Path
) -> None:
    start, faults = threading.Barrier(2), list[BaseException]()

    def train(name: str) -> None:
        try:
            start.wait()
            ftcore.run(**asked[name], output=str(tmp_path / name))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=train, args=[name]) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for name in asked:
        assert results(tmp_path / name) == results(alone[name])
        assert tree(tmp_path / name) == tree(alone[name])


def test_the_two_runs_really_differ(alone: dict[str, Path]) -> None:
    first, second = (results(alone[name]) for name in ("first", "second"))
    assert [name for name in first if first[name] == second[name]] == []


def test_a_run_leaves_the_process_as_it_was(
    asked: dict[str, dict[str, Any]], alone: dict[str, Path], tmp_path: Path
) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(numpy.random.get_state()),
            dict(os.environ),
            os.getcwd(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            threading.active_count(),
        )

    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)
    before = state()
    ftcore.run(**asked["second"], output=str(tmp_path / "again"))
    assert state() == before
    assert results(tmp_path / "again") == results(alone["second"])


def test_what_was_drawn_before_a_run_does_not_change_it(
    asked: dict[str, dict[str, Any]], alone: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(77)
    torch.rand(3)
    random.seed(77)
    numpy.random.seed(77)
    output = ftcore.run(**asked["first"], output=str(tmp_path / "again")).output
    assert results(output) == results(alone["first"])


def test_an_injection_beside_a_run_changes_neither(
    asked: dict[str, dict[str, Any]], alone: dict[str, Path], tmp_path: Path
) -> None:
    """A thread that injects adapters, which draws random numbers too, while another trains."""
    over = threading.Event()
    answers = list[torch.Tensor]()
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))  # made here: torch draws its values from the process's generator

    def inject() -> None:
        while not over.is_set():
            model = ftcore.inject(copy.deepcopy(base), method="lora", r=2, target_modules=["0"])
            answers.append(next(p for n, p in model.named_parameters() if "lora_A" in n).detach())

    beside = threading.Thread(target=inject)
    beside.start()
    try:
        output = ftcore.run(**asked["first"], output=str(tmp_path / "again")).output
    finally:
        over.set()
        beside.join()
    assert results(output) == results(alone["first"])
    assert len(answers) > 1
    assert all(torch.equal(answer, answers[0]) for answer in answers)
