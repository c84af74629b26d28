"""No code that a checkpoint brings runs, whatever family loads, plans or converts it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import difference, shipped
from ftcore.discovery import declared_datum
from ftcore.testing.methods.properties import Exercise, head_fields
from ftcore.testing.stage import tiny_checkpoint
from original_checkpoints import MEMBERS, Member, original_checkpoint

FAMILIES = shipped()
MODULES = ("configuration", "modeling", "tokenization")
AUTO = {
    "AutoConfig": "configuration_{0}.Trap", "AutoModel": "modeling_{0}.Trap",
    "AutoModelForCausalLM": "modeling_{0}.Trap", "AutoModelForMaskedLM": "modeling_{0}.Trap",
    "AutoModelForSeq2SeqLM": "modeling_{0}.Trap", "AutoModelForTokenClassification": "modeling_{0}.Trap",
}  # fmt: skip


class Pickled:
    """Unpickling it makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Called by pickle."""
        return (Path.mkdir, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What is there once code of a checkpoint has run."""
    return tmp_path / "ran"


def trap(folder: Path, marker: Path, *, tokens: bool = True) -> None:
    """`folder` names modules of its own for everything, and each makes the marker when it is imported.

    With `tokens` its tokenizer is of a class that only they have.
    """
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = fields["model_type"]
    for module in MODULES:
        (folder / f"{module}_{name}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n", encoding="utf-8")
    fields |= {"auto_map": {auto: place.format(name) for auto, place in AUTO.items()}, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    both = [f"tokenization_{name}.Trap", f"tokenization_{name}.Trap"]
    said |= {"auto_map": {"AutoTokenizer": both}, **({"tokenizer_class": "Trap"} if tokens else {})}
    file.write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_an_original_loads_plans_and_converts_beside_code_that_never_runs(
    member: Member, marker: Path, story: Path, pieces: Callable[..., bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "original"
    model = original_checkpoint(member, folder, pieces(("▁cat", "rain")))
    trap(folder, marker)
    loaded = ftcore.load(member.family, checkpoint=folder, **member.options)
    assert type(loaded.model) is type(model)
    assert difference(loaded.model, model) < 1e-6
    assert type(loaded.tokenizer).__module__.startswith("transformers.")
    keys = {"model": member.plugin, "checkpoint": folder, "data": story, "max_length": 64}
    assert ftcore.plan(method="lora", task="pretrain", **keys).refused is None
    converted = ftcore.convert(folder, model=member.family, output=tmp_path / "plain", **member.options)
    assert not list(converted.glob("*.py"))
    assert "auto_map" not in (converted / "config.json").read_text(encoding="utf-8")
    assert difference(ftcore.load(member.family, checkpoint=converted).model, model) < 1e-6
    assert not marker.exists()


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_an_originals_pickle_that_holds_more_than_tensors_is_refused_and_planned_without(
    member: Member, marker: Path, story: Path, pieces: Callable[..., bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "original"
    original_checkpoint(member, folder, pieces(("▁cat", "rain")), pickled=True)
    trap(folder, marker)
    file = folder / "pytorch_model.bin"
    torch.save({**torch.load(file, weights_only=True), "trap": Pickled(marker)}, file)
    with pytest.raises(ftcore.Refused, match=r"the weights in '.*' cannot be read: not readable is pytorch_model\.bin"):
        ftcore.load(member.family, checkpoint=folder, **member.options)
    keys = {"model": member.plugin, "checkpoint": folder, "data": story, "max_length": 64}
    assert ftcore.plan(method="lora", task="pretrain", **keys).refused is None
    assert not marker.exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_native_checkpoint_loads_beside_code_that_never_runs(name: str, marker: Path, tmp_path: Path) -> None:
    cls = FAMILIES[name]
    kind, head = (cls.model_types or ("olmo2",))[0], cls.heads[0]
    fields = {**head_fields(head), **declared_datum(cls, "tiny").get(kind, {})}
    folder = Path(shutil.copytree(tiny_checkpoint(kind, head, **fields), tmp_path / "native"))
    trap(folder, marker, tokens=False)
    task = Exercise(head=head)
    loaded = ftcore.load(name, task=task, checkpoint=folder)
    assert type(loaded.model).__module__.startswith("transformers.")
    keys = {"model": name, "task": task, "checkpoint": folder}
    assert ftcore.plan(method="full", **keys).refused is None
    trap(folder, marker)
    try:
        loaded = ftcore.load(name, task=task, checkpoint=folder)
    except ftcore.Refused as refused:  # some types have no other class for the tokenizer
        assert "no such code is ever run; name a tokenizer_class of transformers" in str(refused)  # noqa: PT017
    else:
        assert type(loaded.tokenizer).__module__.startswith("transformers.")
    (folder / "model.safetensors").unlink()
    torch.save({"trap": Pickled(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ftcore.Refused, match=r"the (weights|tokenizer) in '.*' cannot be read"):
        ftcore.load(name, task=task, checkpoint=folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "trap"}), encoding="utf-8")
    with pytest.raises(ftcore.Refused, match=r"the config\.json in '.*' cannot be read: (it is of|only code)"):
        ftcore.load(name, task=task, checkpoint=folder)
    refused = ftcore.plan(method="full", **keys).refused
    assert refused
    assert "trust_remote_code" not in refused
    assert not marker.exists()
