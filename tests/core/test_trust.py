"""Only plugins of the distributions that are asked for are offered or imported, and code is known again by its text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ftcore
import pytest
from ftcore import Refused, discovery
from ftcore.config import read, resolve
from ftcore.discovery import choose, code_of, find, listing, offers, only_from
from ftcore_lora import LoRA

Publish = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
NAMES = {"task": "causal", "model": "qwen"}
USUAL = "ftcore-lora,ftcore-causal,ftcore-qwen"
MARK = "open(__file__ + '.imported', 'w').close()\n"
BIASES = '''
from typing import Annotated
from ftcore import hookimpl, options
from pydantic import Field

@options
class It:
    """Trains biases."""
    r: Annotated[int, Field(description="A number.")] = {default}

    @hookimpl
    def inject_adapter(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("q_proj.bias"))
        return model

    @hookimpl
    def merge(self, model):
        return model
'''


def names() -> set[str]:
    return {offer.name for offer in offers()}


@pytest.fixture
def strange(publish: Publish, tmp_path: Path) -> Callable[[], bool]:
    """An installed method `strange`; called, whether it was ever imported."""
    publish("ftcore-strange", "method", "strange", MARK + BIASES.format(default=1))
    return lambda: bool(list(tmp_path.rglob("*.imported")))


# In programs


def test_only_what_the_listed_distributions_offer_is_there() -> None:
    everything = names()
    with only_from("ftcore-lora", "FTCORE_Causal"):
        assert names() == {"lora", "causal"}
        with only_from("ftcore-qwen"):
            assert names() == {"qwen"}
        assert names() == {"lora", "causal"}
        with only_from():
            assert names() == set()
    assert names() == everything


def test_a_left_out_plugin_is_refused_by_the_list_that_leaves_it_out_and_never_imported(
    strange: Callable[[], bool],
) -> None:
    with only_from(*USUAL.split(",")):
        with pytest.raises(Refused) as raised:
            resolve({**NAMES, "method": "strange"})
        assert resolve({**NAMES, "method": "lora"}).named("method") == "lora"
        errors = {plugin["name"]: plugin["error"] for plugin in listing()}
    said = "method 'strange' (ftcore-strange 1.5) is not among only_from('ftcore-lora', 'ftcore-causal', 'ftcore-qwen')"
    assert str(raised.value) == errors["strange"] == f"{said}; add ftcore-strange to use it"
    assert errors["lora"] is None
    with only_from(), pytest.raises(Refused, match=r"left out by only_from\(\); name ftcore-strange with"):
        find("method", "strange")
    assert not strange()


def test_an_instance_of_a_left_out_plugin_is_refused_too() -> None:
    with only_from("ftcore-qwen"), pytest.raises(Refused, match=r"method 'lora' .* is not among"):
        choose("method", LoRA(), {})


def test_an_unknown_distribution_is_refused_with_the_nearest() -> None:
    with only_from("ftcore-lroa"), pytest.raises(Refused, match=r"names 'ftcore-lroa'.*did you mean 'ftcore-lora'\?"):
        offers()
    with (
        only_from("numpy"),
        pytest.raises(Refused, match=r"no such distribution with plugins.*there are .*ftcore-causal"),
    ):
        listing()


def test_the_list_holds_for_the_thread_that_entered_it() -> None:
    everything = names()
    with only_from("ftcore-lora"), ThreadPoolExecutor() as threads:
        assert threads.submit(names).result() == everything
        assert names() == {"lora"}


def test_the_list_tells_two_of_one_name_apart_and_the_record_does_not_need_it(publish: Publish) -> None:
    publish("ftcore-nova", "method", "nova", BIASES.format(default=3))
    publish("other-nova", "method", "nova", BIASES.format(default=4))
    with only_from("other-nova", "ftcore-causal", "ftcore-qwen"):
        recipe = resolve({**NAMES, "method": "nova"})
        assert [p["error"] for p in listing() if p["distribution"] == "other-nova"] == [None]
    assert recipe.chosen[0].distribution == "other-nova"
    assert resolve(recipe.plain()).chosen[0].distribution == "other-nova"
    assert "plugins_from" not in json.dumps(recipe.plain())


def test_the_environment_holds_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCORE_PLUGINS", "ftcore-lora, ftcore-qwen,")
    assert names() == {"lora", "qwen"}
    with only_from("ftcore-causal"):
        assert names() == {"causal"}
    with pytest.raises(Refused, match="is not among FTCORE_PLUGINS=ftcore-lora, ftcore-qwen,; add ftcore-causal"):
        find("task", "causal")
    monkeypatch.setenv("FTCORE_PLUGINS", "")
    assert names() == set()


# At the command line


@pytest.mark.parametrize(
    "line",
    [
        "--plugins-from ftcore-lora,ftcore-qwen plugins --json",
        "plugins --plugins-from ftcore-lora,ftcore-qwen --json",
        "plugins --json --plugins-from=ftcore-lora,ftcore-qwen",
        "--plugins-from ftcore-lora plugins --json --plugins-from ftcore-qwen",
    ],
)
def test_the_flag_may_stand_anywhere(command: Command, strange: Callable[[], bool], line: str) -> None:
    done = command(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    errors = {plugin["name"]: plugin["error"] for plugin in json.loads(done.stdout)}
    assert {name for name, error in errors.items() if error is None} == {"lora", "qwen"}
    assert "is not among --plugins-from " in errors["strange"]
    assert errors["strange"].endswith("; add ftcore-strange to use it")
    assert not strange()


@pytest.mark.parametrize("line", ["--no-plugins plugins", "plugins --no-plugins"])
def test_no_plugins_leaves_all_of_them_out(command: Command, strange: Callable[[], bool], line: str) -> None:
    done = command(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(discovery.announced())
    assert all("left out by --no-plugins" in said for said in lines)
    assert not strange()


def test_the_environment_is_heard_by_the_command_and_the_flag_wins(
    command: Command, strange: Callable[[], bool]
) -> None:
    allowed = {"FTCORE_PLUGINS": "ftcore-lora"}
    told = {p["name"]: p["error"] for p in json.loads(command("plugins", "--json", **allowed).stdout)}
    assert told["strange"].startswith("method 'strange' (ftcore-strange 1.5) is not among FTCORE_PLUGINS=ftcore-lora")
    flags = ["run", "--method", "strange", "--help"]
    refused = command(*flags, **allowed)
    assert refused.returncode == 2
    assert refused.stderr == (
        "ftcore: method 'strange' (ftcore-strange 1.5) is not among FTCORE_PLUGINS=ftcore-lora; "
        "add ftcore-strange to use it\n"
    )
    assert not strange()
    assert "--strange.r" in command(*flags, "--plugins-from", "ftcore-strange", **allowed).stdout
    assert strange()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plugins --plugins-from ftcore-lroa", "did you mean 'ftcore-lora'?"),
        ("plugins --plugins-from", "names no distribution"),
        ("plugins --plugins-from --json", "names no distribution"),
        ("plugins --plugins-from=", "names no distribution"),
        ("plugins --no-plugins --plugins-from ftcore-lora", "give one of them"),
        (f"run --plugins-from {USUAL} --method full", "method 'full' (ftcore-full 0.1.0) is not among --plugins-from"),
        ("chat somewhere --plugins-from ftcore-lora --model qwen", "add ftcore-qwen to use it"),
    ],
)
def test_a_slip_with_the_list_is_refused_in_one_sentence(command: Command, line: str, said: str) -> None:
    done = command(*line.split())
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_flags_are_in_the_help_and_end_at_two_dashes(command: Command) -> None:
    told = command("--help").stdout
    assert "--plugins-from DIST[,DIST…]" in told
    assert "--no-plugins" in told
    assert "FTCORE_PLUGINS" in told
    assert "no run file '--no-plugins'" in command("run", "--", "--no-plugins").stderr


# The code


def test_the_same_code_has_the_same_digest_wherever_it_lies(publish: Publish, tmp_path: Path) -> None:
    folder = publish("ftcore-nova", "method", "nova", BIASES.format(default=3), package=True)
    (folder / "ftcore_nova_module" / "more").mkdir()
    (folder / "ftcore_nova_module" / "more" / "parts.py").write_text("PARTS = 1\n")
    told = {digest_in(folder)}
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "site-packages"))
    told.add(digest_in(moved))
    (moved / "ftcore_nova_module" / "notes.txt").write_text("no code")
    told.add(digest_in(moved))
    assert len(told) == 1
    (moved / "ftcore_nova_module" / "more" / "parts.py").write_text("PARTS = 2\n")
    assert digest_in(moved) not in told
    (moved / "ftcore_nova_module" / "more" / "parts.py").rename(moved / "ftcore_nova_module" / "parts.py")
    assert len({digest_in(moved), *told}) == 2


def digest_in(folder: Path) -> str:
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from ftcore.discovery import code_of, find; print(code_of(find('method', 'nova').load()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 64
    return done.stdout.strip()


def test_a_change_in_the_plugin_that_one_inherits_from_changes_the_digest(publish: Publish) -> None:
    folder = publish("ftcore-parent", "method", "parent", BIASES.format(default=3))
    child = "from ftcore_parent_module import It as Parent\nclass It(Parent): pass"
    publish("ftcore-child", "method", "child", child)
    before = code_of(choose("method", "child", {}).plugin)
    file = folder / "ftcore_parent_module.py"
    file.write_text(file.read_text() + "# changed\n")
    assert code_of(choose("method", "child", {}).plugin) != before


def test_the_core_and_libraries_are_no_part_of_a_plugins_code() -> None:
    found = discovery.own_classes(LoRA, {"ftcore_lora", "ftcore_peft"})
    assert {cls.__module__ for cls in found} == {"ftcore_lora", "ftcore_peft"}
    assert code_of(LoRA()) == code_of(LoRA(r=3)) == code_of(LoRA)
    assert code_of(object()) is None
    assert code_of(subprocess.Popen) is None


def test_a_class_of_a_script_is_known_by_its_own_text(tmp_path: Path) -> None:
    program = (
        "from ftcore import options\nfrom ftcore.discovery import code_of\n\n@options\nclass Mine:\n    '''Mine.'''\n"
        "    r: int = {r}\n\nprint(code_of(Mine())){end}\n"
    )

    def told(r: int, end: str) -> str:
        (tmp_path / "script.py").write_text(program.format(r=r, end=end))
        script = [sys.executable, tmp_path / "script.py"]
        return subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()

    first = told(1, "")
    assert len(first) == 64
    assert told(1, "  # something else") == first
    assert told(2, "") != first


def test_a_class_without_any_text_has_no_digest_and_works() -> None:
    program = (
        "from ftcore import options\nfrom ftcore.discovery import choose, code_of\n"
        "@options\nclass Mine:\n    '''Mine.'''\n"
        "print(choose('method', Mine(), {}).label, code_of(Mine()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "method 'mine' None\n"


# One name, two distributions


@pytest.fixture
def finished(publish: Publish, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> dict[str, Any]:
    """The keys of a finished run of the second of two methods called nova; its output is `run`."""
    publish("ftcore-nova", "method", "nova", BIASES.format(default=3))
    publish("other-nova", "method", "nova", BIASES.format(default=4))
    keys: dict[str, Any] = {
        **NAMES, "method": "other-nova:nova", "nova": {"r": 7}, "checkpoint": str(checkpoint("qwen2")),
        "data": str(rows), "steps": 2, "batch_size": 4, "output": str(tmp_path / "run"),
    }  # fmt: skip
    ftcore.run(**keys)
    return keys


def test_one_of_two_is_chosen_in_every_way_and_for_everything(
    publish: Publish, command: Command, finished: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    saved = json.loads((output / "ftcore.json").read_text())
    assert saved["run"]["method"] == "other-nova:nova"
    assert saved["plugins"][0]["distribution"] == "other-nova"
    assert ftcore.run(**finished).steps == 2  # found finished
    assert resolve(read(output / "ftcore.json")).plain()["nova"] == {"r": 7}
    flat = {key: value for key, value in finished.items() if key not in ("nova", "output")}
    flags = [part for key, value in flat.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    planned = command("plan", *flags, "--nova.r", "7", "--json")
    assert planned.returncode == 0, planned.stderr
    assert [p["distribution"] for p in json.loads(planned.stdout)["plugins"] if p["name"] == "nova"] == ["other-nova"]
    assert (
        "provided by ftcore-nova 1.5 and other-nova 1.5; write ftcore-nova:nova"
        in command("plugins", "show", "nova").stderr
    )
    assert "other-nova 1.5" in command("plugins", "show", "other-nova:nova").stdout
    merged = command("merge", str(output), "--output", str(tmp_path / "merged"))
    assert merged.returncode == 0, merged.stderr
    assert ftcore.attach(output).parts


def test_a_run_made_before_another_took_its_name_is_still_merged_and_resumed(
    publish: Publish, finished: dict[str, Any], tmp_path: Path
) -> None:
    record = tmp_path / "run" / "ftcore.json"
    saved = json.loads(record.read_text())
    saved["run"]["method"] = "nova"  # as it is written where only one is installed
    record.write_text(json.dumps(saved))
    assert ftcore.attach(tmp_path / "run").parts
    assert ftcore.merge(tmp_path / "run", output=tmp_path / "merged").is_dir()
    assert ftcore.run(**finished).steps == 2
    with pytest.raises(Refused, match=r'method \'nova\' was "other-nova 1.5" and is now "ftcore-nova 1.5"'):
        ftcore.run(**{**finished, "method": "ftcore-nova:nova"})
