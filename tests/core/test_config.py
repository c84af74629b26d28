"""A run written down in any way is one recipe, and a recipe written down again is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import yaml
from ftcore import config
from ftcore.config import changes, read, resolve
from ftcore.declaring import declared
from ftcore.errors import Refused
from ftcore_causal import Causal
from ftcore_lora import LoRA

NAMES: dict[str, Any] = {"method": "lora", "task": "causal", "model": "qwen"}
GIVEN: dict[str, Any] = {
    **NAMES,
    "data": ["a.jsonl", "b.jsonl"],
    "steps": 7,
    "lr": 1e-3,
    "precision": "bf16",
    "gradient_checkpointing": True,
    "lora": {"r": 4, "parts": ["attention.q", "mlp"], "dropout": 0.1},
    "causal": {"show": ["Hello, you?"]},
}


def test_keywords_yaml_and_the_saved_record_are_one_recipe(tmp_path: Path) -> None:
    plain = resolve(GIVEN).plain()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(GIVEN))
    (tmp_path / "ftcore.json").write_text(json.dumps({"ftcore": "0.1.0", "run": plain, "steps": 7}))
    assert resolve(read(tmp_path / "run.yaml")).plain() == plain
    assert resolve(read(tmp_path / "ftcore.json")).plain() == plain
    assert resolve(plain).plain() == plain
    assert json.loads(json.dumps(plain)) == plain


def test_the_record_holds_every_option_with_its_type() -> None:
    plain = resolve(GIVEN).plain()
    assert {name: plain[name] for name in NAMES} == NAMES
    assert plain["lora"]["r"] == 4
    assert plain["lora"]["alpha"] == 16
    assert plain["lora"]["parts"] == ["attention.q", "mlp"]
    assert plain["causal"]["template"] is None
    assert plain["causal"]["show"] == ["Hello, you?"]
    assert plain["causal"].keys() == {option.name for option in declared(Causal)}
    assert plain["steps"] == 7
    assert plain["seed"] == 42
    assert plain["gradient_checkpointing"] is True


def test_text_of_a_command_line_is_saved_as_numbers() -> None:
    plain = resolve({**NAMES, "steps": "7", "lr": "1e-3", "lora": {"r": "4"}}).plain()
    assert (plain["steps"], plain["lr"], plain["lora"]["r"]) == (7, 1e-3, 4)


def test_yaml_keys_may_be_spelled_like_flags(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("method: lora\ntask: causal\nmodel: qwen\nbatch-size: 3\nmax_length: 64\n")
    settings = resolve(read(tmp_path / "run.yaml")).settings
    assert (settings.batch_size, settings.max_length) == (3, 64)


def test_paths_may_be_paths_and_one_file_needs_no_list() -> None:
    settings = resolve({**NAMES, "data": Path("a.jsonl"), "eval_data": "b.jsonl", "output": Path("out")}).settings
    assert (settings.data, settings.eval_data, settings.output) == (("a.jsonl",), ("b.jsonl",), "out")
    assert resolve({**NAMES, "checkpoint": Path("base"), "data": [Path("a"), "b"]}).settings.data == ("a", "b")


class Norms:
    """A second method, without options."""


def test_the_default_output_is_named_after_the_plugins() -> None:
    assert resolve(NAMES).output == Path("runs/lora-causal-qwen")
    assert resolve({**NAMES, "method": ["lora", Norms()]}).output == Path("runs/lora+norms-causal-qwen")
    assert resolve(NAMES).title == "lora · causal · qwen"


def test_methods_keep_their_order_and_may_be_a_list() -> None:
    assert resolve({**NAMES, "method": ["lora", Norms()]}).named("method") == "lora+norms"
    assert resolve({**NAMES, "method": [Norms(), "lora"]}).named("method") == "norms+lora"


def test_two_methods_through_one_library_are_refused() -> None:
    with pytest.raises(Refused, match="both go through PEFT"):
        resolve({**NAMES, "method": "lora+peft", "peft": {"type": "HRA"}})


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no method": ({"task": "causal", "model": "qwen"}, ["no method", "--method"]),
    "two models": ({**NAMES, "model": "qwen+llama"}, ["2 models", "one model"]),
    "stray options": ({**NAMES, "full": {"r": 1}}, ["'full'", "causal, lora, qwen"]),
    "misspelt plugin": ({**NAMES, "lroa": {"r": 1}}, ["'lroa'", "did you mean 'lora'"]),
    "misspelt option": ({**NAMES, "batchsize": 1}, ["'batchsize'", "did you mean 'batch_size'"]),
    "options twice": ({**NAMES, "method": LoRA(), "lora": {"r": 1}}, ["LoRA", "instance", "one of them"]),
    "a class": ({**NAMES, "method": LoRA}, ["method", "LoRA"]),
    "a number": ({**NAMES, "method": 5}, ["method", "5"]),
    "a mapping": ({**NAMES, "method": {"lora": {"r": 4}}}, ["method"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_run_that_cannot_be_is_refused_with_what_to_do(wrong: str) -> None:
    values, parts = WRONG[wrong]
    with pytest.raises(Refused) as raised:
        resolve(values)
    assert [part for part in parts if part not in str(raised.value)] == [], raised.value


def test_resolving_leaves_what_was_given_as_it_was() -> None:
    given = json.loads(json.dumps(GIVEN))
    resolve(given)
    assert given == GIVEN


def test_changes_are_named_by_dotted_keys_and_told_apart_by_harm() -> None:
    before = resolve(GIVEN).plain()
    now = resolve({**GIVEN, "keep": 5, "lr": 2e-3, "output": "x", "lora": {"r": 8}}).plain()
    found = {change.key: change for change in changes(before, now)}
    assert found.keys() == {"keep", "lr", "output", "lora.r", "lora.dropout", "lora.parts"}
    assert {key for key, change in found.items() if change.harmless} == {"keep", "output"}
    assert str(found["lr"]) == "lr was 0.001 and is now 0.002"
    assert changes(before, before) == []


def test_an_option_of_a_plugin_is_never_harmless_because_of_its_name() -> None:
    found = changes({"lora": {"keep": 1}}, {"lora": {"keep": 2}})
    assert [change.harmless for change in found] == [False]


def test_a_method_more_or_less_is_a_change() -> None:
    before = resolve(NAMES).plain()
    now = resolve({**NAMES, "method": ["lora", Norms()]}).plain()
    assert {change.key for change in changes(before, now)} == {"method", "norms"}


def test_a_plugin_given_as_an_instance_is_the_plugin_given_by_name(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {**NAMES, "checkpoint": checkpoint("qwen2"), "data": rows, "steps": 2}
    instance = ftcore.run(**{**keys, "method": LoRA(r=2)}, output=tmp_path / "instance")
    named = ftcore.run(**keys, lora={"r": 2}, output=tmp_path / "named")
    name = "adapter_model.safetensors"
    assert (instance.output / name).read_bytes() == (named.output / name).read_bytes()
    records = [json.loads((run.output / "ftcore.json").read_text()) for run in (instance, named)]
    assert [record["run"].pop("output") for record in records] == [str(run.output) for run in (instance, named)]
    assert records[0] == records[1]
    assert records[0]["plugins"][0]["distribution"] == "ftcore-lora"


def test_a_run_file_that_cannot_be_read_is_refused_by_place(tmp_path: Path) -> None:
    (tmp_path / "tabs.yaml").write_text("a: 1\n\tb: 2\n")
    with pytest.raises(Refused, match=r"tabs\.yaml:2: this is no YAML"):
        read(tmp_path / "tabs.yaml")
    (tmp_path / "code.yaml").write_text("method: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Refused, match=r"code\.yaml"):
        read(tmp_path / "code.yaml")
    with pytest.raises(Refused, match=r"did you mean 'tabs\.yaml'"):
        read(tmp_path / "tab.yaml")


def test_the_module_reads_yaml_safely_only() -> None:
    source = Path(config.__file__).read_text()
    assert "yaml.safe_load" in source
    assert "yaml.load" not in source
