"""Plugins are found without being imported, chosen by name, and a broken or unfit one is named with what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ftcore
import pytest
import torch
from ftcore import Data, FtcoreError, Loaded, Refused, Run, hookimpl, options
from ftcore.config import resolve
from ftcore.discovery import Chosen, Hooks, Kind, bind, check_combination, choose, find, listing, offers
from ftcore.settings import Settings
from ftcore.training import Core
from ftcore_full import Full
from ftcore_lora import LoRA
from torch import nn

NAMES = {"task": "causal", "model": "qwen"}
METHOD = '''
from typing import Annotated
from ftcore import hookimpl, options
from pydantic import Field

@options
class It:
    """A method."""
    r: Annotated[int, Field(description="A number.")] = {default}

    @hookimpl
    def inject_adapter(self, model):
        return model
'''
FAULTY = METHOD.format(default=1).replace("return model", "return model.absent")
Publish = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


# Names


def test_an_installed_plugin_is_found_under_the_name_its_metadata_gives(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", METHOD.format(default=3))
    offer = find("method", "nova")
    assert (offer.distribution, offer.version, offer.label) == ("ftcore-nova", "1.5", "method 'nova' (ftcore-nova 1.5)")
    assert "ftcore_nova_module" not in sys.modules
    assert resolve({**NAMES, "method": "nova"}).plain()["nova"] == {"r": 3}


def test_a_name_of_another_kind_is_not_found() -> None:
    with pytest.raises(Refused, match="no task 'lora' is installed"):
        find("task", "lora")


def test_one_name_from_two_distributions_is_refused_and_can_be_chosen(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", METHOD.format(default=3))
    publish("other-nova", "method", "nova", METHOD.format(default=4))
    with pytest.raises(Refused) as raised:
        find("method", "nova")
    message = str(raised.value)
    for part in ("method 'nova'", "ftcore-nova 1.5", "other-nova 1.5", "ftcore-nova:nova"):
        assert part in message
    for distribution, default in (("ftcore-nova", 3), ("other-nova", 4)):
        recipe = resolve({**NAMES, "method": f"{distribution}:nova"})
        assert recipe.chosen[0].distribution == distribution
        assert recipe.plain()["nova"] == {"r": default}
    given = {**NAMES, "method": "other-nova:nova", "nova": {"r": 9}}
    assert resolve(given).plain()["nova"] == {"r": 9}
    listed = [plugin["distribution"] for plugin in listing() if plugin["name"] == "nova"]
    assert listed == ["ftcore-nova", "other-nova"]


def test_the_record_of_a_chosen_one_of_two_names_it_again(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", METHOD.format(default=3))
    publish("other-nova", "method", "nova", METHOD.format(default=4))
    recipe = resolve({**NAMES, "method": "other-nova:nova"})
    assert resolve(recipe.plain()).chosen[0].distribution == "other-nova"


def test_a_distribution_without_that_name_is_refused() -> None:
    with pytest.raises(Refused, match="no method 'ftcore-full:lora' is installed"):
        find("method", "ftcore-full:lora")


def test_a_distribution_seen_twice_on_the_path_is_one(publish: Publish, tmp_path: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(publish("ftcore-nova", "method", "nova", METHOD.format(default=3)))
    monkeypatch.syspath_prepend(copy)
    assert find("method", "nova").distribution == "ftcore-nova"


# Plugins that do not import

BROKEN = {
    "raises": ("raise RuntimeError('no luck')", "It", "RuntimeError: no luck"),
    "imports what is not there": ("import absent_library", "It", "No module named 'absent_library'"),
    "is no Python": ("def (", "It", "SyntaxError"),
    "exits": ("raise SystemExit(3)", "It", "SystemExit: 3"),
    "lacks its class": ("", "It", "has no attribute 'It'"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_plugin_that_does_not_import_is_listed_with_its_error_and_breaks_only_runs_that_name_it(
    publish: Publish, how: str
) -> None:
    source, target, reason = BROKEN[how]
    publish("ftcore-broken", "method", "broken", source, target)
    errors = {plugin["name"]: plugin["error"] for plugin in ftcore.plugins()}
    assert [name for name, error in errors.items() if error] == ["broken"]
    assert reason in (errors["broken"] or "")
    assert resolve({**NAMES, "method": "lora"}).named("method") == "lora"
    with pytest.raises(Refused) as raised:
        resolve({**NAMES, "method": "broken"})
    for part in ("method 'broken' (ftcore-broken 1.5)", reason, "pip install --force-reinstall ftcore-broken"):
        assert part in str(raised.value)


def test_the_command_lists_a_broken_plugin_and_helps_with_the_others(publish: Publish, command: Command) -> None:
    publish("ftcore-broken", "method", "broken", "raise RuntimeError('no luck')")
    listed = command("plugins")
    assert listed.returncode == 0
    assert "unusable: method 'broken' (ftcore-broken 1.5) cannot be imported (RuntimeError: no luck)" in listed.stdout
    assert command("run", "--method", "lora", "--help").returncode == 0
    refused = command("run", "--method", "broken", "--task", "causal", "--model", "qwen")
    assert refused.returncode == 2
    assert "no luck" in refused.stderr
    assert "Traceback" not in refused.stderr


# What hooks return and raise


@options
class Nothing:
    """Answers every hook with nothing."""

    @hookimpl
    def load_model(self, run: Run) -> None:
        return None

    @hookimpl
    def prepare_data(self, run: Run) -> None:
        return None

    @hookimpl
    def inject_adapter(self, model: nn.Module) -> None:
        return None

    @hookimpl
    def merge(self, model: nn.Module) -> None:
        return None


def raise_like_the_library() -> NoReturn:
    json.loads("{")
    raise AssertionError


@options
class LoadFault:
    """Raises what the standard library raises when it is asked how to load."""

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any]:
        raise_like_the_library()


@options
class Fault:
    """Raises what the standard library raises, from every other hook."""

    @hookimpl
    def load_model(self) -> Loaded:
        raise_like_the_library()

    @hookimpl
    def prepare_data(self) -> Data:
        raise_like_the_library()

    @hookimpl
    def inject_adapter(self, model: nn.Module) -> nn.Module:
        raise_like_the_library()

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        raise_like_the_library()

    @hookimpl
    def train_step(self) -> float:
        raise_like_the_library()


def chosen(kind: Kind, plugin: object) -> Chosen:
    return Chosen(kind, "nova", "ftcore-nova", "1.5", plugin)


def bound(kind: Kind, plugin: object) -> Hooks:
    return bind([chosen(kind, plugin)], Core())


def called(hooks: Hooks, hook: str) -> object:
    """A hook of the only plugin, called as a run calls it."""
    run, model = Run(Settings(), "train", "causal-lm"), nn.Sequential(nn.Linear(2, 2))
    loaded, one = Loaded(model, None, {}, "", 0, 0), hooks.chosen[0]
    calls: dict[str, Callable[[], object]] = {
        "load_kwargs": lambda: hooks.load_kwargs(run),
        "load_model": lambda: hooks.load_model(run),
        "prepare_data": lambda: hooks.prepare_data(run, loaded),
        "inject_adapter": lambda: hooks.inject_adapter(run, one, model, loaded, None, 1),
        "merge": lambda: hooks.merge(run, one, model),
        "train_step": lambda: hooks.train_step(
            run=run, step=1, model=model, batches=[], loss=None, optimizer=None, accelerator=None
        ),
    }
    return calls[hook]()


HOOKS: list[tuple[Kind, str]] = [
    ("model", "load_model"),
    ("task", "prepare_data"),
    ("method", "inject_adapter"),
    ("method", "merge"),
]


@pytest.mark.parametrize(("kind", "hook"), HOOKS)
def test_nothing_where_an_answer_is_needed_is_an_error_that_names_the_plugin(kind: Kind, hook: str) -> None:
    with pytest.raises(FtcoreError) as raised:
        called(bound(kind, Nothing()), hook)
    assert f"{kind} 'nova' (ftcore-nova 1.5) returned nothing from {hook}; return" in str(raised.value)


@pytest.mark.parametrize(("kind", "hook"), [*HOOKS, ("method", "train_step"), ("extension", "load_kwargs")])
def test_an_exception_keeps_its_type_and_says_where_it_came_from(kind: Kind, hook: str) -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        called(bound(kind, LoadFault() if hook == "load_kwargs" else Fault()), hook)
    assert raised.value.__notes__ == [f"in {hook} of {kind} 'nova' (ftcore-nova 1.5)"]


def test_an_exception_in_an_inherited_hook_names_the_plugin_that_inherits(publish: Publish) -> None:
    publish("ftcore-parent", "method", "parent", FAULTY)
    publish("ftcore-child", "method", "child", "from ftcore_parent_module import It as Parent\nclass It(Parent): pass")
    one = choose("method", "child", {})
    with pytest.raises(AttributeError) as raised:
        called(bind([one], Core()), "inject_adapter")
    assert raised.value.__notes__ == ["in inject_adapter of method 'child' (ftcore-child 1.5)"]


def test_an_exception_names_only_the_plugin_that_raised(publish: Publish) -> None:
    publish("ftcore-one", "method", "one", FAULTY)
    publish("ftcore-two", "method", "two", METHOD.format(default=1))
    both = [choose("method", name, {}) for name in ("one", "two")]
    hooks = bind(both, Core())
    model = nn.Linear(2, 2)
    run, loaded = Run(Settings(), "train", "causal-lm"), Loaded(model, None, {}, "", 0, 0)
    assert hooks.inject_adapter(run, both[1], model, loaded, None, 1) is model
    with pytest.raises(AttributeError) as raised:
        hooks.inject_adapter(run, both[0], model, loaded, None, 1)
    assert raised.value.__notes__ == ["in inject_adapter of method 'one' (ftcore-one 1.5)"]


TWO = METHOD.format(default=1).replace("class It", "class One") + METHOD.format(default=1).replace(
    "class It", "class Two"
)
HELPED = TWO.replace("return model", "return helped(model)") + "\ndef helped(model):\n    return model.absent\n"


@pytest.mark.parametrize("source", [TWO.replace("return model", "return model.absent"), HELPED])
@pytest.mark.parametrize("culprit", ["one", "two"])
def test_of_two_plugins_in_one_file_the_one_that_raised_is_named(publish: Publish, source: str, culprit: str) -> None:
    folder = publish("ftcore-pair", "method", "one", source, "One")
    module = "ftcore_pair_module"
    entries = next(folder.glob("*.dist-info")) / "entry_points.txt"
    entries.write_text(f"[ftcore.methods]\none = {module}:One\ntwo = {module}:Two\n")
    both = [choose("method", name, {}) for name in ("one", "two")]
    hooks, model = bind(both, Core()), nn.Linear(2, 2)
    raising = next(one for one in both if one.name == culprit)
    with pytest.raises(AttributeError) as raised:
        hooks.inject_adapter(Run(Settings(), "train", ""), raising, model, Loaded(model, None, {}, "", 0, 0), None, 1)
    assert raised.value.__notes__ == [f"in inject_adapter of method '{culprit}' (ftcore-pair 1.5)"]


def test_an_exception_of_a_class_without_a_file_names_it() -> None:
    known: dict[str, Any] = {}
    exec(compile(FAULTY, "<made>", "exec", dont_inherit=True), known)
    with pytest.raises(AttributeError) as raised:
        called(bound("method", known["It"]()), "inject_adapter")
    assert raised.value.__notes__ == ["in inject_adapter of method 'nova' (ftcore-nova 1.5)"]


@options
class Around:
    """Acts around a step, and raises where it is told to."""

    place: str = ""

    @hookimpl(wrapper=True)
    def train_step(self) -> Generator[None, float, float]:
        if self.place == "before":
            raise_like_the_library()
        loss = yield
        if self.place == "after":
            raise_like_the_library()
        return loss


@options
class Steps:
    """Answers a step."""

    @hookimpl
    def train_step(self) -> float:
        return 0.0


@pytest.mark.parametrize(("place", "method", "culprit"), [
    ("before", Steps(), "extension 'around'"),
    ("after", Steps(), "extension 'around'"),
    ("", Fault(), "method 'nova' (ftcore-nova 1.5)"),
])  # fmt: skip
def test_what_acts_around_a_step_is_named_for_its_own_faults_only(place: str, method: object, culprit: str) -> None:
    around = Chosen("extension", "around", "", "", Around(place=place))
    hooks = bind([chosen("method", method), around], Core())
    with pytest.raises(json.JSONDecodeError) as raised:
        called(hooks, "train_step")
    assert raised.value.__notes__ == [f"in train_step of {culprit}"]


@options
class Asks:
    """Asks for the loss."""

    @hookimpl
    def train_step(self, model: nn.Module, loss: Any) -> float:
        return float(loss(model, None))


def test_the_loss_of_a_task_that_fails_in_a_step_names_the_task_and_not_the_method() -> None:
    @options
    class Task:
        """Its loss fails."""

        @hookimpl
        def prepare_data(self) -> Data:
            return Data([], [], lambda rows: rows, loss=lambda model, batch: json.loads("{"))  # type: ignore[arg-type,return-value]

    task = Chosen("task", "task", "ftcore-task", "2", Task())
    hooks = bind([Chosen("method", "asks", "", "", Asks()), task], Core())
    data = hooks.prepare_data(Run(Settings(), "train", ""), Loaded(nn.Linear(1, 1), None, {}, "", 0, 0))
    with pytest.raises(json.JSONDecodeError) as raised:
        hooks.train_step(
            run=None, step=1, model=nn.Linear(1, 1), batches=[], loss=data.loss, optimizer=None, accelerator=None
        )
    assert raised.value.__notes__ == ["in train_step of task 'task' (ftcore-task 2)"]


def test_a_function_in_another_file_of_a_plugins_package_names_the_plugin(publish: Publish) -> None:
    source = (
        "from ftcore import Data, hookimpl, options\nfrom ftcore_pack_module.parts import loss\n"
        "@options\nclass It:\n    'A task.'\n    @hookimpl\n    def prepare_data(self):\n"
        "        return Data([], [], collate=None, loss=loss)\n"
    )
    folder = publish("ftcore-pack", "task", "pack", source, package=True)
    (folder / "ftcore_pack_module" / "parts.py").write_text("def loss(model, batch):\n    return model.absent\n")
    task = choose("task", "pack", {})
    hooks = bind([Chosen("method", "asks", "", "", Asks()), task], Core())
    model = nn.Linear(1, 1)
    data = hooks.prepare_data(Run(Settings(), "train", ""), Loaded(model, None, {}, "", 0, 0))
    with pytest.raises(AttributeError) as raised:
        hooks.train_step(run=None, step=1, model=model, batches=[], loss=data.loss, optimizer=None, accelerator=None)
    assert raised.value.__notes__ == ["in train_step of task 'pack' (ftcore-pack 1.5)"]


@dataclass(frozen=True)
class Frozen(Exception):
    """An exception that nothing can be added to."""

    reason: str


class Deaf(Exception):
    """An exception that takes no notes."""

    def add_note(self, note: str) -> None:
        raise TypeError(note)


@pytest.mark.parametrize("fault", [Frozen("broken"), Deaf("broken")])
@pytest.mark.parametrize("cause", [None, KeyError("first")])
def test_an_exception_that_takes_no_note_keeps_its_type_and_has_the_note_as_its_cause(
    fault: Exception, cause: Exception | None
) -> None:
    @options
    class Raising:
        """Raises it."""

        @hookimpl
        def inject_adapter(self) -> nn.Module:
            raise fault from cause

    with pytest.raises(type(fault)) as raised:
        called(bound("method", Raising()), "inject_adapter")
    assert raised.value is fault
    assert isinstance(fault.__cause__, FtcoreError)
    assert str(fault.__cause__) == "in inject_adapter of method 'nova' (ftcore-nova 1.5)"
    assert fault.__cause__.__cause__ is cause


def test_a_fault_of_the_core_names_no_plugin() -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        called(bound("method", Loads()), "train_step")
    assert not hasattr(raised.value, "__notes__")


def test_an_error_of_ftcore_passes_a_hook_as_it_is() -> None:
    @options
    class Refusing:
        """Refuses."""

        @hookimpl
        def prepare_data(self) -> Data:
            raise Refused("the file is blue; paint it")

    with pytest.raises(Refused, match=r"^the file is blue; paint it$"):
        called(bound("task", Refusing()), "prepare_data")


# Fit


@options
class Loads:
    """Asks the loader for something."""

    value: int = 0

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any]:
        return {"low": True, "bits": self.value}


def test_plugins_that_agree_on_how_to_load_are_heard_together() -> None:
    hooks = bind([chosen("method", Loads(value=4)), Chosen("extension", "half", "", "", Loads(value=4))], Core())
    assert hooks.load_kwargs(Run(Settings(), "train", "")) == {"low": True, "bits": 4}


def test_plugins_that_disagree_on_how_to_load_are_refused_by_name() -> None:
    hooks = bind([chosen("method", Loads(value=4)), Chosen("extension", "half", "", "", Loads(value=8))], Core())
    with pytest.raises(Refused) as raised:
        hooks.load_kwargs(Run(Settings(), "train", ""))
    for part in ("method 'nova' (ftcore-nova 1.5)", "extension 'half'", "'bits'", "drop one"):
        assert part in str(raised.value)


def test_a_hook_that_wants_what_no_hook_offers_is_refused() -> None:
    class Wrong:
        @hookimpl
        def inject_adapter(self, mdl: nn.Module) -> nn.Module:
            return mdl

    with pytest.raises(Refused) as raised:
        bound("method", Wrong())
    for part in ("method 'nova' (ftcore-nova 1.5) does not fit this ftcore", "mdl", "inject_adapter"):
        assert part in str(raised.value)


def test_a_hook_that_does_not_exist_is_refused() -> None:
    class Wrong:
        @hookimpl
        def inject_adaptor(self, model: nn.Module) -> nn.Module:
            return model

    with pytest.raises(Refused, match=r"method 'nova' .*inject_adaptor"):
        bound("method", Wrong())


def test_a_method_that_cannot_be_merged_says_so() -> None:
    with pytest.raises(Refused, match=r"method 'nova' .* cannot be merged"):
        called(bound("method", Loads()), "merge")


def test_plugins_that_cannot_stand_beside_each_other_are_refused_by_what_they_declare() -> None:
    two = [choose("method", "lora", {}), choose("method", "full", {})]
    with pytest.raises(Refused, match=r"method 'full' .* 'lora'"):
        bind(two, Core())
    with pytest.raises(Refused, match="'lora' is named twice"):
        bind([two[0], two[0]], Core())

    class Classifies:
        head = "classification"

    with pytest.raises(Refused, match=r"task 'nova' .*'classification'.*model 'qwen' .*causal-lm"):
        bind([chosen("task", Classifies()), choose("model", "qwen", {})], Core())


def test_a_method_is_refused_beside_a_task_whose_head_it_does_not_adapt() -> None:
    class Generates:
        only_heads = ("causal-lm", "seq2seq-lm")

    class Classifies:
        head = "sequence-classification"

    with pytest.raises(Refused) as raised:
        bind([chosen("method", Generates()), Chosen("task", "sorts", "", "", Classifies())], Core())
    for part in ("task 'sorts'", "'sequence-classification'", "method 'nova'", "causal-lm, seq2seq-lm"):
        assert part in str(raised.value)


def test_a_hook_that_leaves_the_process_is_a_fault_that_names_the_plugin() -> None:
    @options
    class Leaving:
        """Leaves."""

        @hookimpl
        def prepare_data(self) -> Data:
            raise SystemExit(0)

    with pytest.raises(FtcoreError, match=r"task 'nova' \(ftcore-nova 1.5\) tried to end the process in prepare_data"):
        called(bound("task", Leaving()), "prepare_data")


# Instances


def test_an_instance_is_the_installed_plugin_of_its_class() -> None:
    given = LoRA(r=2)
    one = choose("method", given, {})
    assert one.plugin is given
    assert one.label == find("method", "lora").label
    assert choose("method", Full(), {}).name == "full"


def test_an_instance_of_a_class_that_nobody_installed_works_too() -> None:
    one = choose("method", Loads(), {})
    assert (one.name, one.distribution, one.label) == ("loads", "", "method 'loads'")
    with pytest.raises(Refused, match="instance"):
        choose("method", Loads(), {"value": 1})


def test_one_instance_may_take_part_in_two_runs() -> None:
    one = chosen("method", Loads())
    assert bind([one], Core()).manager is not bind([one], Core()).manager


def test_a_method_of_ones_own_works_on_any_module_without_being_installed() -> None:
    @options
    class Biases:
        """Trains what is called bias."""

        @hookimpl
        def inject_adapter(self, model: nn.Module) -> nn.Module:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))
            return model

    model = ftcore.inject(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), method=Biases())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.bias", "1.bias"]
    assert torch.equal(model(torch.zeros(1, 2)), model(torch.zeros(1, 2)))


def test_offers_are_sorted_by_kind_and_name() -> None:
    found = [(offer.kind, offer.name) for offer in offers()]
    order = {"method": 0, "task": 1, "model": 2, "extension": 3}
    assert found == sorted(found, key=lambda one: (order[one[0]], one[1]))


class OwnStep:
    """A method that makes the training step its own way."""

    @hookimpl
    def train_step(self, step: int) -> float:
        """No step at all."""
        return float(step)


class AroundStep:
    """A method that acts around the step of others."""

    @hookimpl(wrapper=True)
    def train_step(self, step: int) -> Generator[None, float, float]:
        """The step of others."""
        return (yield)


def test_two_methods_that_each_make_the_step_are_refused_and_one_around_another_is_not() -> None:
    one, other, around = (Chosen("method", name, "", "", plugin) for name, plugin in (
        ("one", OwnStep()), ("other", OwnStep()), ("around", AroundStep()),
    ))  # fmt: skip
    with pytest.raises(Refused, match=r"method 'one' and 'other' each make the training step their own way; drop one"):
        check_combination([one, other])
    check_combination([one, around])
