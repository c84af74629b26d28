"""Plugins: found in package metadata without importing them, chosen by name, bound to one run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from ftcore.errors import FtcoreError, Refused

if TYPE_CHECKING:
    import pluggy
    from torch import nn

    from ftcore.hooks import Adapter, Data, Loaded, Run

Kind = Literal["method", "task", "model", "extension"]
KINDS: tuple[Kind, ...] = ("method", "task", "model", "extension")
PLUGIN_KEYS: Mapping[str, Kind] = {"method": "method", "task": "task", "model": "model", "with": "extension"}

# What a plugin may declare as a class attribute, and what holds when it does not.
DECLARABLE: Mapping[str, Any] = {
    "head": "causal-lm",  # task: the model head it needs
    "heads": ("causal-lm",),  # model: the heads it can load
    "model_types": (),  # model: the config.json model types it loads
    "suggested_lr": 2e-4,  # method: the peak learning rate when none is given
    "alone": "",  # method: why it cannot stand beside another; empty means that it can
    "one_of": "",  # method: what it goes through, of which a run takes one; empty means nothing shared
}


@dataclass(frozen=True)
class Offer:
    """A plugin that an installed distribution announces; nothing of it is imported yet."""

    kind: Kind
    name: str
    distribution: str
    version: str
    entry: metadata.EntryPoint

    @property
    def label(self) -> str:
        """The plugin as messages name it."""
        return f"{self.kind} '{self.name}' ({self.distribution} {self.version})"

    def load(self) -> type[Any]:
        """The plugin's class; Refused with the reason when its module does not import."""
        try:
            found: type[Any] = self.entry.load()
        except (Exception, SystemExit) as broken:
            reason = f"{type(broken).__name__}: {broken}".strip().splitlines()[0]
            raise Refused(
                f"{self.label} cannot be imported ({reason}); "
                f"repair it with 'pip install --force-reinstall {self.distribution}' or uninstall it"
            ) from broken
        return found


@dataclass(frozen=True)
class Chosen:
    """A plugin that takes part in a run: where it comes from and the instance that holds its options."""

    kind: Kind
    name: str
    distribution: str
    version: str
    plugin: object

    @property
    def label(self) -> str:
        """The plugin as messages name it."""
        origin = f" ({self.distribution} {self.version})" if self.distribution else ""
        return f"{self.kind} '{self.name}'{origin}"


def declared_datum(plugin: object, name: str) -> Any:
    """What `plugin` (a class or an instance) declares under `name`, or the documented default."""
    return getattr(plugin, name, DECLARABLE[name])


def offers(kind: Kind | None = None) -> tuple[Offer, ...]:
    """Every plugin that installed distributions announce, by kind and name."""
    found = {}
    for group in KINDS if kind is None else (kind,):
        for entry in metadata.entry_points(group=f"ftcore.{group}s"):
            name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
            found[group, entry.name, name] = Offer(group, entry.name, name, version, entry)
    return tuple(sorted(found.values(), key=lambda o: (KINDS.index(o.kind), o.name, o.distribution)))


def find(kind: Kind, spelled: str) -> Offer:
    """The one installed plugin that `NAME` or `DISTRIBUTION:NAME` means; Refused when there is none or two."""
    distribution, _, name = spelled.rpartition(":")
    known = offers(kind)
    found = [o for o in known if o.name == name and distribution in ("", o.distribution)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f"{o.distribution} {o.version}" for o in found)
        raise Refused(f"{kind} '{name}' is provided by {names}; write {found[0].distribution}:{name} to choose")
    raise Refused(_unknown(kind, spelled, {o.name for o in known}))


def spelling(chosen: Chosen) -> str:
    """What a user types to get this plugin: its name, with its distribution where another offers that name too."""
    alone = sum(offer.name == chosen.name for offer in offers(chosen.kind)) < 2
    return chosen.name if alone else f"{chosen.distribution}:{chosen.name}"


def _unknown(kind: Kind, spelled: str, known: set[str]) -> str:
    from ftcore.declaring import nearest

    near = nearest(spelled, known)
    if near:
        return f"no {kind} '{spelled}' is installed; did you mean '{near}'?"
    listed = f"installed are {', '.join(sorted(known))}" if known else f"no {kind} is installed at all"
    return f"no {kind} '{spelled}' is installed; {listed}; a published one comes with 'pip install ftcore-{spelled}'"


def choose(kind: Kind, given: object, options: Mapping[str, object]) -> Chosen:
    """The plugin `given` by name, built from `options`, or `given` itself when it is an instance already."""
    from ftcore.declaring import build

    if isinstance(given, str):
        offer = find(kind, given)
        plugin = build(offer.load(), options, offer.label)
        return Chosen(kind, offer.name, offer.distribution, offer.version, plugin)
    if options:
        raise Refused(f"{kind} {type(given).__name__} was given as an instance and as options; give one of them")
    cls = type(given)
    for offer in offers(kind):
        if offer.entry.value == f"{cls.__module__}:{cls.__qualname__}":
            return Chosen(kind, offer.name, offer.distribution, offer.version, given)
    return Chosen(kind, cls.__name__.lower(), "", "", given)


@dataclass(frozen=True)
class Hooks:
    """The plugins of one run behind one manager of their own, called as the hooks say."""

    manager: pluggy.PluginManager
    chosen: tuple[Chosen, ...]

    @property
    def methods(self) -> tuple[Chosen, ...]:
        """The methods in the order named."""
        return tuple(c for c in self.chosen if c.kind == "method")

    def load_kwargs(self, run: Run) -> dict[str, Any]:
        """What all plugins ask of the loader together; Refused when two disagree."""
        agreed: dict[str, Any] = {}
        source: dict[str, str] = {}
        for chosen in self.chosen:
            if not self._answers(chosen, "load_kwargs"):
                continue
            others = [c.plugin for c in self.chosen if c is not chosen]
            with self._named("load_kwargs"):
                answers = self.manager.subset_hook_caller("load_kwargs", others)(run=run)
            for key, value in (item for answer in answers for item in answer.items()):
                if key in agreed and agreed[key] != value:
                    raise Refused(f"{source[key]} and {chosen.label} ask for different values of '{key}'; drop one")
                agreed[key], source[key] = value, chosen.label
        return agreed

    def load_model(self, run: Run) -> Loaded:
        """The answer of the model plugin."""
        kwargs = self.load_kwargs(run)
        return self._first("load_model", "model", run=run, kwargs=kwargs)  # type: ignore[no-any-return]

    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """The answer of the task plugin."""
        return self._first("prepare_data", "task", run=run, loaded=loaded)  # type: ignore[no-any-return]

    def inject_adapter(
        self, run: Run, chosen: Chosen, model: nn.Module, loaded: Loaded, data: Data | None, steps: int
    ) -> nn.Module:
        """The model as `chosen` leaves it."""
        given = {"run": run, "model": model, "loaded": loaded, "data": data, "steps": steps}
        return self._fold("inject_adapter", chosen, **given)

    def merge(self, run: Run, chosen: Chosen, model: nn.Module) -> nn.Module:
        """The model with what `chosen` injected folded into plain weights; Refused when it cannot be."""
        if not self._answers(chosen, "merge"):
            raise Refused(f"{chosen.label} cannot be merged: it adds what plain weights cannot hold; use 'ftcore chat'")
        return self._fold("merge", chosen, run=run, model=model)

    def train_step(self, **given: Any) -> float:
        """The mean loss of one optimizer step."""
        return self._first("train_step", "method", **given)  # type: ignore[no-any-return]

    def save_adapter(self, run: Run, model: nn.Module) -> Adapter | None:
        """The adapter in the format of the run's only method, or None when several share the model."""
        if len(self.methods) != 1 or not self._answers(self.methods[0], "save_adapter"):
            return None
        return self._first("save_adapter", "method", run=run, model=model)  # type: ignore[no-any-return]

    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str] | None:
        """The tensors that the run's only method took, or None when it leaves that to the core."""
        if len(self.methods) != 1 or not self._answers(self.methods[0], "load_adapter"):
            return None
        return self._first("load_adapter", "method", run=run, model=model, adapter=adapter)  # type: ignore[no-any-return]

    def _answers(self, chosen: Chosen, hook: str) -> bool:
        caller = getattr(self.manager.hook, hook)
        return any(impl.plugin is chosen.plugin for impl in caller.get_hookimpls())

    def _alone(self, hook: str, chosen: Chosen) -> pluggy.HookCaller:
        """The hook as only `chosen` and the extensions around it answer it."""
        others = [c.plugin for c in self.chosen if c is not chosen and c.kind != "extension"]
        return self.manager.subset_hook_caller(hook, others)

    def _fold(self, hook: str, chosen: Chosen, **given: Any) -> nn.Module:
        with self._named(hook):
            answers: list[Any] = self._alone(hook, chosen)(**given)
        if not answers:
            raise FtcoreError(f"{chosen.label} returned nothing from {hook}; return the model")
        return answers[0]  # type: ignore[no-any-return]

    def _first(self, hook: str, kind: Kind, **given: Any) -> Any:
        with self._named(hook):
            answer = getattr(self.manager.hook, hook)(**given)
        if answer is None:
            labels = " and ".join(c.label for c in self.chosen if c.kind == kind)
            raise FtcoreError(f"{labels} returned nothing from {hook}; return what the hook's page says")
        return answer

    @contextmanager
    def _named(self, hook: str) -> Iterator[None]:
        """An exception that leaves a plugin's hook keeps its type and names the plugin."""
        try:
            yield
        except FtcoreError:
            raise
        except Exception as fault:
            files = {frame.filename for frame in traceback.extract_tb(fault.__traceback__)}
            for chosen in self.chosen:
                if files & _files_of(chosen.plugin, hook):
                    fault.add_note(f"in {hook} of {chosen.label}")
            raise


def _files_of(plugin: object, hook: str) -> set[str]:
    """The file of a plugin's class and the one where it has this hook from."""
    import inspect

    found = {inspect.getsourcefile(type(plugin))} if type(plugin).__module__ in sys.modules else set()
    implementation = getattr(type(plugin), hook, None)
    return {file for file in (*found, getattr(getattr(implementation, "__code__", None), "co_filename", None)) if file}


def bind(chosen: Sequence[Chosen], core: object) -> Hooks:
    """One manager for one run: `core` answers last, every plugin is checked against the contract."""
    import pluggy

    from ftcore import hooks

    check_combination(chosen)
    manager = pluggy.PluginManager("ftcore")
    manager.add_hookspecs(hooks)
    manager.register(core, name="ftcore")
    for one in chosen:
        try:
            manager.register(one.plugin, name=one.label)
            manager.check_pending()
        except pluggy.PluginValidationError as unfit:
            reason = " ".join(str(unfit).split())
            raise Refused(f"{one.label} does not fit this ftcore: {reason}; install a version made for it") from None
    return Hooks(manager, tuple(chosen))


def check_combination(chosen: Sequence[Chosen]) -> None:
    """Refused when the chosen plugins cannot work together, by what they declare of themselves."""
    methods = [c for c in chosen if c.kind == "method"]
    for one in chosen:
        if sum(one.name == other.name for other in chosen) > 1:
            raise Refused(f"'{one.name}' is named twice in one run; name each plugin once")
    for one in methods:
        reason = declared_datum(one.plugin, "alone")
        if reason and len(methods) > 1:
            other = next(c for c in methods if c is not one)
            raise Refused(f"{one.label} cannot be combined with '{other.name}': {reason}; name one of them")
    for one, other in combinations(methods, 2):
        shared = declared_datum(one.plugin, "one_of")
        if shared and shared == declared_datum(other.plugin, "one_of"):
            raise Refused(f"{one.label} and '{other.name}' both go through {shared}, which a run does once; drop one")
    models = [c for c in chosen if c.kind == "model"]
    for task, model in ((t, m) for t in chosen if t.kind == "task" for m in models):
        head, heads = declared_datum(task.plugin, "head"), declared_datum(model.plugin, "heads")
        if head not in heads:
            offered = ", ".join(heads)
            raise Refused(f"{task.label} needs the head '{head}', and {model.label} has {offered}; use another")


def listing() -> list[Mapping[str, str | None]]:
    """Every installed plugin with the reason why it cannot be used, if there is one."""
    return [
        {
            "kind": offer.kind,
            "name": offer.name,
            "distribution": offer.distribution,
            "version": offer.version,
            "error": _error(offer),
        }
        for offer in offers()
    ]


def _error(offer: Offer) -> str | None:
    try:
        offer.load()
    except Refused as broken:
        return str(broken)
    return None
