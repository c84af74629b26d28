"""A method that somebody else wrote, published and installed beside wheels of ftcore works as ours do, to the end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "third_party_method"
NEEDED = [ROOT / "plugins" / name for name in ("methods/peft", "methods/lora", "tasks/causal", "models/qwen")]
STEPS = 16

# One process, so that torch is imported once: the run again without a kill, the merged model beside the adapted one,
# and the method joined with another.
PROGRAM = """
import json
import sys
from pathlib import Path
import torch
import ftcore
from transformers import AutoModelForCausalLM

killed, merged, here, keys = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
tokens = torch.arange(3, 60)[None]


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=tokens).logits


adapted = logits(ftcore.attach(killed).model)
plain = AutoModelForCausalLM.from_pretrained(merged)
difference = (adapted - logits(plain)).abs().max().item()
assert difference <= 1e-4, difference
assert (adapted - logits(ftcore.load("qwen", checkpoint=keys["checkpoint"]).model)).abs().max() > 1e-2

outcome = ftcore.run(**keys, output=str(here / "whole"))
name = "adapter_model.safetensors"
assert (killed / name).read_bytes() == (outcome.output / name).read_bytes()

parts = {"tinylora": {"parts": ["mlp"]}, "lora": {"parts": ["attention"]}}
for method in ("tinylora+lora", "lora+tinylora"):
    joined = ftcore.run(**{**keys, "method": method, **parts}, output=str(here / method))
    folder = ftcore.merge(joined.output, output=here / f"merged {method}")
    answers = logits(ftcore.attach(joined.output).model)
    assert (answers - logits(AutoModelForCausalLM.from_pretrained(folder))).abs().max() <= 1e-4, method

for module in ("ftcore", "ftcore_lora", "ftcore_causal", "ftcore_qwen", "ftcore_tinylora"):
    assert Path(sys.modules[module].__file__).is_relative_to(sys.prefix), sys.modules[module].__file__
print("all is well")
"""


@pytest.fixture(scope="module")
def installed(environment: Callable[..., Any]) -> Any:
    """A clean environment: ftcore, four plugins and tinylora from wheels."""
    return environment(*NEEDED, PROJECT)


@pytest.fixture(scope="module")
def ftcore(installed: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`ftcore("plugins")` is what the installed command prints."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def call(*arguments: str, typed: str = "") -> str:
        done = installed.call("ftcore", *arguments, folder=elsewhere, typed=typed)
        return str(done.stdout + done.stderr if arguments[0] == "run" else done.stdout)

    return call


@pytest.fixture(scope="module")
def keys(checkpoint: Callable[..., Path], rows: Path) -> dict[str, object]:
    return {
        "method": "tinylora",
        "task": "causal",
        "model": "qwen",
        "checkpoint": str(checkpoint("qwen2")),
        "data": str(rows),
        "eval_share": 0.1,
        "steps": STEPS,
        "batch_size": 4,
        "lr": 0.01,
        "save_every": 2,
        "log_every": 1,
    }


@pytest.fixture(scope="module")
def trained(
    installed: Any, ftcore: Callable[..., str], keys: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of a tinylora run that was killed once and finished by the same command."""
    output = tmp_path_factory.mktemp("runs") / "killed"
    flags = [part for key, value in keys.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    arguments = ["run", *flags, "--output", str(output)]
    command, nowhere = str(installed.scripts / "ftcore"), subprocess.DEVNULL
    process = subprocess.Popen([command, *arguments], stdout=nowhere, stderr=nowhere, env=installed.variables)
    while not (output / "checkpoints" / "step-000000002").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "resuming after step" in ftcore(*arguments)
    return output


def test_its_own_tests_and_the_kit_pass_beside_the_installed_ftcore(installed: Any, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "test_contract.py", "test_tinylora.py"):
        shutil.copy(PROJECT / name, tmp_path)
    said = installed.call("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=tmp_path).stdout
    passed = re.match(r"(\d+) passed(, \d+ warnings?)? in ", said.splitlines()[-1])
    assert passed, said
    assert int(passed[1]) > 40


def test_it_is_listed_with_its_distribution(ftcore: Callable[..., str]) -> None:
    listed = {plugin["name"]: plugin for plugin in json.loads(ftcore("plugins", "--json"))}
    assert listed.keys() == {"tinylora", "lora", "peft", "causal", "qwen"}
    assert listed["tinylora"] == {
        "kind": "method",
        "name": "tinylora",
        "distribution": "ftcore-tinylora",
        "version": "0.3.0",
        "error": None,
    }


def test_its_options_are_flags_with_help(ftcore: Callable[..., str]) -> None:
    said = ftcore("run", "--method", "tinylora", "--help")
    assert "--tinylora.rank INT" in said
    assert "Rank of the update." in said
    assert "--lora." not in said
    assert "--tinylora.rank" not in ftcore("run", "--help")


def test_killed_and_resumed_it_equals_an_undisturbed_run_merged_it_answers_the_same_and_it_combines(
    installed: Any, ftcore: Callable[..., str], trained: Path, keys: dict[str, object], tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert str(merged) in ftcore("merge", str(trained), "--output", str(merged))
    arguments = (str(trained), str(merged), str(tmp_path), json.dumps(keys))
    assert installed.call("python", "-c", PROGRAM, *arguments, folder=tmp_path).stdout.endswith("all is well\n")


def test_evaluate_repeats_the_metrics_of_the_run(ftcore: Callable[..., str], trained: Path) -> None:
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    metrics = json.loads(ftcore("evaluate", str(trained), "--json"))
    assert metrics == {name.removeprefix("eval_"): last[name] for name in last if name.startswith("eval_")}


def test_chat_answers(ftcore: Callable[..., str], trained: Path) -> None:
    said = ftcore("chat", str(trained), "--max-new-tokens", "4", typed="Where is the cat?\nAnd the dog?\n")
    assert len(said.splitlines()) >= 2
