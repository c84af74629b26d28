"""The commands and programs in the docs do what the docs say, on a tiny checkpoint in place of the one they name."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = "Qwen/Qwen2.5-0.5B-Instruct"
BLOCK = re.compile(r"<!-- run(?:: (?P<how>[\w./-]+))? -->\n```(?P<kind>\w+)\n(?P<code>.*?)^```", re.S | re.M)
QUICK = {"--steps": "4", "--batch-size": "4", "--log-every": "2"}
MARKED = sorted(page for page in ROOT.glob("docs/**/*.md") if BLOCK.search(page.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Place:
    """A directory to follow a page in, with a tiny checkpoint for the one that the page names."""

    folder: Path
    checkpoint: Path

    def shell(self, line: str) -> int:
        """The exit code of one command line: ftcore's own, an editable install, or a module of Python."""
        words = shlex.split(line.replace(NAMED, str(self.checkpoint)))
        if words[:3] == ["pip", "install", "-e"]:
            self.install(self.folder / words[3].partition("[")[0])
            return 0
        if words[:2] == ["python", "-m"]:
            path = os.pathsep.join(filter(None, sys.path))
            return subprocess.run([sys.executable, *words[1:]], env={**os.environ, "PYTHONPATH": path}).returncode
        return self.ftcore(words, line)

    def ftcore(self, words: list[str], line: str) -> int:
        """The exit code of a command of ftcore."""
        from ftcore.cli import main

        assert words[0] == "ftcore", f"this is not run here: {line}"
        if words[1] in ("run", "plan") and "-" in line:
            named = any(w == "--checkpoint" for w in words) or words[2].endswith(".yaml") or "--config" in words
            words += [] if named else ["--checkpoint", str(self.checkpoint)]
            given = QUICK if "--config" not in words and not words[2].endswith(".yaml") else {}
            words += [part for flag, value in given.items() if flag not in words for part in (flag, value)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as left:
                main()
        return int(left.value.code or 0)

    def write(self, name: str, text: str) -> None:
        """The file holds the text; a module is imported anew, and a project is installed."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(NAMED, str(self.checkpoint)), encoding="utf-8")
        if file.suffix == ".py":
            sys.modules.pop(file.stem, None)
            importlib.invalidate_caches()
        if file.name == "pyproject.toml":
            self.install(file.parent)

    def install(self, folder: Path) -> None:
        """The project in `folder` is found by the interpreter."""
        install(folder)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))

    def python(self, code: str, known: dict[str, object]) -> None:
        """The program is run with what earlier blocks of the page defined."""
        exec(compile(code.replace(NAMED, str(self.checkpoint)), "page", "exec"), known)


@pytest.fixture
def place(
    tmp_path: Path, checkpoint: Callable[..., Path], rows: Path, story: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A directory with rows.jsonl, broken.jsonl and book.txt, and the README's method installed."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module that is replaced within a second is read anew
    for number, (name, value) in enumerate({"user.name": "Ada Lovelace", "user.email": "ada@example.org"}.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", name)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "book.txt").write_bytes(story.read_bytes())
    (tmp_path / "broken.jsonl").write_text('{"instruction": "Hi", "output": ""}\n')
    method = tmp_path / "attn"
    method.mkdir()
    for name, text in zip(("ftcore_attn.py", "pyproject.toml"), readmes_method(), strict=True):
        (method / name).write_text(text)
    install(method)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and what is added later is taken out again
    monkeypatch.syspath_prepend(str(method))
    yield Place(tmp_path, checkpoint("qwen2"))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def readmes_method() -> list[str]:
    """The module and the pyproject.toml of the method in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A method of your own")[2]
    return re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)[:2]


def install(folder: Path) -> None:
    """What `pip install -e .` tells the interpreter about the pyproject.toml in `folder`."""
    import tomllib

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project.get("entry-points", {}).items()
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    importlib.invalidate_caches()


SLOW = ("add-a-family", "choose-a-method", "publish-a-plugin")  # the whole kit, several methods, a wheel


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW)) for page in MARKED]
)
def test_a_page_can_be_followed(page: Path, place: Place) -> None:
    known: dict[str, object] = {}
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        how, kind, code = block["how"], block["kind"], block["code"]
        if how and how != "refused":
            place.write(how, code)
        elif kind == "python":
            place.python(code, known)
        else:
            for line in code.splitlines():
                assert place.shell(line) == (2 if how == "refused" else 0), line


def test_the_pages_that_can_be_followed_are_marked() -> None:
    followed = {page.stem for page in MARKED}
    assert {page.stem for page in ROOT.glob("docs/*/*.md") if page.parent.name in ("tutorials", "how-to")} == followed


def test_the_readmes_method_is_a_method(place: Place) -> None:
    from safetensors.torch import load_file

    assert sum(bool(line.strip()) for line in readmes_method()[0].splitlines()) <= 25
    command = f"ftcore run --method {{}} --task causal --model qwen --checkpoint {NAMED} --data rows.jsonl"
    assert place.shell(command.format("attn") + " --attn.parts attention.q --output one") == 0
    tensors = load_file(place.folder / "one" / "adapter_model.safetensors")
    assert {name.rpartition("self_attn.")[2] for name in tensors} == {"q_proj.weight", "q_proj.bias"}
    assert place.shell("ftcore merge one --output merged") == 0
    assert place.shell("ftcore evaluate one --data rows.jsonl") == 0
    assert place.shell(command.format("attn+ia3") + " --ia3.parts mlp --output two") == 0
    assert place.shell(command.format("attn") + " --attn.prats attention --output three") == 2


def test_the_readmes_program_runs(place: Place) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## In Python")[2]
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    small = f'data="rows.jsonl", checkpoint="{place.checkpoint}", steps=2'
    assert 'data="rows.jsonl"' in program
    place.python(program.replace('data="rows.jsonl"', small), {})


def test_the_readmes_first_commands_are_accepted(place: Place) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A real run")[2]
    lines = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("ftcore") and " chat " not in line]
    assert len(commands) == 5
    shutil.copy("rows.jsonl", "questions.jsonl")
    for command in commands:
        assert place.shell(command) == 0, command


def test_the_readmes_rows_are_read(place: Place) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z0-9-]+)` \| (.*`\{\".*) \|$", text, re.MULTILINE)
    rows = [(task, row.replace("…", "some text")) for task, cell in told for row in re.findall(r"`(\{\".*?\})`", cell)]
    assert {task for task, _ in rows} >= {"causal", "pretrain", "qa", "seq2seq", "token-classify"}
    for number, (task, row) in enumerate(rows):
        mine = "".join(one + "\n" for own, one in rows if own == task)
        (place.folder / f"{task}.jsonl").write_text(mine)
        (place.folder / f"{number}.jsonl").write_text(row + "\n")
        assert place.shell(f"ftcore data check {number}.jsonl") == 0, row
    plan = "ftcore plan --method lora --model qwen --task"
    assert place.shell(f"{plan} causal --data causal.jsonl") == 0
    assert place.shell(f"{plan} pretrain --data pretrain.jsonl") == 0


def test_the_yaml_example_runs(place: Place) -> None:
    file = ROOT / "examples" / "lora-alpaca.yaml"
    assert place.shell(f"ftcore run {file} --checkpoint {NAMED} --steps 2 --output runs/example") == 0
    saved = json.loads((place.folder / "runs" / "example" / "ftcore.json").read_text())["run"]
    assert (saved["lora"]["r"], saved["steps"], saved["accumulate"]) == (16, 2, 2)


def test_the_program_example_runs(place: Place) -> None:
    arguments = ["data=rows.jsonl", f"checkpoint={place.checkpoint}", "steps=2"]
    script = ROOT / "examples" / "embed.py"
    done = subprocess.run([sys.executable, script, *arguments], cwd=place.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_leaves_the_files_that_the_reference_lists(place: Place) -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    run = f"ftcore run --method lora --task causal --model qwen --checkpoint {NAMED} --data rows.jsonl --output out"
    assert place.shell(run) == 0
    output = place.folder / "out"
    there = {path.name for path in output.iterdir() if path.is_file()}
    first = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| "))
    listed = set(re.findall(r"`([\w.]+)`", first))
    assert there == listed
    inside = {path.name for path in (output / "checkpoints" / "step-000000004").iterdir()}
    assert all(f"`{name}`" in page for name in inside)
