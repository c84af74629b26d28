"""Checkpoints whose names and shapes are not those of transformers: how they become native ones, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Refused
from ftcore.weights import Files

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import dtype as Dtype  # noqa: N812
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Fields = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# What a model computes anew: some checkpoints hold it, none needs it.
COMPUTED = (".inv_freq", ".masked_bias", ".cos_cached", ".sin_cached")


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors named like `pattern`, in which each `*` is a run of characters without a dot.

    Their rows go, in order, to the native tensors `into`, where `{0}` is what the first `*` stood for. With `groups`
    they come in so many equal runs, each with its share for every target. With `normalised` each row has length one.
    """

    pattern: str
    into: tuple[str, ...]
    groups: int = 1
    normalised: bool = False

    def targets(self, name: str) -> tuple[str, ...] | None:
        """The native names for the original `name`; None when the rule is not about it."""
        found = _expression(self.pattern).fullmatch(name)
        return None if found is None else tuple(target.format(*found.groups()) for target in self.into)

    def origin(self, native: str) -> str | None:
        """The original name of what `native` is filled from; None when the rule does not fill it."""
        for target in self.into:
            found = _expression(re.sub(r"\{\d\}", "*", target)).fullmatch(native)
            if found:
                return self.pattern.replace("*", "{}").format(*found.groups())
        return None


@dataclass(frozen=True, repr=False)
class Original:
    """How checkpoints whose config.json has this `model_type` become native, where `recognises` says yes.

    `config` is the native one; the first of `rules` that is about a tensor says where it goes; what matches `zeros` and
    is filled by none is zero. `tokenizer` is made from the files in a folder; `stops` are tokens that end an answer.
    `note` is said when weights are read, and `finish` puts into the model what the native class lacks, with tensors
    where there are any.
    """

    model_type: str
    config: Callable[[Fields], PreTrainedConfig]
    rules: Callable[[Fields], tuple[Rule, ...]]
    tokenizer: Callable[[Path, Fields], PreTrainedTokenizerBase]
    zeros: Callable[[Fields], tuple[str, ...]] = lambda fields: ()
    stops: tuple[str, ...] = ()
    note: Callable[[Fields], str] = lambda fields: ""
    finish: Callable[[PreTrainedModel, Native | None], None] = lambda model, tensors: None
    recognises: Callable[[Fields], bool] = lambda fields: True

    def __repr__(self) -> str:
        return f"Original({self.model_type!r})"


def needed(fields: Fields, *names: str) -> dict[str, Any]:
    """The fields of these names; a KeyError says which of them is lacking or says nothing."""
    for name in names:
        if fields.get(name) is None:
            raise KeyError(name)
    return {name: fields[name] for name in names}


def carried(fields: Fields, *names: str, **renamed: str) -> dict[str, Any]:
    """The fields of these names that say something, and those renamed: `native="original"`."""
    pairs = {**{name: name for name in names}, **renamed}
    return {new: fields[old] for new, old in pairs.items() if fields.get(old) is not None}


@dataclass(frozen=True)
class Place:
    """What a native tensor is cut from: rows of an original tensor, or nothing, which makes zeros."""

    shape: tuple[int, ...]
    source: str = ""
    start: int = 0
    groups: int = 1
    normalised: bool = False

    def cut(self, whole: Tensor) -> Tensor:
        """This tensor out of the original one that holds it."""
        from torch.nn.functional import normalize

        mine = self.rows(whole)
        return normalize(mine) if self.normalised else mine.clone() if mine.shape != whole.shape else mine

    def rows(self, whole: Tensor) -> Tensor:
        """This tensor's rows of something that has as many rows as the original."""
        grouped = whole.reshape(self.groups, whole.shape[0] // self.groups, *whole.shape[1:])
        first, rows = self.start // self.groups, self.shape[0] // self.groups
        return grouped[:, first : first + rows].reshape(self.shape[0], *whole.shape[1:])


class Native(Mapping[str, "Tensor"]):
    """An original checkpoint under native names: a tensor is read and cut when it is asked for."""

    def uncut(self, name: str) -> Tensor:
        """The whole original tensor that this one is cut from, as it is stored."""
        return self.files.read(self.places[name].source)

    def __init__(self, files: Files, places: Mapping[str, Place]) -> None:
        self.files, self.places = files, places
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in the precision in which it is stored."""
        import torch

        place = self.places[name]
        if not place.source:
            return torch.zeros(place.shape, dtype=self.dtype)
        if self._last is None or self._last[0] != place.source:  # neighbours are cut from one tensor
            self._last = None
            self._last = place.source, self.files.read(place.source)
        return place.cut(self._last[1])

    def __iter__(self) -> Iterator[str]:
        """The native names, those cut from one tensor together."""
        return iter(self.places)

    def __len__(self) -> int:
        """How many native tensors there are."""
        return len(self.places)

    @property
    def dtype(self) -> Dtype:
        """The precision of the checkpoint's first tensor."""
        return self.files.read(next(place.source for place in self.places.values() if place.source)).dtype


def native(
    folder: str, rules: tuple[Rule, ...], shapes: Shapes, zeros: tuple[str, ...] = (), unused: str = ""
) -> Native:
    """The checkpoint in `folder` as the tensors of a model with `shapes`; Refused unless it fills exactly these.

    What would become a tensor that matches the expression `unused` is left out.
    """
    files = Files(Path(folder))
    places: dict[str, Place] = {}
    for name, shape in files.shapes.items():
        if not name.endswith(COMPUTED) and not _left_out(name, rules, unused):
            found = dict(_places(folder, name, shape, rules, shapes))
            if found.keys() & places.keys():
                raise _unfit(folder, f"an unexpected tensor '{name}', whose place another has")
            places.update(found)
    empty = {name: Place(shapes[name]) for name in shapes.keys() - places.keys() if _matches(name, zeros)}
    missing = sorted(shapes.keys() - places.keys() - empty.keys())
    if missing:
        origin = next(filter(None, (rule.origin(missing[0]) for rule in rules)), missing[0])
        raise _unfit(folder, f"{len(missing)} missing tensors, the first is '{origin}'")
    return Native(files, {**places, **empty})


def _left_out(name: str, rules: tuple[Rule, ...], unused: str) -> bool:
    targets = next((found for rule in rules if (found := rule.targets(name)) is not None), ())
    return bool(targets) and all(re.fullmatch(unused, target) for target in targets)


def shapes_of(model: nn.Module) -> Shapes:
    """The shape of each tensor that a model is made of, a tied one under its first name."""
    return {name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *_kept_buffers(model))}


def _kept_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = model.state_dict()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def places_of(rules: tuple[Rule, ...], shapes: Shapes) -> dict[str, Place]:
    """What each tensor of a model with `shapes` is cut from, as the rules say it; those that are zero are left out."""
    found: dict[str, Place] = {}
    for native in shapes:
        for source in filter(None, (rule.origin(native) for rule in rules)):
            if native not in found and (cut := _cut(source, rules, shapes)) and native in cut.targets:
                found.update(cut.places())
    return found


@dataclass(frozen=True)
class Cut:
    """The native tensors that the rows of an original one go to, and by which rule."""

    source: str
    rule: Rule
    targets: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape that the original must have."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])

    def places(self) -> Iterator[tuple[str, Place]]:
        """Where each target's rows are."""
        start = 0
        for target, shape in zip(self.targets, self.shapes, strict=True):
            yield target, Place(shape, self.source, start, self.rule.groups, self.rule.normalised)
            start += shape[0]


def _cut(source: str, rules: tuple[Rule, ...], shapes: Shapes) -> Cut | None:
    """What becomes of an original tensor of this name; None when it has no place in the model."""
    rule, targets = next(((r, t) for r in rules if (t := r.targets(source)) is not None), (None, ()))
    if rule is None or any(target not in shapes for target in targets):
        return None
    return Cut(source, rule, targets, tuple(shapes[target] for target in targets))


def _places(
    folder: str, name: str, shape: tuple[int, ...], rules: tuple[Rule, ...], shapes: Shapes
) -> Iterator[tuple[str, Place]]:
    """Where the rows of one original tensor go."""
    cut = _cut(name, rules, shapes)
    if cut is None:
        raise _unfit(folder, f"an unexpected tensor '{name}'")
    if shape != cut.whole or any(rows[0] % cut.rule.groups for rows in cut.shapes):
        raise _unfit(folder, f"the tensor '{name}' is {_shown(shape)} and must be {_shown(cut.whole)}")
    return cut.places()


def _unfit(folder: str, found: str) -> Refused:
    return Refused(
        f"the weights in '{folder}' do not fill the model: {found}; the checkpoint is incomplete or of another "
        "architecture"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _expression(pattern: str) -> re.Pattern[str]:
    """Each `*` of the pattern is a run of characters without a dot."""
    return re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(_expression(pattern).fullmatch(name) for pattern in patterns)
