"""What a plugin was built for, what of it a run records, and how the contract lets go of something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import ftcore
import pytest
from ftcore import Refused, discovery, errors, hookimpl, hooks, options, trust
from ftcore.directory import plugin_changes
from ftcore.discovery import Chosen, bind, choose, find, listing
from ftcore.errors import Deprecated
from ftcore.training import Core
from packaging.version import Version
from torch import nn

Publish = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
FINE = "class It: pass"
BIASES = '''
from ftcore import hookimpl, options

@options
class It:
    """Trains biases."""

    @hookimpl
    def inject_adapter(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("q_proj.bias"))
        return model

    @hookimpl
    def merge(self, model):
        return model
'''


# The contract that a plugin was built for


@pytest.fixture
def ftcore_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`ftcore_is("1.2.0")` makes that the installed version."""
    real = metadata.version

    def become(version: str) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: version if name == "ftcore" else real(name))

    return become


@pytest.mark.parametrize(
    ("version", "requires", "fits"),
    [
        ("0.1.0", "", True),
        ("0.1.0", "ftcore", True),
        ("0.1.0", "ftcore>=0.1,<0.2", True),
        ("0.1.7", "ftcore (<0.2,>=0.1)", True),
        ("0.1.0", "ftcore[dev]~=0.1.0", True),
        ("0.1.0", "FTCORE >=2", False),
        ("0.1.0", "ftcore>=0.2,<0.3", False),
        ("2.0.0", "ftcore>=0.1,<0.2", False),
        ("0.1.0", "ftcore-other>=2", True),
        ("0.1.0", "ftcore_other>=2", True),
        ("0.1.0", "ftcore>=2; python_version < '3'", True),
        ("0.1.0", "ftcore>=2; extra == 'new'", True),
        ("0.1.0", "ftcore @ https://example.org/ftcore.whl", True),
        ("0.1.0", "ftcore>>2", False),
        ("0.2.0.dev3", "ftcore>=0.2,<0.3", True),
        ("0.2.0rc1", "ftcore>=0.2,<0.3", True),
        ("0.2.0rc1", "ftcore>=0.2.0rc1", True),
        ("0.2.0rc1", "ftcore>=0.1,<0.2", False),
        ("0.1.1a1", "ftcore>=0.1,<0.2", True),
        ("0.1.0+local", "ftcore>=0.1,<0.2", True),
        ("0.1.0.post1", "ftcore>=0.1,<0.2", True),
    ],
)
def test_a_plugin_fits_the_ftcore_that_its_distribution_requires(
    publish: Publish, ftcore_is: Callable[[str], None], version: str, requires: str, fits: bool
) -> None:
    ftcore_is(version)
    publish("ftcore-nova", "method", "nova", FINE, requires=requires)
    offer = next(offer for offer in discovery.announced() if offer.name == "nova")
    assert (offer.flaw() is None) == fits
    if not fits:
        with pytest.raises(Refused, match=f"^{re.escape(offer.flaw() or '')}$"):
            find("method", "nova")


def test_a_plugin_for_another_contract_is_refused_with_both_versions_and_not_imported(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", BIASES, requires="ftcore<3,>=2")
    said = (
        f"method 'nova' (ftcore-nova 1.5) was built for ftcore >=2,<3 and this is ftcore {metadata.version('ftcore')}; "
        "install a version of ftcore-nova made for it"
    )
    assert {plugin["name"]: plugin["error"] for plugin in listing()}["nova"] == said
    with pytest.raises(Refused) as raised:
        choose("method", "nova", {})
    assert str(raised.value) == said
    assert "ftcore_nova_module" not in sys.modules


def test_an_instance_of_a_plugin_for_another_contract_is_refused_too(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", BIASES, requires="ftcore>=2")
    from ftcore_nova_module import It  # type: ignore[import-not-found]

    with pytest.raises(Refused, match="was built for ftcore >=2 and this is"):
        choose("method", It(), {})


def test_every_plugin_of_this_repository_states_its_range() -> None:
    ours = [offer for offer in discovery.announced() if offer.distribution.startswith("ftcore-")]
    assert len(ours) >= 7
    assert [offer.label for offer in ours if not re.search(r">=.*<|<.*>=", "".join(offer.requires))] == []


# What a run records


@pytest.fixture
def keys(publish: Publish, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> dict[str, Any]:
    """The keys of a finished run of a method that is installed as ftcore-nova 1.5; its output is `run`."""
    publish("ftcore-nova", "method", "nova", BIASES)
    keys: dict[str, Any] = {
        "method": "nova", "task": "causal", "model": "qwen", "checkpoint": str(checkpoint("qwen2")), "data": str(rows),
        "steps": 2, "batch_size": 4, "output": str(tmp_path / "run"),
    }  # fmt: skip
    ftcore.run(**keys)
    return keys


@pytest.fixture
def change(tmp_path: Path) -> Callable[..., None]:
    """`change(code=True)` or `change(version="1.6")` changes what is installed as ftcore-nova."""
    folder = tmp_path / "installed" / "ftcore-nova"

    def make(*, code: bool = False, version: str = "1.5") -> None:
        described = folder / "ftcore_nova-1.5.dist-info" / "METADATA"
        described.write_text(described.read_text().replace("Version: 1.5", f"Version: {version}"))
        if code:
            (folder / "ftcore_nova_module.py").write_text(f"{BIASES}\n# changed\n")

    return make


class Said:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **more: None

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_records_each_plugin_with_its_distribution_version_and_code(keys: dict[str, Any]) -> None:
    recorded = json.loads((Path(keys["output"]) / "ftcore.json").read_text())["plugins"]
    assert [sorted(plugin) for plugin in recorded] == [["distribution", "kind", "name", "sha256", "version"]] * 3
    assert [re.fullmatch("[0-9a-f]{64}", plugin["sha256"]) is None for plugin in recorded] == [False] * 3
    assert recorded[0] | {"sha256": ""} == {
        "kind": "method", "name": "nova", "distribution": "ftcore-nova", "version": "1.5", "sha256": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": "1.6"}, r'method \'nova\' was "ftcore-nova 1\.5" and is now "ftcore-nova 1\.6"'),
        (
            {"code": True},
            r"the code of method 'nova' \(ftcore-nova 1\.5\) was \"sha256 [0-9a-f]{12}\" "
            r"and is now \"sha256 [0-9a-f]{12}\"",
        ),
    ],
)
def test_a_changed_plugin_is_refused_and_noted_when_that_is_allowed(
    keys: dict[str, Any], change: Callable[..., None], changed: dict[str, Any], said: str
) -> None:
    change(**changed)
    with pytest.raises(Refused, match=f"holds another run: {said}; name a new --output, or go on with --allow-drift"):
        ftcore.run(**keys)
    screen: Any = Said()
    ftcore.run(**keys, allow_drift=True, screen=screen)
    assert [line for line in screen.lines if re.fullmatch(f"note: {said}", line)]


def test_a_run_from_before_code_was_recorded_is_resumed(keys: dict[str, Any], change: Callable[..., None]) -> None:
    record = Path(keys["output"]) / "ftcore.json"
    saved = json.loads(record.read_text())
    for plugin in saved["plugins"]:
        del plugin["sha256"]
    record.write_text(json.dumps(saved))
    change(code=True)
    screen: Any = Said()
    assert ftcore.run(**keys, screen=screen).steps == 2
    assert [line for line in screen.lines if "nova" in line and line.startswith("note")] == []
    change(version="1.6")
    ftcore.run(**keys, screen=screen)
    assert 'note: method \'nova\' was "ftcore-nova 1.5" and is now "ftcore-nova 1.6"' in screen.lines


def test_a_finished_run_is_merged_evaluated_and_attached_with_a_changed_plugin_and_a_note(
    keys: dict[str, Any], change: Callable[..., None], command: Command, tmp_path: Path
) -> None:
    change(code=True)
    for words in (["merge", keys["output"], "--output", str(tmp_path / "merged")], ["evaluate", keys["output"]]):
        done = command(*words, *(["--data", keys["data"]] if words[0] == "evaluate" else []))
        assert done.returncode == 0, done.stderr
        assert re.search(r"note: the code of method 'nova' \(ftcore-nova 1\.5\) was", done.stderr), done.stderr
    assert ftcore.attach(keys["output"]).parts
    change(version="1.6")
    assert ftcore.merge(keys["output"], output=tmp_path / "again").is_dir()


def test_an_unchanged_plugin_needs_no_note(keys: dict[str, Any], command: Command) -> None:
    done = command("evaluate", keys["output"], "--data", keys["data"])
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr


def test_a_plugin_without_known_code_is_compared_by_origin_only() -> None:
    known = {"kind": "method", "name": "nova", "distribution": "", "version": "", "sha256": "0" * 64}
    assert plugin_changes([known], [known | {"sha256": None}]) == []
    assert plugin_changes([known | {"sha256": None}], [known]) == []
    assert str(*plugin_changes([known], [known | {"sha256": "1" * 64}])) == (
        'the code of method \'nova\' (installed nowhere) was "sha256 000000000000" and is now "sha256 111111111111"'
    )
    installed = known | {"distribution": "ftcore-nova", "version": "1"}
    assert str(*plugin_changes([known], [installed])) == (
        'method \'nova\' was "installed nowhere" and is now "ftcore-nova 1"'
    )
    assert plugin_changes([installed], [known | {"name": "other"}]) == []


# Letting go


class RemovedIn99(Deprecated):
    """A removal announced by this test."""

    removed_in = "99.0"


@options
class Outdated:
    """Relies on what goes away."""

    @hookimpl
    def old_hook(self, run: hooks.Run) -> None:
        return None

    @hookimpl
    def merge(self, run: hooks.Run, model: nn.Module) -> nn.Module:
        return model


@options
class Current:
    """Relies on nothing that goes away."""

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        return model


@pytest.fixture
def going(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract has a hook and an argument that go away."""

    def old_hook(run: hooks.Run) -> None:
        """Called by nobody."""

    def merge(run: hooks.Run, model: nn.Module) -> None:
        """Called as ever."""

    whole = hooks.hookspec(warn_on_impl=RemovedIn99("the hook 'old_hook'", "the hook 'merge'"))
    argument = hooks.hookspec(
        warn_on_impl_args={"run": RemovedIn99("the argument 'run' of merge", "the options of the plugin")}
    )
    monkeypatch.setattr(hooks, "old_hook", whole(old_hook), raising=False)
    monkeypatch.setattr(hooks, "merge", argument(merge))


@pytest.mark.usefixtures("going")
def test_relying_on_what_goes_away_warns_with_plugin_release_and_remedy_where_it_does() -> None:
    with pytest.warns(RemovedIn99) as warned:
        bind([Chosen("method", "nova", "ftcore-nova", "1.5", Outdated())], Core())
    assert [str(one.message) for one in warned] == [
        "method 'nova' (ftcore-nova 1.5) relies on the argument 'run' of merge, which goes away in ftcore 99.0; "
        "use the options of the plugin",
        "method 'nova' (ftcore-nova 1.5) relies on the hook 'old_hook', which goes away in ftcore 99.0; "
        "use the hook 'merge'",
    ]
    assert {one.filename for one in warned} == {__file__}


@pytest.mark.usefixtures("going")
def test_relying_on_nothing_that_goes_away_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bind([Chosen("method", "nova", "ftcore-nova", "1.5", Current())], Core())


def test_the_warning_is_seen_at_the_command_line_and_in_programs(tmp_path: Path) -> None:
    announce = (
        "import sys, warnings\nfrom ftcore.errors import Deprecated\nclass Removed(Deprecated): removed_in = '99.0'\n"
        "def warn(): warnings.warn(Removed('the hook x', 'the hook y', 'method m'))\n"
    )
    command = (
        f"{announce}from ftcore import cli\n"
        "cli.cli.commands['plugins'].callback = lambda **given: warn()\n"
        "sys.argv = ['ftcore', 'plugins']\ncli.main()"
    )
    for program in (f"{announce}warn()", command):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Removed: method m relies on the hook x, which goes away in ftcore 99.0; use the hook y" in done.stderr


def announced() -> list[type[Deprecated]]:
    """The removals that ftcore announces."""
    found = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Deprecated)]
    return [cls for cls in found if cls is not Deprecated]


def overdue(removals: list[type[Deprecated]], version: str) -> list[str]:
    """Those that should be gone in this version; a development version counts as the release it leads to."""
    now = Version(Version(version).base_version)
    return [cls.__name__ for cls in removals if now >= Version(cls.removed_in)]


def test_nothing_outstays_the_release_that_it_was_to_be_gone_in() -> None:
    assert overdue(announced(), metadata.version("ftcore")) == []


def test_what_outstays_its_release_is_found() -> None:
    class RemovedIn02(Deprecated):
        removed_in: ClassVar[str] = "0.2"

    assert overdue([RemovedIn02, RemovedIn99], "0.1.9") == []
    assert overdue([RemovedIn02, RemovedIn99], "0.2.0rc1") == ["RemovedIn02"]
    assert overdue([RemovedIn02, RemovedIn99], "99.1") == ["RemovedIn02", "RemovedIn99"]


def test_the_digest_of_a_builtin_is_none() -> None:
    assert trust.code_digest(int, set()) is None
