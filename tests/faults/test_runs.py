"""A run that is killed, stopped or damaged ends bit-identically with the same command; a changed one is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
STEPS = 12
LIMIT = 60.0  # seconds after which something that should have happened counts as hanging

# An extension, found by its metadata like any other, that acts where the environment says. The command line is the
# same with and without trouble, as "run the same command again" demands.
TROUBLE = '''
"""Stops, signals or kills its own process at a chosen place of a run."""
import os, signal, time
from dataclasses import replace
from pathlib import Path
from ftcore import hookimpl, options


def reached(place):
    if os.environ.get("TROUBLE_AT") != place:
        return
    Path(os.environ["TROUBLE_MARK"]).write_text(place)
    for number in filter(None, os.environ.get("TROUBLE_SIGNALS", "").split(",")):
        os.kill(os.getpid(), int(number))
    end = time.monotonic() + float(os.environ.get("TROUBLE_SECONDS", "0"))
    while time.monotonic() < end:
        time.sleep(0.01)


@options
class Trouble:
    """Trouble."""

    @hookimpl(wrapper=True)
    def load_model(self):
        reached("load")
        return (yield)

    @hookimpl(wrapper=True)
    def prepare_data(self):
        reached("data")
        data = yield
        loss, seen = data.loss, []

        def watched(model, batch):
            if not model.training:
                seen.append(batch)
                reached(f"evaluation {len(seen)}")
            return loss(model, batch)

        return replace(data, loss=watched)

    @hookimpl(wrapper=True)
    def inject_adapter(self):
        reached("inject")
        return (yield)

    @hookimpl(wrapper=True)
    def train_step(self, step):
        reached(f"step {step}")
        loss = yield
        reached(f"after step {step}")
        return loss

    @hookimpl(wrapper=True)
    def save_adapter(self):
        reached("finish")
        return (yield)
'''


# The fork server: everything is imported once, then a child per run


def serve() -> None:
    """Answer each line on stdin: fork a run and say its pid, or wait for a pid and say its exit code."""
    import torch

    torch.set_num_threads(1)
    import accelerate  # noqa: F401
    import ftcore.pipeline  # noqa: F401
    import ftcore_causal  # noqa: F401
    import ftcore_lora  # noqa: F401
    import ftcore_qwen  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _become(asked["arguments"], asked["environment"], asked["log"])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _become(arguments: list[str], environment: dict[str, str], log: str) -> None:
    from ftcore.cli import main

    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.update(environment)
    sys.argv = ["ftcore", *arguments]
    code: object = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@dataclass
class Started:
    """A run that was begun and what it has written so far."""

    pid: int
    log: Path
    wait: Callable[[], int]

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


@dataclass
class Server:
    """The command line of ftcore in forked children of a process that has imported everything."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0
    codes: dict[int, int] = field(default_factory=dict)

    def start(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> Started:
        self.count += 1
        log = self.folder / f"{self.count}.log"
        pid = self._ask({"arguments": arguments, "environment": dict(environment or {}), "log": str(log)})
        return Started(pid, log, lambda: self.wait(pid))

    def wait(self, pid: int) -> int:
        if pid not in self.codes:
            self.codes[pid] = self._ask({"wait": pid})
        return self.codes[pid]

    def run(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The exit code and everything written to stdout and stderr; never a traceback."""
        started = self.start(arguments, environment)
        code = started.wait()
        assert "Traceback" not in started.said(), started.said()
        return code, started.said()

    def _ask(self, question: Mapping[str, object]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A directory in memory where there is one, so that no run waits for a busy disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """The environment of every run: one thread, no network, and the extension `trouble` installed."""
    site = folder / "site"
    announced = site / "ftcore_trouble-1.0.dist-info"
    announced.mkdir(parents=True)
    (site / "trouble.py").write_text(TROUBLE)
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: ftcore-trouble\nVersion: 1.0\n")
    (announced / "entry_points.txt").write_text("[ftcore.extensions]\ntrouble = trouble:Trouble\n")
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def server(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A running fork server."""
    logs = folder / "logs"
    logs.mkdir()
    errors: IO[str] = (logs / "server").open("w")
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=environment,
    )  # fmt: skip
    yield Server(process, logs)
    process.communicate()
    errors.close()
    assert process.returncode == 0


@dataclass(frozen=True)
class Asked:
    """A command line that can be given again, with a new output or with other flags."""

    flags: Mapping[str, str]

    def into(self, output: Path, *more: str, **changes: str) -> list[str]:
        """The arguments; a change is spelled as a keyword, `lora__r` for `--lora.r`."""
        spelled = {f"--{name.replace('__', '.').replace('_', '-')}": value for name, value in changes.items()}
        flags = {**self.flags, "--output": str(output), **spelled}
        return ["run", *(part for flag in flags.items() for part in flag), *more]


@pytest.fixture(scope="module")
def asked(checkpoint: Callable[..., Path], rows: Path) -> Asked:
    """A LoRA run in which everything random is on: dropout in adapter and attention, shuffled rows, held-out rows."""
    return Asked(
        {
            "--method": "lora",
            "--task": "causal",
            "--model": "qwen",
            "--with": "trouble",
            "--checkpoint": str(checkpoint("qwen2", attention_dropout=0.1)),
            "--data": str(rows),
            "--eval-share": "0.2",
            "--steps": str(STEPS),
            "--batch-size": "2",
            "--accumulate": "2",
            "--lr": "1e-3",
            "--save-every": "2",
            "--eval-every": "5",
            "--log-every": "1",
            "--lora.r": "4",
            "--lora.dropout": "0.1",
        }
    )


@dataclass(frozen=True)
class Uninterrupted:
    """What the run leaves when nobody disturbs it, and how long it takes."""

    output: Path
    results: Mapping[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def whole(server: Server, asked: Asked, folder: Path) -> Uninterrupted:
    """The run, uninterrupted; timed the second time, when nothing is read from a cold disk."""
    seconds = 0.0
    for name in ("cold", "whole"):
        begun = time.monotonic()
        code, said = server.run(asked.into(folder / name))
        seconds = time.monotonic() - begun
        assert code == 0, said
    assert results(folder / "cold") == results(folder / "whole")
    return Uninterrupted(folder / "whole", results(folder / "whole"), seconds)


@pytest.fixture(scope="module")
def half(server: Server, asked: Asked, folder: Path) -> Path:
    """The output of the run stopped in step 6, with the checkpoints of steps 4 and 5."""
    output = folder / "half"
    code, said = server.run(asked.into(output), trouble(folder / "half.mark", "step 6", signal.SIGTERM))
    assert code == 75, said
    assert newest(output) == 5
    assert finished_steps(output) == 5
    return output


@pytest.fixture
def output(folder: Path) -> Iterator[Path]:
    """A directory that is not there yet."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        yield Path(directory, "run")


@pytest.fixture
def begun(half: Path, output: Path) -> Path:
    """A copy of the half-finished run in a directory of its own."""
    return Path(shutil.copytree(half, output))


def trouble(mark: Path, place: str, *signals: int, seconds: float = 0) -> dict[str, str]:
    return {
        "TROUBLE_AT": place,
        "TROUBLE_MARK": str(mark),
        "TROUBLE_SIGNALS": ",".join(str(int(number)) for number in signals),
        "TROUBLE_SECONDS": str(seconds),
    }


def results(output: Path) -> dict[str, bytes]:
    """Everything that must be the same, bit for bit, however often the run was interrupted."""
    last = output / "checkpoints" / f"step-{STEPS:09d}"
    files = [
        output / "adapter_model.safetensors",
        output / "adapter_config.json",
        output / "metrics.jsonl",
        output / "samples.json",
        *sorted(last.glob("*.safetensors")),
    ]
    found = {str(file.relative_to(output)): file.read_bytes() for file in files}
    assert len(found) == 6
    return found


def assert_same(output: Path, whole: Uninterrupted) -> None:
    found = results(output)
    assert [name for name in found if found[name] != whole.results[name]] == []
    litter = [path.name for path in output.rglob(".*") if path.name.startswith((".tmp-", ".trash-"))]
    assert litter == []


def newest(output: Path) -> int:
    """The step of the newest checkpoint that has its manifest."""
    manifests = (output / "checkpoints").glob("step-*/MANIFEST.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in manifests), default=0)


def finished_steps(output: Path) -> int:
    """The last step in the log, in which every step is logged."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((line["step"] for line in steps if "loss" in line), default=0)


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a directory but the lock, in which a run notes who held it last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Kills


def moments(count: int, seed: int, *, quick: int) -> list[Any]:
    """In turns a share of the run's time, and a finished step and a little more; those after `quick` are slow."""
    draw = random.Random(seed)
    drawn = (
        ("step", draw.randrange(1, STEPS) + draw.uniform(0, 1)) if number % 2 else ("time", draw.uniform(0, 1))
        for number in range(count)
    )
    return [pytest.param(*one, marks=[pytest.mark.slow] * (number >= quick)) for number, one in enumerate(drawn)]


def interrupted(
    server: Server, arguments: list[str], output: Path, moment: tuple[str, float], number: int, seconds: float
) -> tuple[int, str]:
    """The run, sent a signal at that moment; one that ended too early to be hit is begun anew and hit earlier."""
    kind, value = moment
    while True:
        started = server.start(arguments)
        if kind == "time":
            until(lambda log=started.log: log.exists() and log.stat().st_size > 0)  # type: ignore[misc]
            time.sleep(value * seconds)
        else:
            step = int(value)
            until(lambda step=step: finished_steps(output) >= step or (output / "README.md").exists())  # type: ignore[misc]
            time.sleep((value % 1) * seconds / STEPS / 2)
        started.send(number)
        code = started.wait()
        if code != 0:
            return code, started.said()
        shutil.rmtree(output)
        kind, value = "time", value * 0.8 if kind == "time" else 0.5


@pytest.mark.parametrize(("kind", "value"), moments(30, seed=1, quick=8))
def test_a_killed_run_ends_identically_with_the_same_command(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, kind: str, value: float
) -> None:
    code, _ = interrupted(server, asked.into(output), output, (kind, value), signal.SIGKILL, whole.seconds)
    assert code == -signal.SIGKILL
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


@pytest.mark.parametrize(("kind", "value"), moments(10, seed=2, quick=4))
def test_a_terminated_run_exits_75_loses_no_step_and_ends_identically(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, kind: str, value: float
) -> None:
    code, said = interrupted(server, asked.into(output), output, (kind, value), signal.SIGTERM, whole.seconds)
    assert code == 75, said
    assert "run the same command again" in said
    assert newest(output) == finished_steps(output)
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


def test_a_run_killed_after_every_few_steps_still_arrives(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path
) -> None:
    for place in ("step 1", "after step 3", "step 5", "after step 8", f"after step {STEPS}", "evaluation 2", "finish"):
        code, said = server.run(asked.into(output), trouble(tmp_path / "mark", place, signal.SIGKILL))
        assert code == -signal.SIGKILL, said
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


@pytest.mark.parametrize("place", ["load", "data", "inject"])
def test_a_run_killed_before_its_first_step_can_be_started_again(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path, place: str
) -> None:
    assert server.run(asked.into(output), trouble(tmp_path / "mark", place, signal.SIGKILL))[0] == -signal.SIGKILL
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


def test_a_run_killed_while_its_first_file_was_written_can_be_started_again(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path
) -> None:
    output.mkdir()
    (output / ".tmp-ftcore.json-4711").write_text('{"ftcore"')  # what `publish` leaves when killed before its rename
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


# On the real command line


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "ftcore", *arguments]


@pytest.mark.parametrize(
    ("number", "after", "code"),
    [
        pytest.param(signal.SIGKILL, 3, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 6, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 9, 75, marks=pytest.mark.slow),
    ],
)
def test_the_command_itself_survives_what_its_forked_copies_survive(
    environment: dict[str, str], asked: Asked, whole: Uninterrupted, output: Path, number: int, after: int, code: int
) -> None:
    process = subprocess.Popen(
        command(asked.into(output)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until(lambda: finished_steps(output) >= after)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == code, said
    assert "Traceback" not in said
    again = subprocess.run(command(asked.into(output)), env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stderr
    assert_same(output, whole)


# Being asked to stop


@pytest.mark.parametrize("place", ["load", "data", "inject", "evaluation 1", "evaluation 8", "after step 4"])
def test_a_run_asked_to_stop_outside_a_step_exits_75_and_ends_identically(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path, place: str
) -> None:
    mark = tmp_path / "mark"
    code, said = server.run(asked.into(output), trouble(mark, place, signal.SIGTERM))
    assert mark.exists()
    assert code == 75, said
    assert newest(output) == finished_steps(output)
    code, said = server.run(asked.into(output))
    assert code == 0, said
    assert_same(output, whole)


def test_a_run_asked_to_stop_after_its_last_step_exits_75_or_finishes(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path
) -> None:
    code, said = server.run(asked.into(output), trouble(tmp_path / "mark", "finish", signal.SIGTERM))
    assert code in (0, 75), said
    assert server.run(asked.into(output))[0] == 0
    assert_same(output, whole)


def test_control_c_is_a_request_to_stop(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path
) -> None:
    code, said = server.run(asked.into(output), trouble(tmp_path / "mark", "step 7", signal.SIGINT))
    assert code == 75, said
    assert newest(output) == 6
    assert server.run(asked.into(output))[0] == 0
    assert_same(output, whole)


def test_a_second_signal_ends_the_run_at_once_and_loses_only_unsaved_steps(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    started = server.start(asked.into(output), trouble(mark, "step 6", seconds=LIMIT))
    until(mark.exists)
    begun = time.monotonic()
    started.send(signal.SIGTERM)
    time.sleep(0.1)
    started.send(signal.SIGTERM)
    assert started.wait() == -signal.SIGTERM
    assert time.monotonic() - begun < 5
    assert newest(output) == 4
    assert server.run(asked.into(output))[0] == 0
    assert_same(output, whole)


# Finished, absent and strange directories


def test_the_command_of_a_finished_run_says_so_and_changes_nothing(
    server: Server, asked: Asked, whole: Uninterrupted
) -> None:
    before = snapshot(whole.output)
    code, said = server.run(asked.into(whole.output))
    assert code == 0
    assert "finished already" in said
    assert snapshot(whole.output) == before


def test_resume_where_nothing_is_there_is_refused_and_leaves_no_run(server: Server, asked: Asked, output: Path) -> None:
    code, said = server.run(asked.into(output, "--resume"))
    assert code == 2
    assert "--resume" in said
    assert str(output) in said
    assert snapshot(output) == {}


def test_resume_where_a_checkpoint_is_goes_on(server: Server, asked: Asked, whole: Uninterrupted, begun: Path) -> None:
    code, said = server.run(asked.into(begun, "--resume"))
    assert code == 0, said
    assert f"resuming after step 5 of {STEPS}" in said
    assert_same(begun, whole)


def test_an_output_directory_with_other_files_is_refused_and_left_alone(
    server: Server, asked: Asked, output: Path
) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("three years")
    code, said = server.run(asked.into(output))
    assert code == 2
    assert "thesis.txt" in said
    assert "--output" in said
    assert snapshot(output) == {"thesis.txt": b"three years"}


def test_a_second_run_in_a_directory_is_refused_at_once_and_told_who_is_there(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    first = server.start(asked.into(output), trouble(mark, "step 6", seconds=LIMIT))
    until(mark.exists)
    begun = time.monotonic()
    code, said = server.run(asked.into(output))
    assert code == 2
    assert f"pid {first.pid} " in said
    assert str(output) in said
    assert time.monotonic() - begun < 3
    first.send(signal.SIGKILL)
    first.wait()
    assert server.run(asked.into(output))[0] == 0
    assert_same(output, whole)


# Damage


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "adapter.safetensors": flip,
    "optimizer.safetensors": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "state.json": lambda file: file.write_text('{"step": 4}'),
    "MANIFEST.json": Path.unlink,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_and_the_end_is_the_same(
    server: Server, asked: Asked, whole: Uninterrupted, begun: Path, name: str
) -> None:
    DAMAGE[name](begun / "checkpoints" / "step-000000005" / name)
    code, said = server.run(asked.into(begun))
    assert code == 0, said
    assert name in said
    assert "step-000000005" in said
    assert f"resuming after step 4 of {STEPS}" in said
    assert (begun / "checkpoints" / "quarantine" / "step-000000005").is_dir()
    assert_same(begun, whole)


def test_when_every_checkpoint_is_damaged_the_run_begins_anew_and_the_end_is_the_same(
    server: Server, asked: Asked, whole: Uninterrupted, begun: Path
) -> None:
    for step in (4, 5):
        flip(begun / "checkpoints" / f"step-{step:09d}" / "optimizer.safetensors")
    code, said = server.run(asked.into(begun))
    assert code == 0, said
    assert "resuming" not in said
    assert_same(begun, whole)


# Drift

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "learning rate": ({"lr": "2e-3"}, "lr"),
    "schedule": ({"schedule": "linear"}, "schedule"),
    "warm-up": ({"warmup_steps": "4"}, "warmup_steps"),
    "seed": ({"seed": "43"}, "seed"),
    "batch size": ({"batch_size": "4"}, "batch_size"),
    "accumulation": ({"accumulate": "1"}, "accumulate"),
    "weight decay": ({"weight_decay": "0.1"}, "weight_decay"),
    "clipping": ({"max_grad_norm": "0.5"}, "max_grad_norm"),
    "longest row": ({"max_length": "64"}, "max_length"),
    "held-out share": ({"eval_share": "0.3"}, "eval_share"),
    "packing": ({"packing": "off"}, "packing"),
    "precision": ({"precision": "bf16"}, "precision"),
    "rank": ({"lora__r": "2"}, "lora.r"),
    "alpha": ({"lora__alpha": "32"}, "lora.alpha"),
    "dropout": ({"lora__dropout": "0.2"}, "lora.dropout"),
    "parts": ({"lora__parts": "attention"}, "lora.parts"),
    "method": ({"method": "full", "lora__r": "", "lora__dropout": ""}, "method"),
}


def without_empty(arguments: list[str]) -> list[str]:
    """The arguments without the flags that were changed to nothing."""
    pairs = list(zip(arguments[1::2], arguments[2::2], strict=True))
    return ["run", *(part for pair in pairs if pair[1] for part in pair)]


@pytest.mark.parametrize("what", REFUSED)
def test_another_option_in_the_directory_of_a_run_is_refused_by_name(
    server: Server, asked: Asked, half: Path, what: str
) -> None:
    changes, named = REFUSED[what]
    before = snapshot(half)
    code, said = server.run(without_empty(asked.into(half, **changes)))
    assert code == 2, said
    assert f"{named} was" in said
    assert "--output" in said
    assert snapshot(half) == before


def edited(rows: list[str]) -> list[str]:
    return [rows[0].replace("cat", "cow"), *rows[1:]]


DATA: dict[str, Callable[[list[str]], list[str]]] = {
    "one row edited": edited,
    "two rows swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
    "a row less": lambda rows: rows[:-1],
    "a row more": lambda rows: [*rows, rows[0]],
}


@pytest.mark.parametrize("what", DATA)
def test_changed_rows_behind_the_same_path_are_refused(
    server: Server, asked: Asked, rows: Path, output: Path, tmp_path: Path, what: str
) -> None:
    data = tmp_path / "rows.jsonl"
    shutil.copy(rows, data)
    arguments = asked.into(output, data=str(data))
    assert server.run(arguments, trouble(tmp_path / "mark", "step 1", signal.SIGTERM))[0] == 75
    data.write_text("".join(DATA[what](data.read_text().splitlines(keepends=True))))
    before = snapshot(output)
    code, said = server.run(arguments)
    assert code == 2, said
    assert "data was" in said
    assert snapshot(output) == before
    assert server.run([*arguments, "--allow-drift"])[0] == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_changed_base_behind_the_same_path_is_refused(
    server: Server, asked: Asked, output: Path, tmp_path: Path, name: str
) -> None:
    base = Path(shutil.copytree(asked.flags["--checkpoint"], tmp_path / "base"))
    arguments = asked.into(output, checkpoint=str(base))
    assert server.run(arguments, trouble(tmp_path / "mark", "step 1", signal.SIGTERM))[0] == 75
    if name == "model.safetensors":
        flip(base / name)
    else:
        (base / name).write_text((base / name).read_text() + "\n")
    code, said = server.run(arguments)
    assert code == 2, said
    assert "base was" in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"log_every": "2"}, "log_every"), ({"save_every": "3"}, "save_every"), ({"keep": "4"}, "keep")],
    ids=["log", "save", "keep"],
)
def test_what_changes_no_weight_may_change_and_is_noted(
    server: Server, asked: Asked, whole: Uninterrupted, begun: Path, changes: dict[str, str], named: str
) -> None:
    code, said = server.run(asked.into(begun, **changes))
    assert code == 0, said
    assert f"note: {named} was" in said
    adapter = "adapter_model.safetensors"
    assert results(begun)[adapter] == whole.results[adapter]


def test_a_base_that_was_only_moved_is_the_same_base(
    server: Server, asked: Asked, whole: Uninterrupted, begun: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(asked.flags["--checkpoint"], tmp_path / "moved"))
    code, said = server.run(asked.into(begun, checkpoint=str(moved)))
    assert code == 0, said
    adapter = "adapter_model.safetensors"
    assert results(begun)[adapter] == whole.results[adapter]


def test_allow_drift_goes_on_with_the_new_options_and_notes_them(
    server: Server, asked: Asked, whole: Uninterrupted, begun: Path
) -> None:
    code, said = server.run(asked.into(begun, "--allow-drift", lr="2e-3"))
    assert code == 0, said
    assert "note: lr was 0.001 and is now 0.002" in said
    assert f"resuming after step 5 of {STEPS}" in said
    assert json.loads((begun / "ftcore.json").read_text())["run"]["lr"] == 0.002
    adapter = "adapter_model.safetensors"
    assert results(begun)[adapter] != whole.results[adapter]


def test_a_finished_run_asked_for_more_steps_does_not_pretend_to_have_done_them(
    server: Server, asked: Asked, whole: Uninterrupted, output: Path
) -> None:
    shutil.copytree(whole.output, output)
    before = snapshot(output)
    code, said = server.run(asked.into(output, steps=str(STEPS + 4)))
    if code == 0:
        assert finished_steps(output) == STEPS + 4
    else:
        assert code == 2
        assert "steps" in said
        assert snapshot(output) == before


if __name__ == "__main__":
    serve()
