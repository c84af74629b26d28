"""The command line as a new user meets it: every slip is one sentence and exit code 2, every answer is true."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ftcore import cli

NAMED = "--method lora --task causal --model qwen"
YAML = "method: lora\ntask: causal\nmodel: qwen\n"


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """What a refused command said; only a report of many bad rows takes more than one line."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        begins = [number for number, line in enumerate(lines) if line.startswith("ftcore: ")]
        assert len(begins) == 1, self.err
        return "\n".join(lines[begins[0] :]).removeprefix("ftcore: ")


Call = Callable[..., Said]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """`call("run --method lora")` is what `ftcore run --method lora` does in an empty directory of its own."""
    monkeypatch.chdir(tmp_path)

    def told(line: str, *more: str, typed: str = "") -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["ftcore", *shlex.split(line), *more])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Said(int(ended.value.code or 0), *capfd.readouterr())

    with mock.patch.dict(os.environ):
        yield told


@pytest.fixture(scope="module")
def base(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen2")


@pytest.fixture(scope="module")
def keys(base: Path, rows: Path) -> dict[str, Any]:
    return {
        "method": "lora",
        "task": "causal",
        "model": "qwen",
        "checkpoint": str(base),
        "data": str(rows),
        "eval_share": 0.2,
        "steps": 3,
        "batch_size": 4,
        "lora": {"r": 2, "dropout": 0.1},
    }


@pytest.fixture(scope="module")
def flags(keys: Mapping[str, object]) -> str:
    """The run as flags, without its output."""
    flat = {key: value for key, value in keys.items() if key != "lora"}
    spelled = " ".join(f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in flat.items())
    return f"run {spelled} --lora.r 2 --lora.dropout 0.1"


@pytest.fixture(scope="module")
def finished(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run."""
    import ftcore

    return ftcore.run(**keys, output=str(tmp_path_factory.mktemp("finished") / "run")).output


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """The output of a run that did not come to its end: the model card, the last file, is not there."""
    copy = Path(shutil.copytree(finished, tmp_path / "unfinished"))
    (copy / "README.md").unlink()
    return copy


def last_metrics(output: Path) -> dict[str, float]:
    """The last evaluation of a run, under the names that `evaluate` gives."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval_loss" in line][-1]
    return {name.removeprefix("eval_"): value for name, value in last.items() if name != "step"}


EXTENSION = '''
from ftcore import hookimpl, options

@options
class It:
    """An extension that can be heard."""

    @hookimpl(wrapper=True)
    def load_model(self):
        print("{name} acts")
        return (yield)
'''


# Slips that show before anything is loaded

SLIPS = {
    "misspelt method": ("run --method lroa --task causal --model qwen", ["'lroa'", "did you mean 'lora'"]),
    "misspelt task": ("run --method lora --task casual --model qwen", ["'casual'", "did you mean 'causal'"]),
    "misspelt model": ("run --method lora --task causal --model qwem", ["'qwem'", "did you mean 'qwen'"]),
    "method nobody knows": ("run --method zzz --task causal --model qwen", ["'zzz'", "pip install ftcore-zzz"]),
    "second of two methods": ("run --method lora+zzz --task causal --model qwen", ["'zzz'", "pip install"]),
    "half a pair": ("run --method lora+ --task causal --model qwen", ["'lora+'"]),
    "extension nobody knows": (f"run {NAMED} --with wandbb", ["'wandbb'", "pip install"]),
    "misspelt flag": (f"run {NAMED} --stepps 3", ["'--stepps'", "'--steps'"]),
    "misspelt plugin flag": (f"run {NAMED} --lora.rr 3", ["'--lora.rr'", "'--lora.r'"]),
    "flag of a plugin not named": (f"run {NAMED} --full.r 3", ["--full.r"]),
    "no method": ("run --task causal --model qwen", ["no method", "--method", "ftcore plugins"]),
    "no task": ("run --method lora --model qwen", ["no task", "--task", "ftcore plugins"]),
    "no model": ("run --method lora --task causal", ["no model", "--model", "ftcore plugins"]),
    "nothing": ("run", ["--method"]),
    "rank is text": (f"run {NAMED} --lora.r x", ["method 'lora'", "'r'", "'x'", "integer"]),
    "rank is 0": (f"run {NAMED} --lora.r 0", ["method 'lora'", "'r'", "'0'", "greater than or equal to 1"]),
    "dropout is 1": (f"run {NAMED} --lora.dropout 1", ["method 'lora'", "'dropout'", "less than 1"]),
    "switch is neither": (f"run {NAMED} --lora.use_dora maybe", ["'use_dora'", "'maybe'", "boolean"]),
    "steps are 0": (f"run {NAMED} --steps 0", ["'steps'", "'0'", "greater than or equal to 1"]),
    "steps are text": (f"run {NAMED} --steps many", ["'steps'", "'many'", "integer"]),
    "batch size below 0": (f"run {NAMED} --batch-size -1", ["batch_size", "-1"]),
    "seed below 0": (f"run {NAMED} --seed -1", ["seed", "-1"]),
    "learning rate is 0": (f"run {NAMED} --lr 0", ["'lr'", "'0'", "greater than 0"]),
    "learning rate is text": (f"run {NAMED} --lr fast", ["'lr'", "'fast'", "number"]),
    "unknown precision": (f"run {NAMED} --precision fp8", ["'precision'", "'fp8'", "'bf16'"]),
    "share of everything": (f"run {NAMED} --eval-share 1", ["'eval_share'", "less than 1"]),
    "held out twice": (f"run {NAMED} --eval-data a --eval-share 0.1", ["--eval-data", "--eval-share", "one of them"]),
    "flag without value at the end": (f"run {NAMED} --steps", ["--steps", "argument"]),
    "flag without value in between": (f"run {NAMED} --steps --lr 1e-3", []),  # never taken for no --steps at all
    "name without value": ("run --task causal --model qwen --method", ["--method", "argument"]),
    "one method twice": ("run --method lora+lora --task causal --model qwen", ["'lora'", "twice", "once"]),
    "full beside another": ("run --method lora+full --task causal --model qwen", ["'full'", "'lora'", "name one"]),
    "two tasks": ("run --method lora --task causal+pretrain --model qwen", ["2 tasks", "one task"]),
    "missing run file": ("run absent.yaml", ["no run file 'absent.yaml'"]),
    "misspelt run file": ("run lora.yml", ["lora.yml", "did you mean 'lora.yaml'"]),
    "misspelt config": ("run --config lora.yml", ["lora.yml", "did you mean 'lora.yaml'"]),
    "two run files": ("run lora.yaml more.yaml", ["more.yaml"]),
    "run file and config": ("run lora.yaml --config lora.yaml", ["--config", "lora.yaml"]),
    "misspelt command": ("rnu", ["'rnu'", "'run'"]),
    "misspelt subcommand": ("plugins shwo", ["'shwo'", "'show'"]),
    "unknown plugin to show": ("plugins show lroa", ["'lroa'", "did you mean 'lora'"]),
    "merge without output": ("merge somewhere", ["--output"]),
    "merge of nothing": ("merge absent --output out", ["'absent'", "ftcore.json", "--output directory"]),
    "evaluate nothing": ("evaluate absent", ["'absent'", "ftcore.json", "--output directory"]),
    "chat with nothing": ("chat absent", ["'absent'", "neither a run nor a checkpoint"]),
    "merge of an empty directory": ("merge empty --output out", ["'empty'", "ftcore.json"]),
    "evaluate an empty directory": ("evaluate empty", ["'empty'", "ftcore.json"]),
    "chat with an empty directory": ("chat empty", ["'empty'", "neither a run nor a checkpoint"]),
    "chat with a file": ("chat lora.yaml", ["'lora.yaml'", "neither a run nor a checkpoint"]),
    "temperature is text": ("chat empty --temperature hot", ["--temperature", "'hot'"]),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused_in_one_sentence_with_culprit_and_remedy(call: Call, tmp_path: Path, slip: str) -> None:
    (tmp_path / "lora.yaml").write_text(YAML)
    (tmp_path / "empty").mkdir()
    line, parts = SLIPS[slip]
    refusal = call(line).refusal
    assert [part for part in parts if part not in refusal] == [], refusal
    assert "\n" not in refusal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "lora.yaml"]


FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "misspelt key": (f"{YAML}max_lenght: 3", ["'max_lenght'", "did you mean 'max_length'"]),
    "misspelt plugin": (f"{YAML}lroa: {{r: 4}}", ["'lroa'", "did you mean 'lora'"]),
    "plugin not named": (f"{YAML}peft: {{type: HRA}}", ["'peft'"]),
    "unknown plugin option": (f"{YAML}lora: {{alhpa: 4}}", ["'alhpa'", "method 'lora'", "'alpha'"]),
    "plugin option out of range": (f"{YAML}lora: {{r: 0}}", ["'r'", "method 'lora'", "greater than or equal to 1"]),
    "plugin option of another type": (f"{YAML}lora: {{r: [1]}}", ["'r'", "[1]", "integer"]),
    "plugin options as text": (f"{YAML}lora: r=4", ["lora"]),
    "value of another type": (f"{YAML}steps: many", ["'steps'", "'many'", "integer"]),
    "data as a mapping": (f"{YAML}data: {{train: a.jsonl}}", ["data"]),
    "data as numbers": (f"{YAML}data: [1]", ["'data'", "string"]),
    "method as a number": ("method: 5\ntask: causal\nmodel: qwen", ["method", "5"]),
    "method as a mapping": ("method: {lora: {r: 4}}\ntask: causal\nmodel: qwen", ["method"]),
    "no task": ("method: lora\nmodel: qwen", ["--task"]),
    "tabs": ("method: lora\n\ttask: causal", ["run.yaml:2", "mend"]),
    "a list": ("- lora", ["run.yaml", "list", "method: NAME"]),
    "nothing": ("", ["run.yaml", "method: NAME"]),
    "no text": (b"\xff\xfe\x00\x80", ["run.yaml"]),
    "the record of something else": ('{"ftcore": "1"}', ["run.yaml"]),
}


@pytest.mark.parametrize("slip", FILES)
def test_a_wrong_run_file_is_refused_in_one_sentence_with_culprit_and_remedy(
    call: Call, tmp_path: Path, slip: str
) -> None:
    content, parts = FILES[slip]
    (tmp_path / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal = call("run run.yaml").refusal
    assert [part for part in parts if part not in refusal] == [], refusal
    assert "\n" not in refusal
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


# Slips that show when model or data are looked at

DATA: dict[str, tuple[str | bytes, list[str]]] = {
    "empty.jsonl": ("", ["empty.jsonl", "is empty", "rows"]),
    "blank.jsonl": (" \n\n", ["blank.jsonl", "is empty"]),
    "story.json": ("Once upon a time\n", ["story.json:1", "no JSON", ".txt"]),
    "columns.jsonl": ('{"a": 1}\n', ["columns.jsonl:1"]),
    "half.jsonl": ('{"instruction": "a", "output": "b"}\n{"instruction": "a"\n', ["half.jsonl:2"]),
    "noise.jsonl": (b"\xfa\xfb\xfc", ["noise.jsonl:1", "UTF-8"]),
}


@pytest.mark.parametrize("name", DATA)
def test_a_data_file_that_holds_no_rows_is_refused_by_name_and_line(
    call: Call, base: Path, tmp_path: Path, name: str
) -> None:
    content, parts = DATA[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal = call(f"run {NAMED} --checkpoint {base} --output out --data {name}").refusal
    assert [part for part in parts if part not in refusal] == [], refusal


def test_wrong_paths_are_refused_with_the_nearest_right_one(call: Call, base: Path, rows: Path, tmp_path: Path) -> None:
    shutil.copy(rows, tmp_path / "rows.jsonl")
    (tmp_path / "folder").mkdir()
    begin = f"run {NAMED} --output out"
    said = call(f"{begin} --checkpoint {base} --data rwos.jsonl").refusal
    assert "rwos.jsonl does not exist" in said
    assert "rows.jsonl" in said
    said = call(f"{begin} --checkpoint {base} --data folder").refusal
    assert "folder is a directory" in said
    (tmp_path / "checkpoints" / "my-model").mkdir(parents=True)
    said = call(f"{begin} --data rows.jsonl --checkpoint {tmp_path}/checkpoints/my-modle").refusal
    assert f"did you mean '{tmp_path}/checkpoints/my-model'" in said
    said = call(f"{begin} --data rows.jsonl --checkpoint folder").refusal
    assert "'folder' has no config.json" in said
    said = call(f"{begin} --data rows.jsonl --checkpoint ./rows.jsonl").refusal
    assert "rows.jsonl' is no directory" in said
    assert "did you mean" not in said


def test_what_does_not_fit_the_checkpoint_is_refused(call: Call, flags: str, base: Path) -> None:
    said = call(f"{flags} --output out --lora.parts atention").refusal
    assert "no part 'atention'; did you mean 'attention" in said
    said = call(f"{flags} --output out --lora.target_modules q_prj").refusal
    assert "'q_prj'; did you mean 'q_proj'" in said
    said = call(f"{flags} --output out --model llama").refusal
    assert str(base) in said
    assert "'qwen2'" in said
    assert "llama" in said


def test_pretraining_without_a_text_takes_a_sample_and_says_so(call: Call, base: Path) -> None:
    done = call(f"run --method lora --task pretrain --model qwen --checkpoint {base} --steps 2 --output out")
    assert done.code == 0
    assert "no --data given: the task's built-in sample is used" in done.err


def test_the_directory_of_another_run_is_refused_by_what_differs(call: Call, flags: str, finished: Path) -> None:
    said = call(f"{flags} --output {finished} --lr 0.5 --lora.alpha 3").refusal
    assert "lr was null and is now 0.5" in said
    assert "lora.alpha was 16 and is now 3" in said
    assert "--output" in said


def test_an_output_that_is_a_file_is_refused(call: Call, flags: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    said = call(f"{flags} --output out").refusal
    assert "out cannot be used" in said
    assert "--output" in said
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate {}", "merge {} --output out", "chat {}"])
def test_an_unfinished_run_is_refused_with_what_to_do(call: Call, unfinished: Path, command: str) -> None:
    said = call(command.format(unfinished)).refusal
    assert str(unfinished) in said
    assert "not finished; run its command again" in said


@pytest.mark.parametrize("command", ["evaluate {}", "merge {} --output out", "chat {}"])
def test_a_run_whose_base_has_changed_is_refused_by_name(
    call: Call, finished: Path, base: Path, tmp_path: Path, command: str
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "base"))
    moved = Path(shutil.copytree(finished, tmp_path / "run"))
    record = (moved / "ftcore.json").read_text().replace(str(base), str(other))
    (moved / "ftcore.json").write_text(record)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    said = call(command.format(moved)).refusal
    assert str(other) in said
    assert "not those" in said


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_adapter_is_refused(call: Call, finished: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    file = copy / "adapter_model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        save_file({f"x{name}": tensor for name, tensor in tensors.items()}, file)
    assert "adapter" in call(f"evaluate {copy}").refusal


def test_evaluating_without_held_out_rows_or_on_a_missing_file_is_refused(
    call: Call, flags: str, finished: Path
) -> None:
    assert "nothing.jsonl does not exist" in call(f"evaluate {finished} --data nothing.jsonl").refusal
    assert call(f"{flags} --eval-share 0 --output bare").code == 0
    said = call("evaluate bare").refusal
    assert "bare" in said
    assert "--data" in said


# The real command


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("run --method lroa --task causal --model qwen", "did you mean 'lora'"),
        (f"run {NAMED} --lora.r 0", "greater than or equal to 1"),
        (f"run {NAMED} --checkpoint {{base}} --data nowhere.jsonl --output out", "nowhere.jsonl does not exist"),
        (f"run {NAMED} --checkpoint nobody/nothing --output out", "nobody/nothing"),
    ],
    ids=["misspelt", "rank", "data", "hub"],
)
def test_the_real_command_says_one_line_and_exits_2(base: Path, tmp_path: Path, line: str, part: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ftcore", *shlex.split(line.format(base=base))],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert part in Said(done.returncode, done.stdout, done.stderr).refusal
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 2  # the title of the run, and why it stopped


# Flags, files and help


def record(output: str | Path) -> dict[str, object]:
    saved: dict[str, dict[str, object]] = json.loads(Path(output, "ftcore.json").read_text())
    return saved["run"]


def test_flags_lie_over_the_run_file(call: Call, base: Path, rows: Path, tmp_path: Path) -> None:
    shared = f"checkpoint: {base}\ndata: {rows}\nsteps: 5\nlr: 1e-3\nbatch-size: 3\nlora: {{r: 3, alpha: 6}}\n"
    (tmp_path / "run.yaml").write_text(YAML + shared)
    said = call("run run.yaml --steps 1 --lora.alpha 12 --output out")
    assert said.code == 0, said.err
    written = record("out")
    assert (written["steps"], written["lr"], written["batch_size"]) == (1, 1e-3, 3)
    lora = written["lora"]
    assert isinstance(lora, dict)
    assert (lora["r"], lora["alpha"]) == (3, 12)


def test_flags_may_stand_before_the_run_file(call: Call, base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"{YAML}checkpoint: {base}\ndata: {rows}\n")
    said = call("run --lora.r 3 --steps 1 --output out run.yaml")
    assert said.code == 0, said.err
    lora = record("out")["lora"]
    assert isinstance(lora, dict)
    assert lora["r"] == 3


def test_names_on_the_command_line_replace_those_of_the_run_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("method: full\ntask: causal\nmodel: qwen\n")
    said = call("run run.yaml --method lora --lora.r 0").refusal
    assert "method 'lora'" in said


def test_a_plugin_may_be_named_with_its_distribution(call: Call, flags: str) -> None:
    said = call(f"{flags} --method ftcore-lora:lora --output out")
    assert said.code == 0, said.err
    assert record("out")["method"] == "lora"


def test_several_data_files_are_all_read(call: Call, flags: str, rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines(keepends=True)
    (tmp_path / "more.jsonl").write_text("".join(lines[:4]))
    one = json.loads(call(f"plan {flags.removeprefix('run ')} --eval-share 0 --json").out)
    two = json.loads(call(f"plan {flags.removeprefix('run ')} --eval-share 0 --data more.jsonl --json").out)
    assert (one["rows"], two["rows"]) == (40, 44)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "metrics.jsonl", "samples.json"])
def test_the_record_of_a_run_repeats_it_bit_for_bit(call: Call, finished: Path, name: str) -> None:
    said = call(f"run --config {finished / 'ftcore.json'} --output again")
    assert said.code == 0, said.err
    assert Path("again", name).read_bytes() == (finished / name).read_bytes()


def test_the_record_of_a_resumed_run_starts_a_new_one_too(call: Call, flags: str, finished: Path) -> None:
    copy = Path(shutil.copytree(finished, "resumed"))
    (copy / "README.md").unlink()
    assert call(f"{flags} --output resumed --resume --allow-drift").code == 0
    said = call("run --config resumed/ftcore.json --output again")
    assert said.code == 0, said.err
    assert record("again")["allow_drift"] is False


def test_the_flags_of_a_plugin_are_in_the_help_once_it_is_named(call: Call, tmp_path: Path) -> None:
    bare = call("run --help")
    assert bare.code == 0
    assert "--lora." not in bare.out
    assert "--causal." not in bare.out
    assert "--batch-size INT" in bare.out
    named = call("run --method lora --task causal --help").out
    assert "--lora.r INT" in named
    assert "Rank of the update.  [8]" in named
    assert "--causal.template TEXT" in named
    assert "--full." not in named
    (tmp_path / "run.yaml").write_text(YAML)
    assert "--lora.r INT" in call("run run.yaml --help").out
    assert "--peft.type TEXT" in call("run --method=lora+peft --help").out


def test_every_option_has_a_sentence_in_the_help(call: Call) -> None:
    from ftcore.declaring import declared
    from ftcore.settings import Settings

    said = "".join(call("run --help").out.split())  # lines are broken anywhere, also at a hyphen
    for option in declared(Settings):
        assert f"--{option.name.replace('_', '-')}{option.kind}" in said
        assert option.help.endswith(".")
        assert "".join(option.help.split()) in said


def test_two_extensions_act_in_one_run(call: Call, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / f"ext_{name}.py").write_text(EXTENSION.format(name=name))
        announced = tmp_path / f"ext_{name}-1.dist-info"
        announced.mkdir()
        (announced / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ext-{name}\nVersion: 1\n")
        (announced / "entry_points.txt").write_text(f"[ftcore.extensions]\n{name} = ext_{name}:It\n")
    monkeypatch.syspath_prepend(tmp_path)
    for output, spelled in {"joined": "--with first+second", "apart": "--with first --with second"}.items():
        said = call(f"{flags} --steps 1 {spelled} --output {output}")
        assert said.code == 0, said.err
        assert "first acts" in said.out, spelled
        assert "second acts" in said.out, spelled


# Listing


def test_the_list_of_plugins_is_json_for_scripts(call: Call) -> None:
    listed = json.loads(call("plugins --json").out)
    assert all(plugin.keys() == {"kind", "name", "distribution", "version", "error"} for plugin in listed)
    found = {(plugin["kind"], plugin["name"]): plugin for plugin in listed}
    ours = {("method", "lora"), ("method", "full"), ("task", "causal"), ("task", "pretrain"), ("model", "qwen")}
    assert ours <= found.keys()
    assert found["method", "lora"]["distribution"] == "ftcore-lora"
    assert [plugin for plugin in listed if plugin["error"]] == []


def test_the_list_of_plugins_is_lines_for_people(call: Call) -> None:
    lines = call("plugins").out.splitlines()
    assert any(line.split()[:3] == ["method", "lora", "ftcore-lora"] for line in lines)


def test_showing_a_plugin_shows_every_option(call: Call) -> None:
    from ftcore.declaring import declared
    from ftcore_lora import LoRA

    said = call("plugins show lora").out
    assert said.startswith("method 'lora' (ftcore-lora")
    for option in declared(LoRA):
        assert f"--lora.{option.name} {option.kind}" in said
        assert option.help in said


def test_the_schema_of_a_plugin_knows_every_option(call: Call) -> None:
    from ftcore.declaring import declared
    from ftcore_lora import LoRA

    shown = json.loads(call("plugins show lora --json").out)
    assert shown["properties"].keys() == {option.name for option in declared(LoRA)}
    assert shown["additionalProperties"] is False


# Plan

PLANNED = {
    "trainable_parameters", "total_parameters", "matched_modules", "steps", "rows", "supervised_tokens",
    "peak_memory_bytes", "refused",
}  # fmt: skip


def test_a_plan_says_what_the_run_then_does_and_writes_nothing(
    call: Call, flags: str, finished: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    said = call(f"plan {flags.removeprefix('run ')} --json --output out")
    assert said.code == 0
    planned = json.loads(said.out)
    assert planned.keys() >= PLANNED
    assert planned["refused"] is None
    adapter = load_file(finished / "adapter_model.safetensors")
    assert planned["trainable_parameters"] == sum(tensor.numel() for tensor in adapter.values())
    assert len(planned["matched_modules"]) == len(adapter) // 2
    assert planned["steps"] == 3
    assert planned["rows"] == 32
    assert planned["supervised_tokens"] > 0
    assert planned["peak_memory_bytes"] > 4 * planned["total_parameters"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slip", ["--lora.parts atention", "--data nowhere.jsonl", "--max-length 3", "--lora.r 0"])
def test_a_plan_of_a_run_that_would_be_refused_exits_2_and_says_why(call: Call, flags: str, slip: str) -> None:
    said = call(f"plan {flags.removeprefix('run ')} {slip} --json")
    assert said.code == 2
    planned = json.loads(said.out)
    assert planned.keys() >= PLANNED
    run = call(f"{flags} {slip} --output out")
    assert planned["refused"] == run.refusal
    assert planned["refused"] in call(f"plan {flags.removeprefix('run ')} {slip}").out


def test_a_plan_needs_no_weights(call: Call, flags: str, base: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    whole = json.loads(call(f"plan {flags.removeprefix('run ')} --json").out)
    said = call(f"plan {flags.removeprefix('run ')} --checkpoint {bare} --json")
    assert said.code == 0
    assert {**json.loads(said.out), "model": ""} == {**whole, "model": ""}
    for file in bare.glob("tok*"):
        file.unlink()
    said = call(f"plan {flags.removeprefix('run ')} --checkpoint {bare} --json")
    assert said.code == 0
    assert json.loads(said.out)["trainable_parameters"] == whole["trainable_parameters"]


# Evaluate, merge, chat


def test_evaluate_repeats_the_last_metrics_of_the_run(call: Call, finished: Path) -> None:
    said = call(f"evaluate {finished} --json")
    assert said.code == 0
    assert json.loads(said.out) == last_metrics(finished)
    assert f"loss: {last_metrics(finished)['loss']:,.4f}" in call(f"evaluate {finished}").out


def test_evaluate_takes_other_rows(call: Call, finished: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(rows.read_text().splitlines(keepends=True)[:5]))
    metrics = json.loads(call(f"evaluate {finished} --data few.jsonl --json").out)
    assert metrics["rows"] == 5
    assert metrics["loss"] != last_metrics(finished)["loss"]


def test_a_merged_run_loads_without_ftcore_and_answers_the_same(call: Call, finished: Path, tmp_path: Path) -> None:
    import ftcore
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "merged").mkdir()  # an empty directory is as good as none
    said = call(f"merge {finished} --output merged")
    assert said.code == 0, said.err
    plain = AutoModelForCausalLM.from_pretrained("merged")
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        difference = plain(input_ids=tokens).logits - ftcore.attach(finished).model(input_ids=tokens).logits
    assert difference.abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained("merged").chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_merging_into_something_is_refused_and_leaves_it_alone(call: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file", str(finished)):
        said = call(f"merge {finished} --output {name}").refusal
        assert f"'{name}'" in said
        assert "new directory" in said
    assert (tmp_path / "out" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_chat_answers_each_line_with_all_that_was_said_before(call: Call, finished: Path) -> None:
    def talk(*questions: str, more: str = "") -> str:
        said = call(f"chat {finished} --max-new-tokens 12 {more}", typed="".join(f"{q}\n" for q in questions))
        assert said.code == 0, said.err
        return said.out

    first, second = "Where is the cat?", "And where is the dog?"
    both = talk(first, second)
    assert both.startswith(talk(first))
    assert both.removeprefix(talk(first)) not in ("", "\n", talk(second))
    assert talk(first, "", second) == talk(first)
    assert talk(first, more="--system Rain.") != talk(first)
    assert talk() == ""


def test_chat_opens_a_plain_checkpoint_by_its_own_account(call: Call, base: Path, tmp_path: Path) -> None:
    assert call(f"chat {base} --max-new-tokens 3", typed="Hello\n").code == 0
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    said = call("chat other").refusal
    assert "'mamba'" in said
    assert "--model" in said


def test_the_finished_run_says_what_comes_next(call: Call, flags: str) -> None:
    said = call(f"{flags} --output out")
    assert said.code == 0
    assert "held-out rows" in said.out
    assert "before" in said.out
    assert "ftcore chat out" in said.out
    assert "ftcore merge out --output" in said.out
    again = call(f"{flags} --output out")
    assert again.code == 0
    assert "finished already" in again.err
