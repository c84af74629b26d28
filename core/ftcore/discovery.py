"""Plugins: found in package metadata without importing them, chosen by name, bound to one run."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from functools import lru_cache
from importlib import metadata
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from ftcore import probing
from ftcore.errors import Deprecated, FtcoreError, Refused
from ftcore.trust import AllowList, allowed, built_for_another, code_digest, names_ftcore, normal, own_classes
from ftcore.trust import only_from as only_from

if TYPE_CHECKING:
    from email.message import Message
    from types import FrameType

    from torch import nn
    from torch.optim import Optimizer

    from ftcore.hooks import Adapter, Data, Loaded, Run

Kind = Literal["method", "task", "model", "extension"]
KINDS: tuple[Kind, ...] = ("method", "task", "model", "extension")
PLUGIN_KEYS: Mapping[str, Kind] = {"method": "method", "task": "task", "model": "model", "with": "extension"}
GROUPS: Mapping[str, Kind] = {f"ftcore.{kind}s": kind for kind in KINDS}
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
REMEMBERED = 512  # metadata files that are not parsed again while they say the same

# What a plugin may declare as a class attribute, and what holds when it does not.
DECLARABLE: Mapping[str, Any] = {
    "head": "causal-lm",  # task: the model head it needs
    "heads": ("causal-lm",),  # model: the heads it can load
    "model_types": (),  # model: the config.json model types it loads
    "originals": (),  # model: how checkpoints of other names and shapes become those of its types
    "suggested_lr": 2e-4,  # method: the peak learning rate when none is given
    "alone": "",  # method: why it cannot stand beside another; empty means that it can
    "one_of": "",  # method: what it goes through, of which a run takes one; empty means nothing shared
    "parted": {},  # method: how its tensors, by the ends of their names, follow a cut module: by "rows", or "whole"
    "unpackable": "",  # method, task: why rows cannot be laid end to end under it; empty means that they can
    "only_heads": (),  # method: the heads it can adapt; empty means every
    "examples": (),  # task: rows in the shape it reads, each with the texts that the model learns to say
    "compares": False,  # task: whether its loss compares whole answers, and is no sum of cross-entropies of tokens
    "excused": {},  # any: checks of the conformance kit that it cannot pass, each with the reason
    "tiny": {},  # model: config fields by model type, laid over those of the checkpoints that the kit makes
    "tried_on": {},  # model: heads by model type that the conformance kit tries, where not all on each type it loads
    "tried_with": {},  # any: options with which the conformance kit makes it, where it cannot be made without
}


@dataclass(frozen=True)
class Offer:
    """A plugin that an installed distribution announces; nothing of it is imported yet.

    `value` is the `MODULE:CLASS` of its entry point, `requires` what its distribution requires of ftcore.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    value: str
    requires: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The plugin as messages name it."""
        return _label(self.kind, self.name, self.distribution, self.version)

    @property
    def spelled(self) -> str:
        """What a user types to get this plugin and no other of its name."""
        return f"{self.distribution}:{self.name}"

    def flaw(self) -> str | None:
        """Why it cannot be used, as far as its metadata tells."""
        if not self.distribution:
            return f"{self.label} is announced by a package without METADATA; install that package anew"
        if not NAME.fullmatch(self.name) or not probing.CLASS.fullmatch(self.value):
            return (
                f"{self.label} is announced as '{self.name} = {self.value}', which is no NAME = MODULE:CLASS; "
                f"install another version of {self.distribution}"
            )
        wanted = built_for_another(self.requires)
        if wanted:
            return (
                f"{self.label} was built for {wanted} and this is ftcore {metadata.version('ftcore')}; "
                f"install a version of {self.distribution} made for it"
            )
        return None

    def load(self) -> type[Any]:
        """The plugin's class; Refused with the reason when its module does not import.

        What the module prints on the way goes to standard error: standard output is the answer of a command.
        """
        try:
            with redirect_stdout(sys.stderr):
                return probing.imported(self.value)
        except (Exception, SystemExit) as broken:
            raise Refused(self._broken(probing.reason(broken))) from broken

    def load_with_care(self) -> type[Any]:
        """The plugin's class; FtcoreError with the reason when another process could not import it in its lifetime."""
        verdict = probing.looked_at([self.value], probing.LIFELINE / 2)[0]
        if verdict.state in ("broken", "unfinished"):
            late = f"its import had not finished after {probing.LIFELINE // 2} s"
            raise FtcoreError(f"{self.label}: {verdict.reason or late}")
        return self.load()

    def trouble(self, verdict: probing.Verdict) -> str | None:
        """What looking at it showed to be wrong with it, as a sentence."""
        if verdict.state == "broken":
            return self._broken(verdict.reason)
        if verdict.state == "unfinished":
            return (
                f"{self.label}: its import had not finished after {probing.PATIENCE} s; "
                f"'ftcore check {self.name}' waits for it"
            )
        if verdict.state == "prints":
            return (
                f"{self.label}: it writes to standard output when imported: '{verdict.reason}'; "
                "runs that name it write that to standard error"
            )
        return None

    def _broken(self, reason: str) -> str:
        return (
            f"{self.label} cannot be imported ({reason}); "
            f"repair it with 'pip install --force-reinstall {self.distribution}' or uninstall it"
        )


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
        return _label(self.kind, self.name, self.distribution, self.version)


def _label(kind: Kind, name: str, distribution: str, version: str) -> str:
    return f"{kind} '{name}' ({distribution} {version})" if distribution else f"{kind} '{name}'"


def declared_datum(plugin: object, name: str) -> Any:
    """What `plugin` (a class or an instance) declares under `name`, or the documented default."""
    return getattr(plugin, name, DECLARABLE[name])


def announced() -> tuple[Offer, ...]:
    """Every plugin that installed distributions announce, also those left out, by kind and name."""
    found: dict[tuple[str, str, str], Offer] = {}
    for distribution in metadata.distributions():
        for offer in _announced_by(distribution):
            found.setdefault((offer.kind, offer.name, normal(offer.distribution)), offer)
    return tuple(sorted(found.values(), key=lambda o: (KINDS.index(o.kind), o.name, o.distribution)))


def _announced_by(distribution: metadata.Distribution) -> Iterator[Offer]:
    """The plugins of one distribution; none where its files cannot be read, whatever else is installed."""
    try:
        entries = _entries(distribution.read_text("entry_points.txt") or "")
        described = _described(distribution) if entries else ("", "", ())
    except (OSError, ValueError):
        return
    for kind, name, value in entries:
        yield Offer(kind, name, *described[:2], value, described[2])


@lru_cache(maxsize=REMEMBERED)
def _entries(text: str) -> tuple[tuple[Kind, str, str], ...]:
    """Kind, name and value of the plugins in an entry_points.txt; a line that is neither is a name without value."""
    group, found = "", []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group in GROUPS and line and line[0] not in "#;":
            name, value = (part.strip() for part in (*line.split("=", 1), "")[:2])
            parts = probing.CLASS.fullmatch(value)
            found.append((GROUPS[group], name, f"{parts[1]}:{parts[2]}" if parts else value))
    return tuple(found)


def _described(distribution: metadata.Distribution) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and what is required of ftcore; empty where there is no METADATA."""
    text = distribution.read_text("METADATA")
    return _said(text) if text else _of(distribution.metadata, distribution.requires)


@lru_cache(maxsize=REMEMBERED)
def _said(text: str) -> tuple[str, str, tuple[str, ...]]:
    """The same of a METADATA file; what a text says stays true, so that it is parsed once however often it is read."""
    said = HeaderParser().parsestr(text)
    return _of(said, said.get_all("Requires-Dist"))


def _of(said: metadata.PackageMetadata | Message, requires: list[str] | None) -> tuple[str, str, tuple[str, ...]]:
    name, version = ((said.get_all(key) or [""])[0] for key in ("Name", "Version"))
    return name, version, tuple(filter(names_ftcore, requires or ()))


def offers(kind: Kind | None = None) -> tuple[Offer, ...]:
    """Every plugin that may be used, as far as the allow-list goes, by kind and name."""
    return tuple(offer for offer in _permitted(announced()) if kind in (None, offer.kind))


def _permitted(every: Sequence[Offer]) -> list[Offer]:
    """Those that the allow-list admits; Refused when it names a distribution that none of them is from."""
    listed = allowed()
    if listed is None:
        return list(every)
    from ftcore.declaring import nearest

    known = {normal(offer.distribution): offer.distribution for offer in every if offer.distribution}
    for name in listed.distributions:
        if normal(name) not in known:
            near = nearest(normal(name), set(known))
            hint = f"did you mean '{known[near]}'?" if near else f"there are {', '.join(sorted(known.values()))}"
            raise Refused(f"{listed.said} names '{name}', and no such distribution with plugins is installed; {hint}")
    return [offer for offer in every if listed.admits(offer.distribution)]


def find(kind: Kind, spelled: str) -> Offer:
    """The one installed plugin that `NAME` or `DISTRIBUTION:NAME` means; Refused when it is none or two or unfit."""
    every = announced()
    permitted = [offer for offer in _permitted(every) if offer.kind == kind]
    found = [offer for offer in permitted if _means(spelled, offer)]
    if len(found) > 1:
        raise Refused(_ambiguous(found[0], found))
    for offer in found or [o for o in every if o.kind == kind and _means(spelled, o)]:
        _admit(offer)
        return offer
    raise Refused(_unknown(kind, spelled, {offer.name for offer in permitted}))


def kind_of(spelled: str) -> Kind:
    """The kind of the installed plugin that `NAME` or `DISTRIBUTION:NAME` means, the first where it is several."""
    return next((offer.kind for offer in (*offers(), *announced()) if _means(spelled, offer)), KINDS[0])


def _means(spelled: str, offer: Offer) -> bool:
    distribution, _, name = spelled.rpartition(":")
    return name == offer.name and normal(distribution) in ("", normal(offer.distribution))


def _admit(offer: Offer) -> None:
    """Refused when the allow-list or its own metadata keeps the plugin from being used."""
    reason = _left_out(offer, allowed()) or offer.flaw()
    if reason:
        raise Refused(reason)


def _left_out(offer: Offer, permitted: AllowList | None) -> str | None:
    if permitted is None or not offer.distribution or permitted.admits(offer.distribution):
        return None
    if not permitted.distributions:
        return f"{offer.label} is left out by {permitted.said}; name {offer.distribution} with --plugins-from to use it"
    return f"{offer.label} is not among {permitted.said}; add {offer.distribution} to use it"


def _ambiguous(offer: Offer, rivals: Sequence[Offer]) -> str:
    names = " and ".join(f"{o.distribution} {o.version}" for o in rivals)
    return f"{offer.kind} '{offer.name}' is provided by {names}; write {offer.spelled} to choose"


def spelling(chosen: Chosen) -> str:
    """What a user types to get this plugin: its name, with its distribution where another offers that name too."""
    return spelled(chosen.kind, chosen.name, chosen.distribution)


def spelled(kind: str, name: str, distribution: str) -> str:
    """What a user types to get the plugin of that name from that distribution, whichever are left out now."""
    alone = sum(offer.kind == kind and offer.name == name for offer in announced()) < 2
    return name if alone or not distribution else f"{distribution}:{name}"


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
    for offer in announced():
        if offer.kind == kind and offer.value == f"{cls.__module__}:{cls.__qualname__}":
            _admit(offer)
            return Chosen(kind, offer.name, offer.distribution, offer.version, given)
    return Chosen(kind, cls.__name__.lower(), "", "", given)


def with_options(chosen: Chosen, options: Mapping[str, Any]) -> Chosen:
    """The plugin with `options` laid over its own."""
    from ftcore.declaring import build, dump

    plugin: Any = chosen.plugin
    return replace(chosen, plugin=build(type(plugin), {**dump(plugin), **options}, chosen.label))


def code_of(plugin: object) -> str | None:
    """A sha256 over the sources of a plugin's class (or of an instance's), wherever they lie; None without sources."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return code_digest(cls, _modules())


def _modules() -> set[str]:
    """The top-level modules of the installed plugins."""
    return {offer.value.partition(":")[0].partition(".")[0] for offer in announced()}


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
            answers = self._called("load_kwargs", self.manager.subset_hook_caller("load_kwargs", others), run=run)
            for key, value in (item for answer in answers for item in answer.items()):
                if key in agreed and agreed[key] != value:
                    raise Refused(f"{source[key]} and {chosen.label} ask for different values of '{key}'; drop one")
                agreed[key], source[key] = value, chosen.label
        return agreed

    def fill_options(self, run: Run, chosen: Chosen) -> dict[str, Any]:
        """The options of `chosen` that its rows decide."""
        if not self._answers(chosen, "fill_options"):
            return {}
        others = [c.plugin for c in self.chosen if c is not chosen]
        answers = self._called("fill_options", self.manager.subset_hook_caller("fill_options", others), run=run)
        return {key: value for answer in answers for key, value in answer.items()}

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

    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer:
        """The one plugin's optimizer that has one, else the core's own; Refused when two plugins have one."""
        given = {"run": run, "model": model}
        own = self.manager.subset_hook_caller("create_optimizer", [one.plugin for one in self.chosen])
        found: list[tuple[str, Optimizer]] = []
        for chosen in self.chosen:
            if self._answers(chosen, "create_optimizer"):
                others = [one for one in self.manager.get_plugins() if one is not chosen.plugin]
                caller = self.manager.subset_hook_caller("create_optimizer", others)
                found += [(chosen.label, one) for one in self._called("create_optimizer", caller, **given)]
        if len(found) > 1:
            raise Refused(f"{found[0][0]} and {found[1][0]} each bring an optimizer; drop the option of one of them")
        made: Optimizer = found[0][1] if found else own(**given)[0]
        return made

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
        """The hook as `chosen` answers it, and as extensions, task and family act around it."""
        others = [c for c in self.chosen if c is not chosen and c.kind != "extension"]
        silent = [c.plugin for c in others if c.kind == "method" or _answers_alone(c.plugin, hook)]
        return self.manager.subset_hook_caller(hook, silent)

    def _fold(self, hook: str, chosen: Chosen, **given: Any) -> nn.Module:
        answers: list[Any] = self._called(hook, self._alone(hook, chosen), **given)
        if not answers:
            raise FtcoreError(f"{chosen.label} returned nothing from {hook}; return the model")
        return answers[0]  # type: ignore[no-any-return]

    def _first(self, hook: str, kind: Kind, **given: Any) -> Any:
        answer = self._called(hook, getattr(self.manager.hook, hook), **given)
        if answer is None:
            labels = " and ".join(c.label for c in self.chosen if c.kind == kind)
            raise FtcoreError(f"{labels} returned nothing from {hook}; return what the hook's page says")
        return answer

    def _called(self, hook: str, caller: Callable[..., Any], **given: Any) -> Any:
        """The answers to a hook; an exception that leaves it keeps its type and names the plugin that raised it."""
        try:
            return caller(**given)
        except FtcoreError:
            raise
        except SystemExit as end:  # the process is not a plugin's to end: what is trained so far would be lost
            culprit = _culprit(self.chosen, end)
            who = culprit.label if culprit else "a plugin"
            raise FtcoreError(f"{who} tried to end the process in {hook}; it must raise an error instead") from end
        except Exception as fault:
            culprit = _culprit(self.chosen, fault)
            if culprit is None:
                raise
            note = f"in {hook} of {culprit.label}"
            try:
                fault.add_note(note)
            except Exception:  # an exception of a class that cannot be added to takes the note as its cause
                named = FtcoreError(note)
                named.__cause__ = fault.__cause__
                raise fault from named
            raise


def _culprit(chosen: Sequence[Chosen], fault: BaseException) -> Chosen | None:
    """The plugin whose code raised: of the frames it came through, the innermost that is one plugin's alone."""
    frames = [frame for frame, _ in traceback.walk_tb(fault.__traceback__)]
    modules = [(one, _modules_of(one.plugin)) for one in chosen]
    for frame in reversed(frames):
        owners = _owners(frame, modules)
        if len(owners) == 1:
            return owners[0]
    return None


def _owners(frame: FrameType, modules: Sequence[tuple[Chosen, set[str]]]) -> list[Chosen]:
    """The plugins that a frame may belong to: by its `self`, else by the class it stands in, else by its module."""
    code, module = frame.f_code, f"{frame.f_globals.get('__name__')}."
    itself = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    held = [one for one, _ in modules if one.plugin is itself]
    near = [one for one, theirs in modules if any(module.startswith(f"{name}.") for name in theirs)]
    return held or [one for one in near if _stands_in(type(one.plugin), code.co_qualname)] or near


def _stands_in(cls: type[object], qualified: str) -> bool:
    """Whether a function of this qualified name is written in a class or in one that it inherits from."""
    return any(qualified.startswith(f"{part.__qualname__}.") for part in cls.__mro__)


def _modules_of(plugin: object) -> set[str]:
    """The modules of a plugin's class and of those that it inherits from, packages of plugins as a whole."""
    plugins = _modules()
    names = {part.__module__ for part in own_classes(type(plugin), plugins)}
    return {top if (top := name.partition(".")[0]) in plugins else name for name in names}


class Contract(pluggy.PluginManager):
    """The hooks and the plugins of one run; what is deprecated about a hook is kept to be said of a plugin by name."""

    def __init__(self) -> None:
        self.deprecated: dict[tuple[str, str], Any] = {}
        super().__init__("ftcore")

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        """The options of a hook without its warnings, which pluggy would give without the plugin's name."""
        options = super().parse_hookspec_opts(module_or_class, name)
        if options is None:
            return None
        arguments: Mapping[str, Any] = options.get("warn_on_impl_args") or {}
        self.deprecated.update({(name, argument): warning for argument, warning in arguments.items()})
        if options.get("warn_on_impl"):
            self.deprecated[name, ""] = options["warn_on_impl"]
        return {**options, "warn_on_impl": None, "warn_on_impl_args": None}

    def warn(self, plugin: object, label: str) -> None:
        """A warning that names the plugin is given for each deprecated hook or argument, at the place that uses it."""
        for warning, function in self._relied_on(plugin):
            said, code = warning.by(label), inspect.unwrap(function).__code__
            warnings.warn_explicit(said, type(said), code.co_filename, code.co_firstlineno)

    def _relied_on(self, plugin: object) -> Iterator[tuple[Deprecated, Callable[..., object]]]:
        for caller in self.get_hookcallers(plugin) or ():
            for implementation in (found for found in caller.get_hookimpls() if found.plugin is plugin):
                for argument in ("", *implementation.argnames):
                    if (caller.name, argument) in self.deprecated:
                        yield self.deprecated[caller.name, argument], implementation.function


def bind(chosen: Sequence[Chosen], core: object) -> Hooks:
    """One manager for one run: `core` answers last, every plugin is checked against the contract."""
    from ftcore import hooks

    check_combination(chosen)
    manager = Contract()
    manager.add_hookspecs(hooks)
    manager.register(core, name="ftcore")
    for one in chosen:
        try:
            manager.register(one.plugin, name=one.label)
            manager.check_pending()
        except pluggy.PluginValidationError as unfit:
            reason = " ".join(str(unfit).split())
            raise Refused(f"{one.label} does not fit this ftcore: {reason}; install a version made for it") from None
        manager.warn(one.plugin, one.label)
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
    for one, other in combinations([c for c in chosen if _answers_alone(c.plugin, "train_step")], 2):
        raise Refused(f"{one.label} and '{other.name}' each make the training step their own way; drop one of them")
    models, tasks = ([c for c in chosen if c.kind == kind] for kind in ("model", "task"))
    for method, task in ((m, t) for m in methods for t in tasks):
        head, heads = declared_datum(task.plugin, "head"), declared_datum(method.plugin, "only_heads")
        if heads and head not in heads:
            adapted = ", ".join(heads)
            raise Refused(f"{task.label} needs the head '{head}', and {method.label} adapts {adapted}; use another")
    for task, model in ((t, m) for t in tasks for m in models):
        head, heads = declared_datum(task.plugin, "head"), declared_datum(model.plugin, "heads")
        if head not in heads:
            offered = ", ".join(heads)
            raise Refused(f"{task.label} needs the head '{head}', and {model.label} has {offered}; use another")


def _answers_alone(plugin: object, hook: str) -> bool:
    """Whether a plugin answers a hook itself, and does not only act around it."""
    marked = getattr(getattr(plugin, hook, None), "ftcore_impl", None)
    return marked is not None and not (marked["wrapper"] or marked["hookwrapper"])


def listing() -> list[Mapping[str, str | None]]:
    """Every installed plugin with the reason why it cannot be used, if there is one; none of them is imported here."""
    every = announced()
    permitted = _permitted(every)
    errors = {offer: _known_trouble(offer, permitted) for offer in every}
    unknown = [offer for offer, error in errors.items() if error is None]
    for offer, verdict in zip(unknown, probing.looked_at([o.value for o in unknown]), strict=True):
        errors[offer] = offer.trouble(verdict)
    return [
        {
            "kind": offer.kind,
            "name": offer.name,
            "distribution": offer.distribution,
            "version": offer.version,
            "error": error,
        }
        for offer, error in errors.items()
    ]


def _known_trouble(offer: Offer, permitted: Sequence[Offer]) -> str | None:
    """Why a plugin cannot be used as it is, as far as that shows without importing it."""
    rivals = [other for other in permitted if (other.kind, other.name) == (offer.kind, offer.name)]
    clash = _ambiguous(offer, rivals) if len(rivals) > 1 else None
    return _left_out(offer, allowed()) or offer.flaw() or clash


def sound(kind: Kind) -> tuple[Offer, ...]:
    """The plugins of one kind that may be used and can be imported, tried outside of this process."""
    candidates = [offer for offer in offers(kind) if not offer.flaw()]
    verdicts = probing.looked_at([offer.value for offer in candidates])
    return tuple(o for o, verdict in zip(candidates, verdicts, strict=True) if verdict.state in ("sound", "prints"))
