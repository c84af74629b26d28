"""Published adapters that were trained on a maker's own modules, as ones for the native model: exactly, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.adapters import called_formerly, endings
from ftcore.converting import Place
from ftcore.discovery import declared_datum, sound
from ftcore.errors import Refused
from ftcore.hooks import Adapter, Loaded
from ftcore.weights import Files

if TYPE_CHECKING:
    from torch import Tensor

OUTER, INNER = "base_model.model.", re.compile(r"\.(base_layer|modules_to_save|default)(?=\.)")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Fields of a configuration that name modules, and those that choose them by place, for which the tensors speak.
NAMING = ("modules_to_save", "feedforward_modules")
CHOOSING = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication", "base_model_name_or_path")


@dataclass(frozen=True)
class Modules:
    """For each module of the checkpoint's own form, the native modules that hold its rows and where they are."""

    of: Mapping[str, Mapping[str, Place]]

    @classmethod
    def cut(cls, places: Mapping[str, Place]) -> Modules:
        """As `places` say it of the modules' weights."""
        found: dict[str, dict[str, Place]] = {}
        for name, place in places.items():
            if place.source.endswith(".weight"):
                found.setdefault(module_of(place.source), {})[module_of(name)] = place
        return cls(found)


def module_of(tensor: str) -> str:
    """The module that a weight belongs to."""
    return tensor.rpartition(".")[0]


def natively(folder: Path, loaded: Loaded) -> Adapter:
    """The adapter in `folder`, trained on the makers' modules, as one for the native model; the change is the same.

    Refused by name where a tensor has no exact counterpart, for what the methods declare as `parted`.
    """
    if not loaded.places:
        raise Refused(f"the checkpoint '{loaded.checkpoint}' is a plain one already, and so are adapters on it")
    config, files = read_config(folder), Files(folder, ADAPTER_FILES)
    modules, parted = Modules.cut(loaded.places), known_parting()
    tensors, matched = dict[str, Any](), dict[str, str]()
    for name in files.shapes:
        for native, tensor, module in counterparts(folder, name, files.read(name), modules, loaded.places, parted):
            tensors[OUTER + native] = tensor
            matched |= module
    return Adapter(_config(config, matched, loaded), tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of an adapter_config.json; Refused when they cannot be read."""
    try:
        fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return dict(fields)
    except (OSError, ValueError, TypeError) as unreadable:
        raise Refused(
            f"the adapter in '{folder}' cannot be read: {unreadable}; name the directory of a published one"
        ) from None


def known_parting() -> Mapping[str, str]:
    """How each installed method's saved tensors are parted when the module that they are for is cut into several."""
    return {name: how for offer in sound("method") for name, how in declared_datum(offer.load(), "parted").items()}


def counterparts(
    folder: Path,
    name: str,
    tensor: Tensor,
    modules: Modules,
    places: Mapping[str, Place],
    parted: Mapping[str, str],
) -> Iterator[tuple[str, Tensor, dict[str, str]]]:
    """The native tensors made of one of the adapter, with the native modules it adapts and what they were cut from."""
    plain = INNER.sub("", name.removeprefix(OUTER))
    trained = {native: place for native, place in places.items() if place.source == plain}
    if trained:
        _fits(folder, name, tensor, trained)
        yield from ((native, place.cut(tensor), {}) for native, place in trained.items())
        return
    module = next((m for m in modules.of if plain.startswith(f"{m}.")), None)
    if module is None:
        raise Refused(f"the adapter in '{folder}' has '{name}' for a module that the checkpoint lacks; it is another's")
    cut, kept = modules.of[module], plain.removeprefix(f"{module}.")
    if any(place.normalised for place in cut.values()):
        raise Refused(f"the adapter in '{folder}' changes '{module}', whose rows get length one here; train it anew")
    if kept not in parted and len(cut) > 1:
        raise Refused(f"the adapter in '{folder}' has '{name}', which cannot be parted into {', '.join(cut)}")
    by_rows = parted.get(kept) == "rows" and tensor.shape[0] != 1  # one row is every row's
    if by_rows:
        _fits(folder, name, tensor, cut)
    for native, place in cut.items():
        yield f"{native}.{kept}", (place.rows(tensor) if by_rows else tensor).clone(), {native: module}


def _fits(folder: Path, name: str, tensor: Tensor, cut: Mapping[str, Place]) -> None:
    rows = sum(place.shape[0] for place in cut.values())
    if tensor.shape[0] != rows:
        raise Refused(
            f"the adapter in '{folder}' has {tensor.shape[0]} rows in '{name}' and the checkpoint {rows}; "
            "name the checkpoint that it was trained on"
        )


def _config(fields: Mapping[str, Any], matched: Mapping[str, str], loaded: Loaded) -> dict[str, Any]:
    """The configuration under which these tensors are put where they belong."""
    every = [module_of(name) for name in loaded.places if name.endswith(".weight")]
    config = {**fields, **{name: None for name in CHOOSING if name in fields}}
    config["target_modules"] = endings(list(matched), every)
    for field in filter(fields.get, NAMING):
        config[field] = endings([native for old in fields[field] for native in called_formerly(loaded, old)], every)
    for field in (field for field in fields if field.endswith("_pattern") and isinstance(fields[field], dict)):
        values = {native: _patterned(fields[field], old) for native, old in matched.items()}
        config[field] = {native: value for native, value in values.items() if value is not None}
    return config


def _patterned(patterns: Mapping[str, Any], name: str) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), None)
