"""Two processes train as one does that accumulates twice as many micro-batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from safetensors.torch import load_file


def together(keys: dict[str, Any], tmp_path: Path) -> str:
    """What two processes of torch's launcher print for the run of `keys`."""
    (tmp_path / "run.json").write_text(json.dumps(keys), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ftcore", "run", "run.json"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rows_held", [0.0, 0.2], ids=["none held out", "three batches held out for two processes"])
def test_two_processes_train_as_one_that_accumulates(
    rows_held: float, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {
        "method": "lora", "task": "causal", "model": "qwen", "checkpoint": str(checkpoint("qwen2")),
        "data": [str(rows)], "eval_share": rows_held, "batch_size": 3, "lr": 1e-3, "epochs": 1, "log_every": 1,
    }  # fmt: skip
    said = together({**keys, "accumulate": 1, "output": "two"}, tmp_path)
    assert said.count("finished after") == 1
    ftcore.run(**keys, accumulate=2, output=tmp_path / "one")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    logs = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name in ("one", "two")]
    for first, second in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert first.get("loss", 0.0) == pytest.approx(second.get("loss", 0.0), rel=1e-5)
        assert first.get("eval_loss", 0.0) == pytest.approx(second.get("eval_loss", 0.0), rel=1e-5)
