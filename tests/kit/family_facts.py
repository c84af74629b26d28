"""What tests ask of every family: the numbers of a published shape, plain transformers' answers, complete parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.batches import TokenRow
from ftcore.discovery import find
from ftcore.families import HEADS, HFModel
from ftcore.hooks import Intent, Loaded, Run
from ftcore.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.arange(5, 65).reshape(2, 30)


def shipped() -> Mapping[str, type[HFModel]]:
    """The classes of the families in this repository, by name."""
    names = sorted(file.parent.name for file in ROOT.glob("plugins/models/*/pyproject.toml"))
    return {name: find("model", f"ftcore-{name}:{name}").load() for name in names}


def loaded(family: HFModel, folder: Path, head: str = "causal-lm", intent: Intent = "train") -> Loaded:
    """What the family makes of a checkpoint for a task with this head."""
    return family.load_model(Run(Settings(checkpoint=str(folder)), intent, head), {})


def planned(family: HFModel, fields: Mapping[str, Any], folder: Path, head: str = "causal-lm") -> Loaded:
    """What a plan makes of a directory that holds nothing but a config.json with these fields."""
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return loaded(family, folder, head, "plan")


def numbers(found: Loaded) -> int:
    """How many numbers the weights hold, one that is shared counted once."""
    model: Any = found.model
    return sum(parameter.numel() for parameter in model.parameters())


def answers_as_plain_transformers(
    family: HFModel, folder: Path, head: str = "causal-lm", **asked: torch.Tensor
) -> Loaded:
    """What the family makes of a checkpoint; AssertionError unless it is and answers as transformers' own does."""
    import transformers

    found, plain = loaded(family, folder, head), getattr(transformers, HEADS[head]).from_pretrained(folder)
    model: Any = found.model
    assert type(model) is type(plain)
    with torch.no_grad():
        answers, wanted = (one.eval()(**(asked or {"input_ids": IDS}))[0] for one in (model, plain))
    assert torch.allclose(answers, wanted, atol=1e-5)
    return found


def outside_of_parts(found: Loaded) -> set[str]:
    """The modules with weights of their own that no role but `block` names; every role names modules."""
    modules = dict(found.model.named_modules())
    assert all(name in modules for names in found.parts.values() for name in names)
    named = {name for role, names in found.parts.items() if role != "block" for name in names}
    weighty = {name for name, module in modules.items() if module._parameters}
    assert named <= weighty
    return weighty - named


def same_tensors(family: HFModel, folder: Path, other: Path, head: str = "causal-lm") -> bool:
    """Whether the family makes the same of two checkpoints, tensor by tensor."""
    models: list[Any] = [loaded(family, place, head).model for place in (folder, other)]
    wanted, found = (model.state_dict() for model in models)
    return bool(wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted))


def difference(one: Any, other: Any) -> float:
    """The largest difference of the answers of two models."""
    with torch.no_grad():
        return float((one(IDS).logits - other(IDS).logits).abs().max())


def cost_alone(plain: Any, rows: Sequence[TokenRow]) -> float:
    """What transformers' own loss says of rows one by one, summed over their supervised tokens."""
    total = 0.0
    with torch.no_grad():
        for row in rows:
            ids, labels = (torch.from_numpy(one[None].astype("int64")) for one in (row.input_ids, row.labels))
            total += float(plain(input_ids=ids, labels=labels).loss) * row.supervised
    return total


def refuses_another_type(family: HFModel, folder: Path, loads: str, head: str = "causal-lm") -> None:
    """AssertionError unless a checkpoint of another type is refused with the types that the family `loads`."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    with pytest.raises(ftcore.Refused) as refused:
        loaded(family, folder, head)
    assert f"is of type '{kind}', and this family loads {loads}" in str(refused.value)
