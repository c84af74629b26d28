"""A method that somebody else wrote, published and installed beside wheels of ftcore works as ours do, to the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "third_party"
NEEDED = ("methods/peft", "methods/lora", "tasks/causal", "models/qwen")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*_cache")
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
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a clean environment: ftcore, four plugins and tinylora from wheels, the rest linked from here."""
    folder = tmp_path_factory.mktemp("third party")
    wheels = built(folder)
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    for source in map(Path, site.getsitepackages()):
        for entry in source.iterdir() if source.is_dir() else ():
            if not is_ours(entry.name) and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    python = environment / "bin" / "python"
    pip(f"--python={python}", "install", "--no-index", "--no-deps", *map(str, wheels))
    return environment / "bin"


def is_ours(name: str) -> bool:
    """Whether an entry of site-packages belongs to this repository or would lead back into it."""
    return name.lower().startswith(("ftcore", "__editable__", "_ftcore")) or name.endswith((".pth", ".egg-link"))


def built(folder: Path) -> list[Path]:
    """The wheels, built from copies, so that the working tree stays clean."""
    core = folder / "sources" / "ftcore"
    shutil.copytree(ROOT / "core", core / "core", ignore=NOT_SOURCES)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, core)
    sources = [core]
    for path in (*(ROOT / "plugins" / name for name in NEEDED), PROJECT):
        sources.append(Path(shutil.copytree(path, folder / "sources" / path.name, ignore=NOT_SOURCES)))
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", *map(str, sources))
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == len(sources)
    return wheels


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def ftcore(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`ftcore("plugins")` is what the installed command prints; it must end with 0 and without a traceback."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def call(*arguments: str, typed: str = "") -> str:
        done = subprocess.run(
            [str(installed / "ftcore"), *arguments], input=typed, capture_output=True, text=True, cwd=elsewhere,
            env=alone(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr if arguments[0] == "run" else done.stdout

    return call


def alone() -> dict[str, str]:
    """The environment without what would lead back to the working tree."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


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
    installed: Path, ftcore: Callable[..., str], keys: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of a tinylora run that was killed once and finished by the same command."""
    output = tmp_path_factory.mktemp("runs") / "killed"
    flags = [part for key, value in keys.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    arguments = ["run", *flags, "--output", str(output)]
    process = subprocess.Popen(
        [str(installed / "ftcore"), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alone()
    )
    while not (output / "checkpoints" / "step-000000002").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "resuming after step" in ftcore(*arguments)
    return output


def test_its_own_tests_pass_beside_the_installed_ftcore(installed: Path, tmp_path: Path) -> None:
    shutil.copy(PROJECT / "test_tinylora.py", tmp_path)
    done = subprocess.run(
        [str(installed / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, env=alone(),
    )  # fmt: skip
    assert "3 passed" in done.stdout, done.stdout


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
    installed: Path, ftcore: Callable[..., str], trained: Path, keys: dict[str, object], tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert str(merged) in ftcore("merge", str(trained), "--output", str(merged))
    done = subprocess.run(
        [str(installed / "python"), "-c", PROGRAM, str(trained), str(merged), str(tmp_path), json.dumps(keys)],
        capture_output=True, text=True, cwd=tmp_path, env=alone(),
    )  # fmt: skip
    assert done.stdout.endswith("all is well\n"), done.stderr


def test_evaluate_repeats_the_metrics_of_the_run(ftcore: Callable[..., str], trained: Path) -> None:
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    metrics = json.loads(ftcore("evaluate", str(trained), "--json"))
    assert metrics == {name.removeprefix("eval_"): last[name] for name in last if name.startswith("eval_")}


def test_chat_answers(ftcore: Callable[..., str], trained: Path) -> None:
    said = ftcore("chat", str(trained), "--max-new-tokens", "4", typed="Where is the cat?\nAnd the dog?\n")
    assert len(said.splitlines()) >= 2
