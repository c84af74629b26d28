"""The adapter as the core sees it: what was injected, what of it trains, and how it is kept and given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ftcore.declaring import nearest, options
from ftcore.discovery import Hooks
from ftcore.errors import FtcoreError, Refused
from ftcore.hooks import Adapter, Data, Loaded, Run
from ftcore.seeds import seeded

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Injected:
    """A model with its adapter in place.

    `names` are the state-dict entries that the base did not bring, or that train; `matched` the base's modules in
    which something trains; `beside` those of `names` that train beside the methods' own: a head's.
    """

    model: nn.Module
    names: tuple[str, ...]
    matched: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def trainable(self) -> int:
        """Numbers that training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def total(self) -> int:
        """Numbers in the model, adapter included."""
        return sum(p.numel() for p in self.model.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The adapter as it trains, by state-dict name."""
        state = self.model.state_dict()
        return {name: state[name] for name in self.names}


def inject(hooks: Hooks, run: Run, loaded: Loaded, data: Data | None, steps: int) -> Injected:
    """Each method's adapter in the order named, on a frozen base; what any of them made trainable trains in float32.

    So do the modules that train beside any method. Where nothing trains, a tensor of the base keeps its precision: the
    layers around it expect no other.
    """
    base = list(_everything(loaded.model))
    modules = dict(loaded.model.named_modules())
    model, wanted = loaded.model, set[int]()
    for chosen in hooks.methods:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        tell_names(run, loaded, getattr(chosen.plugin, "target_modules", ()))
        with seeded(run.settings.seed, "inject", chosen.name):
            model = hooks.inject_adapter(run, chosen, model, _renamed(loaded, modules, model), data, steps)
        made = {id(p) for p in model.parameters() if p.requires_grad}
        if not made:
            raise Refused(f"{chosen.label} left nothing to train in {type(loaded.model).__name__}; choose other parts")
        wanted |= made
    own = {id(tensor) for tensor in base}
    heads = {id(p) for name in loaded.trained for p in modules[name].parameters()}
    beside = heads - wanted
    wanted |= heads
    for parameter in model.parameters():
        if id(parameter) in wanted:
            if run.intent in ("train", "plan") or id(parameter) not in own:
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    named = model.state_dict(keep_vars=True)
    names = _names(model, own)
    return Injected(
        model, names, _matched(model, modules.keys()), tuple(name for name in names if id(named[name]) in beside)
    )


def _everything(model: nn.Module) -> Sequence[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _names(model: nn.Module, base: set[int]) -> tuple[str, ...]:
    """Parameters and buffers that are new or trainable, of tied ones the first name.

    What a layer only writes into its state beside them, as a quantised one does, is not the adapter's.
    """
    seen: set[int] = set()
    names = []
    kept = {id(tensor) for tensor in _everything(model)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in kept and id(tensor) not in seen and (tensor.requires_grad or id(tensor) not in base):
            names.append(name)
            seen.add(id(tensor))
    return tuple(names)


def _renamed(loaded: Loaded, modules: Mapping[str, nn.Module], model: nn.Module) -> Loaded:
    """`loaded` with `model` as it is now, and the parts under the names that their modules have in it."""
    names = {id(module): name for name, module in model.named_modules()}
    present = {role: [modules[name] for name in part] for role, part in loaded.parts.items()}
    parts = {role: tuple(names[id(m)] for m in part if id(m) in names) for role, part in present.items()}
    whole = not isinstance(loaded.parts, PartialParts)
    return replace(loaded, model=model, parts=parts if whole else PartialParts(parts))


def _matched(model: nn.Module, base: Set[str]) -> tuple[str, ...]:
    """For each trainable tensor the longest run of its name that named a module of the base."""
    found: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            runs = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts)))
            found[max((run for run in runs if run in base), key=len, default=name)] = None
    return tuple(found)


def give(injected: Injected, tensors: Mapping[str, Tensor]) -> None:
    """The adapter's tensors hold the values of `tensors`; a missing, unexpected or misshapen one is refused by name."""
    import torch

    state = injected.model.state_dict()
    wanted = set(injected.names)
    for name in sorted(wanted ^ tensors.keys()):
        problem = "lacks" if name in wanted else "holds an unexpected"
        raise Refused(f"the saved adapter {problem} tensor '{name}'; it was made with other options or another version")
    for name in injected.names:
        if state[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, and the model wants {tuple(state[name].shape)}"
            raise Refused(f"tensor '{name}' of the saved adapter has shape {shapes}; the options differ from the run's")
        with torch.no_grad():
            state[name].copy_(tensors[name])


def saved(hooks: Hooks, run: Run, injected: Injected) -> Adapter:
    """The adapter in its method's published format, or under the core's own names; an empty one is an error.

    What trains beside the methods is in it under its own name.
    """
    adapter = hooks.save_adapter(run, injected.model)
    adapter = adapter or Adapter({"ftcore_methods": [c.name for c in hooks.methods]}, injected.tensors())
    if not adapter.tensors:
        raise FtcoreError(f"{hooks.methods[0].label} returned no tensor from save_adapter; return what it trained")
    state = injected.tensors()
    return replace(adapter, tensors={**adapter.tensors, **{name: state[name] for name in injected.beside}})


def restore(hooks: Hooks, run: Run, injected: Injected, adapter: Adapter) -> None:
    """The model answers as the one that `adapter` was saved from; a tensor nobody took is refused by name."""
    others = {name: tensor for name, tensor in adapter.tensors.items() if name not in injected.beside}
    taken = hooks.load_adapter(run, injected.model, replace(adapter, tensors=others))
    if taken is None:
        give(injected, adapter.tensors)
        return
    give(replace(injected, names=injected.beside), {n: t for n, t in adapter.tensors.items() if n not in others})
    ignored = sorted(others.keys() - taken)
    if ignored:
        raise Refused(f"{hooks.methods[0].label} has no place for tensor '{ignored[0]}' of the saved adapter")


def fold(hooks: Hooks, run: Run, model: nn.Module) -> nn.Module:
    """The adapted model with each method's change folded into plain weights, the last method first."""
    for chosen in reversed(hooks.methods):
        model = hooks.merge(run, chosen, model)
    return model


class PartialParts(dict[str, tuple[str, ...]]):
    """The parts of a model that holds only some of its blocks: a role without modules has them elsewhere."""


def select(parts: Mapping[str, tuple[str, ...]], roles: Sequence[str]) -> tuple[str, ...]:
    """The module names that `roles` mean: `attention` stands for every `attention.*`; an unmatched role is refused."""
    chosen: dict[str, None] = {}
    for role in roles:
        matched = [names for key, names in parts.items() if key == role or key.startswith(f"{role}.")]
        if not any(matched) and not (matched and isinstance(parts, PartialParts)):
            near = nearest(role, {*parts, *(key.partition(".")[0] for key in parts)})
            hint = f"did you mean '{near}'?" if near else f"it has {', '.join(sorted(parts))}"
            raise Refused(f"the model has no part '{role}'; {hint}")
        chosen.update(dict.fromkeys(name for names in matched for name in names))
    return tuple(chosen)


def matching(model: nn.Module, targets: Sequence[str], *, partial: bool = False) -> tuple[str, ...]:
    """The modules whose name is, or ends in, one of `targets`; unless the model is `partial`, each must match."""
    from torch import nn

    names = [name for name, module in model.named_modules() if name and not isinstance(module, nn.Identity)]
    chosen: dict[str, None] = {}
    for target in targets:
        matched = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matched and not partial:
            near = nearest(target, {name.rpartition(".")[2] for name in names})
            hint = f"did you mean '{near}'?" if near else "'ftcore plan' lists the modules"
            raise Refused(f"no module of {type(model).__name__} is named '{target}'; {hint}")
        chosen.update(dict.fromkeys(matched))
    return tuple(chosen)


def endings(chosen: Sequence[str], every: Sequence[str]) -> list[str]:
    """The short names that mean exactly `chosen` among `every` module, or the full names when there are none."""
    short = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name in every if name.rpartition(".")[2] in short}
    return sorted(short) if meant == set(chosen) else sorted(chosen)


def by_name(run: Run, model: nn.Module, loaded: Loaded, targets: Sequence[str]) -> tuple[str, ...]:
    """The modules whose name is, or ends in, one of `targets`; each must match, unless a merge holds only some blocks.

    What only a module of the checkpoint's own form is called means the modules that hold its weight here.
    """
    given: list[str] = []
    for target in targets:
        given += _parts_of(model, loaded, target) or [target]
    return matching(model, given, partial=run.intent == "merge")


def tell_names(run: Run, loaded: Loaded, targets: Sequence[str]) -> None:
    """Each of `targets` that is a name of the checkpoint's own form is said, with what holds it here."""
    for target in targets:
        short = dict.fromkeys(name.rpartition(".")[2] for name in _parts_of(loaded.model, loaded, target))
        if short and run.intent in ("train", "plan"):
            run.say(f"'{target}' is the checkpoint's own name: what it holds is {', '.join(short)} here")


def _parts_of(model: nn.Module, loaded: Loaded, target: str) -> list[str]:
    return [] if matching(model, [target], partial=True) else called_formerly(loaded, target)


def called_formerly(loaded: Loaded, target: str) -> list[str]:
    """The modules that hold the weights of those which the checkpoint's own form calls, or ends in, `target`."""
    modules = [(place.source.removesuffix(".weight"), name) for name, place in loaded.places.items()]
    matched = [name for source, name in modules if source == target or source.endswith(f".{target}")]
    return [name.removesuffix(".weight") for name in matched if name.endswith(".weight")]


@options
class OnModules:
    """A method that adapts modules which are chosen by role or by name; its `targets` are the chosen ones."""

    parts: Annotated[
        tuple[str, ...], Field(description="Roles to adapt, such as attention.q or mlp; ignored with target_modules.")
    ] = ("attention", "mlp")
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules to adapt by name or ending, instead of by role.")
    ] = ()

    def targets(self, run: Run, model: nn.Module, loaded: Loaded) -> tuple[str, ...]:
        """The full names of the chosen modules; a role or name that matches nothing is refused."""
        if self.target_modules:
            return by_name(run, model, loaded, self.target_modules)
        return select(loaded.parts, self.parts)
