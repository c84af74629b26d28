"""A new project is complete, named as it was asked for, and appears whole or not at all."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ftcore import scaffold
from ftcore.declaring import declared
from ftcore.discovery import find, only_from
from ftcore.errors import Refused
from ftcore.families import LLAMA_ROLES
from ftcore.scaffold import architectures, facts, roles

AUTHOR = 'Ada "Countess" O\'Lovelace \\ Ünal'
FILES = {
    "pyproject.toml", "ftcore_low_tide.py", "test_ftcore_low_tide.py", "README.md", "LICENSE", "CHANGELOG.md",
    ".gitignore", ".github/workflows/ci.yml",
}  # fmt: skip
LINES = {"method": 60, "task": 90, "model": 25}  # that say something


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project of each kind, all of one name."""
    folder = tmp_path_factory.mktemp("projects")
    types = {"model": "phi3"}
    return {
        kind: scaffold.create(kind, "low-tide", folder / kind, author=AUTHOR, model_type=types.get(kind))
        for kind in scaffold.KINDS
    }


def made(kind: str, name: str, folder: Path, **given: Any) -> Path:
    """A project where no other plugin is looked at, which takes a second."""
    with only_from():
        return scaffold.create(kind, name, folder, author="Ada Lovelace", **given)


def module_of(project: Path) -> ModuleType:
    """The project's module."""
    (file,) = project.glob("ftcore_*.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def described(project: Path) -> dict[str, Any]:
    """The project's table in its pyproject.toml."""
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# What is in it


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_it_has_every_file_and_nothing_is_left_open(projects: dict[str, Path], kind: str) -> None:
    texts = {
        str(file.relative_to(projects[kind])): file.read_text(encoding="utf-8")
        for file in projects[kind].rglob("*")
        if file.is_file()
    }
    assert texts.keys() == FILES
    for name, text in texts.items():
        assert not re.search(r"<<|>>|my.name|MyName|TODO|FIXME|XXX|replace me|your name", text, re.I), name
        assert text.endswith("\n"), name


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_it_is_described_as_it_is(projects: dict[str, Path], kind: str) -> None:
    project = described(projects[kind])
    assert project["name"] == "ftcore-low-tide"
    assert project["entry-points"] == {f"ftcore.{kind}s": {"low-tide": "ftcore_low_tide:LowTide"}}
    assert project["requires-python"] == metadata.metadata("ftcore")["Requires-Python"]
    assert project["dependencies"] == [facts.requirement(metadata.version("ftcore"))]
    assert project["optional-dependencies"] == {"test": ["pytest"]}
    assert project["authors"] == [{"name": AUTHOR}]
    assert (project["license"], project["license-files"]) == ("MIT", ["LICENSE"])
    assert project["classifiers"]
    assert hasattr(module_of(projects[kind]), "LowTide")


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_its_readme_lists_the_options_as_they_are(projects: dict[str, Path], kind: str) -> None:
    text = (projects[kind] / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `--low-tide\.(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    options = declared(module_of(projects[kind]).LowTide)
    assert [row[0] for row in table] == [option.name for option in options]
    for (_, value, default, said), option in zip(table, options, strict=True):
        shown = ",".join(option.default) if isinstance(option.default, tuple) else str(option.default)
        assert option.kind in value.replace("\\", "")
        assert default == (f"`{shown}`" if shown else "")
        assert said == option.help
    parts = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert parts == ["Install", "Use", "Options", "Development"]
    assert "METHOD" not in text.split("## Options")[0].split("ftcore run")[1]


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_it_is_as_long_as_promised(projects: dict[str, Path], kind: str) -> None:
    lines = (projects[kind] / "ftcore_low_tide.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= LINES[kind]
    test = (projects[kind] / "test_ftcore_low_tide.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in test) <= 7


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_its_workflow_builds_installs_and_checks_it(projects: dict[str, Path], kind: str) -> None:
    workflow = yaml.safe_load((projects[kind] / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["kit"]
    commands = "".join(step.get("run", "") for step in job["steps"])
    assert all(word in commands for word in ("build --wheel", "venv", "pip install dist", "pytest"))
    assert "ftcore check low-tide" in commands
    assert "{{ matrix.python }}" in str(job)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in job["strategy"]["matrix"]["python"]


def test_it_is_in_order_by_ruffs_own_rules(projects: dict[str, Path]) -> None:
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        for project in projects.values():
            done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=project, capture_output=True)
            assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(("licence", "words"), [("MIT", 160), ("Apache-2.0", 1500)])
def test_the_licence_is_whole_and_names_the_author_and_the_year(tmp_path: Path, licence: str, words: int) -> None:
    import datetime

    project = made("task", "low-tide", tmp_path / "new", licence=licence)
    text = (project / "LICENSE").read_text(encoding="utf-8")
    assert len(text.split()) > words
    assert f"{datetime.date.today().year} Ada Lovelace" in text
    assert "[yyyy]" not in text
    assert described(project)["license"] == licence


def test_a_command_names_plugins_that_are_installed(projects: dict[str, Path]) -> None:
    text = (projects["method"] / "README.md").read_text(encoding="utf-8")
    command = re.search(r"ftcore run --method low-tide --task causal --model (\w+) --data rows\.jsonl", text)
    assert command is not None
    family = find("model", command[1]).load()
    assert family.starter.is_dir()  # nothing but the method has to be added
    assert not family.unpackable


def test_without_other_plugins_a_command_names_their_kinds(tmp_path: Path) -> None:
    project = made("method", "low-tide", tmp_path / "new")
    assert "--task TASK --model FAMILY" in (project / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("version", "range_"),
    [
        ("0.1.0", "ftcore>=0.1,<0.2"),
        ("0.9.12", "ftcore>=0.9,<0.10"),
        ("0.2.0.dev3", "ftcore>=0.2,<0.3"),
        ("1.4.2", "ftcore>=1.4,<2"),
        ("2", "ftcore>=2.0,<3"),
    ],
)
def test_it_asks_for_the_ftcore_it_was_made_with(version: str, range_: str) -> None:
    assert facts.requirement(version) == range_


# What it is called


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("LowTide", "'low-tide'"),
        ("low_tide", "'low-tide'"),
        ("low--tide", "'low-tide'"),
        ("-low", "'low'"),
        ("low-", "'low'"),
        ("2fast", "'fast'"),
        ("low tide", "'low-tide'"),
        ("../low", "'low'"),
        ("ebbé", "'ebb'"),
        ("", "'my-name'"),
        ("潮", "'my-name'"),
        ("a" * 65, f"'{'a' * 64}'"),
    ],
)
def test_a_bad_name_is_refused_with_a_good_one(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(Refused, match="is no name for a plugin") as refused:
        made("method", name, tmp_path / "new")
    assert hint in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused_with_who_has_it(tmp_path: Path) -> None:
    for kind, name in (("method", "lora"), ("task", "causal"), ("model", "qwen"), ("task", "lora")):
        with pytest.raises(Refused, match=rf"'{name}' \(ftcore-{name} .*is installed"):
            made(kind, name, tmp_path / "new")


@pytest.mark.parametrize("name", ["seed", "batch-size", "data", "method", "with", "config"])
def test_a_name_that_every_run_uses_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="is what every run has a setting of"):
        made("method", name, tmp_path / "new")


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("method", "low-tide-2", "LowTide2"),
        ("method", "none", "NoneMethod"),
        ("method", "loaded", "LoadedMethod"),
        ("method", "field", "FieldMethod"),
        ("task", "reading", "ReadingTask"),
        ("task", "example", "ExampleTask"),
        ("method", "weight", "Weight"),
        ("method", "forward", "Forward"),
    ],
)
def test_the_class_takes_no_word_that_is_in_use(tmp_path: Path, kind: str, name: str, cls: str) -> None:
    project = made(kind, name, tmp_path / "new")
    entry = described(project)["entry-points"][f"ftcore.{kind}s"]
    assert entry == {name: f"ftcore_{name.replace('-', '_')}:{cls}"}
    assert getattr(module_of(project), cls).__name__ == cls


# Where it goes, and from whom


def test_without_a_folder_it_is_named_after_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert scaffold.create("task", "low-tide", author="Ada") == Path("ftcore-low-tide")
    assert (tmp_path / "ftcore-low-tide" / "README.md").is_file()
    assert scaffold.next_steps(Path("ftcore-low-tide"), "low-tide")[0] == "cd ftcore-low-tide"


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for taken in (full, file):
        with pytest.raises(Refused, match=f"'{taken}' exists already"):
            made("method", "low-tide", taken)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    empty.mkdir()
    assert (made("method", "low-tide", empty) / "LICENSE").is_file()


def test_a_project_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_text

    def full(path: Path, *given: Any, **named: Any) -> int:
        if path.name == "LICENSE":
            raise OSError("No space left on device")
        return whole(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        made("method", "low-tide", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_author_is_whom_git_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    config.write_text("[user]\n\tname = Grace Hopper\n")
    assert facts.author_of(None) == "Grace Hopper"
    assert facts.author_of("Ada\n  Lovelace ") == "Ada Lovelace"
    config.write_text("")
    with pytest.raises(Refused, match="--author"):
        scaffold.create("method", "low-tide", tmp_path / "new")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="--author"):
        facts.author_of(None)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="'recipe' is no kind of project; choose one of method, task, model"):
        made("recipe", "low-tide", tmp_path / "new")
    with pytest.raises(Refused, match=r"no text of the licence 'GPL'; choose one of MIT, Apache-2\.0"):
        made("task", "low-tide", tmp_path / "new", licence="GPL")
    with pytest.raises(Refused, match="--type phi3 is about a model family"):
        made("task", "low-tide", tmp_path / "new", model_type="phi3")


def test_a_method_or_a_task_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ftcore import scaffold\n"
        "for kind in ('method', 'task'): scaffold.create(kind, 'low-tide', Path(kind), author='Ada')\n"
        "assert not {'torch', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Families


def fused(module: str) -> dict[str, str]:
    """The three roles of one projection."""
    return dict.fromkeys(("attention.q", "attention.k", "attention.v"), module)


FOUND: dict[str, dict[str, str]] = {
    "llama": dict(LLAMA_ROLES),
    "mistral": dict(LLAMA_ROLES),
    "qwen3": dict(LLAMA_ROLES),
    "gemma2": dict(LLAMA_ROLES),
    "phi3": {
        **LLAMA_ROLES,
        **fused("model.layers.*.self_attn.qkv_proj"),
        **dict.fromkeys(("mlp.gate", "mlp.up"), "model.layers.*.mlp.gate_up_proj"),
        "head": "lm_head",
    },
    "gpt_neox": {
        "block": "gpt_neox.layers.*",
        **fused("gpt_neox.layers.*.attention.query_key_value"),
        "attention.o": "gpt_neox.layers.*.attention.dense",
        "mlp.up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
        "mlp.down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
        "norm": "gpt_neox.*norm",
        "embedding": "gpt_neox.embed_in",
        "head": "lm_head",
    },
    "opt": {
        "block": "model.decoder.layers.*",
        **{f"attention.{one}": f"model.decoder.layers.*.self_attn.{one}_proj" for one in "qkv"},
        "attention.o": "model.decoder.layers.*.self_attn.out_proj",
        "mlp.up": "model.decoder.layers.*.fc1",
        "mlp.down": "model.decoder.layers.*.fc2",
        "norm": "model.decoder.*_layer_norm",
        "embedding": "model.decoder.embed_tokens",
        "head": "lm_head",
    },
    "gpt2": {
        "block": "transformer.h.*",
        **fused("transformer.h.*.attn.c_attn"),
        "attention.o": "transformer.h.*.attn.c_proj",
        "mlp.up": "transformer.h.*.mlp.c_fc",
        "mlp.down": "transformer.h.*.mlp.c_proj",
        "norm": "transformer.*ln_*",
        "embedding": "transformer.wte",
        "head": "lm_head",
    },
    "bloom": {
        "block": "transformer.h.*",
        **fused("transformer.h.*.self_attention.query_key_value"),
        "attention.o": "transformer.h.*.self_attention.dense",
        "mlp.up": "transformer.h.*.mlp.dense_h_to_4h",
        "mlp.down": "transformer.h.*.mlp.dense_4h_to_h",
        "norm": "transformer.*_layernorm transformer.ln_f",
        "embedding": "transformer.word_embeddings",
        "head": "lm_head",
    },
    "bert": {
        "block": "bert.encoder.layer.*",
        **{
            f"attention.{one[0]}": f"bert.encoder.layer.*.attention.self.{one}"
            for one in ("query", "key", "value")
        },
        "attention.o": "bert.encoder.layer.*.attention.output.dense",
        "mlp.up": "bert.encoder.layer.*.intermediate.dense",
        "mlp.down": "bert.encoder.layer.*.output.dense",
        "norm": "*LayerNorm",
        "embedding": "bert.embeddings.word_embeddings",
        "head": "cls.predictions.decoder",
    },
    "mt5": {
        "block": "*coder.block.*",
        **{f"attention.{one}": f"*coder.block.*.layer.*.*Attention.{one}" for one in "qkvo"},
        "mlp.gate": "*coder.block.*.layer.*.DenseReluDense.wi_0",
        "mlp.up": "*coder.block.*.layer.*.DenseReluDense.wi_1",
        "mlp.down": "*coder.block.*.layer.*.DenseReluDense.wo",
        "norm": "*layer_norm",
        "embedding": "shared",
        "head": "lm_head",
    },
}  # fmt: skip
CLASSIFYING = ("sequence-classification", "token-classification", "question-answering")
HEADS = {
    "mistral": ("causal-lm", *CLASSIFYING),
    "llama": ("causal-lm", "sequence-classification", "token-classification"),
    "bert": ("masked-lm", *CLASSIFYING),
    "mt5": ("seq2seq-lm",),
}
PADDED = {
    "bert": "its tokens look at what comes after them",
    "mt5": "it reads a row in one stack and writes it in another",
    "bloom": "it does not take rows that are laid end to end",
    "gemma2": "it does not take rows that are laid end to end",
}


@pytest.mark.parametrize("model_type", FOUND)
def test_a_familys_roles_are_found_by_looking_at_it(model_type: str) -> None:
    found = architectures.architecture(model_type)
    assert dict(found.roles.patterns) == FOUND[model_type]
    assert (found.roles.untold, found.roles.nameless) == ((), ())
    assert found.heads == HEADS.get(model_type, found.heads)
    assert found.unpackable == PADDED.get(model_type, "")


def test_what_is_usual_is_not_said(tmp_path: Path) -> None:
    project = made("model", "granite", tmp_path / "new")
    text = (project / "ftcore_granite.py").read_text(encoding="utf-8")
    assert 'model_types = ("granite",)' in text
    assert not re.search("roles|unpackable|tiny|Mapping", text)


def test_a_type_that_wants_other_fields_says_so_to_the_kit(tmp_path: Path) -> None:
    project = made("model", "gptj", tmp_path / "new")
    assert '= {"gptj": {"rotary_dim": 4}}' in (project / "ftcore_gptj.py").read_text(encoding="utf-8")


def test_a_hyphen_in_a_name_may_be_an_underscore_in_the_type() -> None:
    assert architectures.model_type_of("gpt-neox", None) == "gpt_neox"
    assert architectures.model_type_of("my-phi", "phi3") == "phi3"


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("mistrall", None, "no model type 'mistrall'; did you mean mistral or "),
        ("my-own", "lama", "no model type 'lama'; did you mean llama or "),
        ("zzzzqqqq", None, "see a checkpoint's config.json; name it with --type"),
        ("my-own", "vit", "has none of the heads causal-lm"),
        ("my-own", "gemma3", "parameters, too many to try"),
        ("my-own", "xlnet", "no model of type 'xlnet' runs with two layers"),
    ],
)
def test_a_type_that_no_family_can_be_made_for_is_refused(tmp_path: Path, name: str, asked: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        made("model", name, tmp_path / "new", model_type=asked)
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_what_the_roles_do_not_cover_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    made("model", "my-moe", tmp_path / "new", model_type="qwen2_moe", say=said.append)
    assert [line.partition(";")[0] for line in said] == ["no role names model.layers.*.mlp.shared_expert_gate"]


@pytest.mark.parametrize(
    ("name", "shape", "others", "found"),
    [
        ("attn.Wqkv", (8, 24), (), roles.QKV),
        ("attn.kv_proj", (8, 16), (), roles.QKV[1:]),
        ("attention.key", (8, 8), (), ("attention.k",)),
        ("attention.output.dense", (8, 8), (), ("attention.o",)),
        ("attn.rotary", (8, 8), (), ()),
        ("mlp.w1", (8, 16), ("mlp.w3",), ("mlp.gate",)),
        ("mlp.w1", (8, 16), (), ("mlp.up",)),
        ("mlp.wi_0", (8, 16), ("mlp.wi_1",), ("mlp.gate",)),
        ("mlp.gate_up_proj", (8, 32), (), ("mlp.gate", "mlp.up")),
        ("mlp.gate", (8, 4), (), ()),
        ("fc2", (16, 8), (), ("mlp.down",)),
        ("proj", (8, 8), (), ()),
    ],
)
def test_a_layers_roles_are_told_by_its_name_and_shape(
    name: str, shape: tuple[int, int], others: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert tuple(roles.layer_roles(name, shape, 8, others)) == found
