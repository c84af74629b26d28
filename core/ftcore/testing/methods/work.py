"""A method at work: on which scene, in which runs, and what was seen of them; checks share what is made here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ftcore
from ftcore import adapters, pipeline
from ftcore.adapters import Injected
from ftcore.batches import Order, digest
from ftcore.config import Recipe
from ftcore.declaring import build
from ftcore.discovery import Chosen, Hooks, Kind, choose, declared_datum
from ftcore.errors import Refused
from ftcore.hooks import Adapter, Batch, Data, Intent, Loaded, Run, hookimpl
from ftcore.pipeline import Attached
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing.kit import Bench, Failed
from ftcore.testing.methods.properties import Exercise, exercise_row, head_fields, logits_of, padded
from ftcore.testing.stage import STAGES, Decoder, FusedDecoder, Recital, tiny_checkpoint
from ftcore.training import learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")
CAUSAL, FUSED = "causal-lm", "fused"
WEIGHTS = "model.safetensors"
STEPS, HALF = 6, 3
# Steps large enough that an adapter that is lost, doubled or off by a hundredth changes the answers visibly.
KEYS: Mapping[str, Any] = {
    "precision": "fp32", "steps": STEPS, "batch_size": 4, "lr": 1e-2, "schedule": "constant", "weight_decay": 0.1,
    "seed": 7, "save_every": HALF, "keep": 9, "log_every": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A family, a checkpoint and a task that go together."""

    family: object
    task: object
    checkpoint: Path

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of a run on this scene."""
        return {"model": self.family, "task": self.task, "checkpoint": self.checkpoint}

    @property
    def head(self) -> str:
        """The head that the task needs."""
        found: str = declared_datum(self.task, "head")
        return found


def scene_of(name: str, checkpoint: Path | None = None, **fields: Any) -> Scene:
    """The kit's scene for a head, or FUSED; its decoder has biases, so that methods that train them find some."""
    if name == FUSED:
        return Scene(FusedDecoder(), Recital(), checkpoint or tiny_checkpoint("phi3"))
    family, model_type = STAGES[name]
    own = {"attention_bias": True, "mlp_bias": True} if name == CAUSAL else head_fields(name)
    found = checkpoint or tiny_checkpoint(model_type, name, **own, **fields)
    return Scene(Decoder(), Recital(), found) if name == CAUSAL else Scene(family(), Exercise(head=name), found)


def other_weights(scene: Scene, folder: Path) -> Path:
    """`folder` holds the checkpoint of a scene with its weights the other way round."""
    from safetensors.torch import save_file

    shutil.copytree(scene.checkpoint, folder)
    turned = {name: tensor.flip(0).contiguous() for name, tensor in read(folder / WEIGHTS).items()}
    save_file(turned, folder / WEIGHTS, {"format": "pt"})
    return folder


def heads_of(plugin: object) -> tuple[str, ...]:
    """The heads that a method claims to adapt."""
    claimed: tuple[str, ...] = tuple(declared_datum(plugin, "only_heads"))
    return claimed or tuple(STAGES)


def decodes(plugin: object) -> bool:
    """Whether a method claims to adapt decoders."""
    return CAUSAL in heads_of(plugin)


def main_scene(bench: Bench) -> Scene:
    """Where a method is tried first: a decoder, unless it claims other heads only."""
    heads = heads_of(bench.plugin)
    unknown = [head for head in heads if head not in STAGES]
    if unknown:
        raise Failed(f"only_heads names '{unknown[0]}', and there are {', '.join(STAGES)}")
    return bench.once("scene", lambda: scene_of(CAUSAL if CAUSAL in heads else heads[0]))


def recipe_of(plugins: object, scene: Scene, **keys: Any) -> Recipe:
    """A run of one method or several, as the kit runs it."""
    methods = plugins if isinstance(plugins, list) else [plugins]
    settings = {**KEYS, "checkpoint": str(scene.checkpoint), "output": "nowhere", **keys}
    taken = [("method", method) for method in methods] + [("task", scene.task), ("model", scene.family)]
    return Recipe(build(Settings, settings, "the run"), tuple(_chosen(kind, plugin) for kind, plugin in taken))


@lru_cache(maxsize=64)
def _chosen(kind: Kind, plugin: object) -> Chosen:
    """A plugin as a run knows it; finding out takes longer than a step of training."""
    return choose(kind, plugin, {})


# A method on a model, hook by hook


@dataclass(frozen=True)
class Staged:
    """A run up to its first step: what the base was, and the model with the adapter."""

    recipe: Recipe
    hooks: Hooks
    run: Run
    loaded: Loaded
    data: Data | None
    base: Mapping[str, Tensor]
    classes: Mapping[str, type[nn.Module]]
    rows_before: str
    injected: Injected

    @property
    def model(self) -> nn.Module:
        """The adapted model."""
        return self.injected.model

    @property
    def rows(self) -> Data:
        """The data of a run that trains."""
        assert self.data is not None
        return self.data


def silent(line: str) -> None:
    """Nothing is said."""


def staging(plugins: object, scene: Scene, intent: Intent = "train", **keys: Any) -> Generator[None, None, Staged]:
    """The method or methods injected into a base of their own, one hook at a time."""
    recipe = recipe_of(plugins, scene, **keys)
    hooks, run = pipeline.begin(recipe, intent, silent)
    loaded = pipeline.load_model(hooks, run)
    yield
    data = pipeline.prepare_data(hooks, run, loaded) if intent == "train" else None
    yield
    base = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    classes = {name: type(module) for name, module in loaded.model.named_modules()}
    rows = fingerprint(data)
    injected = pipeline.inject_adapter(hooks, run, loaded, data, recipe.settings.steps or 1)
    return Staged(recipe, hooks, run, loaded, data, base, classes, rows, injected)


def fingerprint(data: Data | None) -> str:
    """What changes when rows do."""
    return digest((*data.train, *data.eval)) if data else ""


def done(work: Generator[None, None, T]) -> T:
    """What the work comes to when nothing comes between its parts."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: T = end.value
            return found


def staged(plugins: object, scene: Scene, intent: Intent = "train", **keys: Any) -> Staged:
    """The method or methods injected into a base of their own."""
    return done(staging(plugins, scene, intent, **keys))


def begun(bench: Bench) -> Staged:
    """The method on the main scene before the first step, with padded rows where it cannot have those laid end to end.

    For looking at only: checks share it.
    """

    def make() -> Staged:
        if declared_datum(bench.plugin, "unpackable"):
            return staged(bench.plugin, main_scene(bench), packing="off")
        try:
            return staged(bench.plugin, main_scene(bench))
        except Refused:
            if not decodes(bench.plugin):
                raise
            return staged(bench.plugin, main_scene(bench), packing="off")

    return bench.once("begun", make)


def packing_of(bench: Bench) -> str:
    """`off` for a method that cannot have rows laid end to end."""
    return begun(bench).recipe.settings.packing


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, accelerate works on the CPU, where results are the same bit for bit; outside it is as it was."""
    import torch
    from accelerate.state import AcceleratorState, PartialState

    if not torch.accelerator.is_available():
        yield
        return
    places = {state.__name__: state._shared_state for state in (AcceleratorState, PartialState)}
    theirs, asked = _swapped(places, OURS), os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        OURS.update(_swapped(places, theirs))
        del os.environ["ACCELERATE_USE_CPU"]
        os.environ.update({} if asked is None else {"ACCELERATE_USE_CPU": asked})


# What accelerate shares among all its users in a process, as the kit uses it where there is an accelerator.
OURS: dict[str, dict[str, Any]] = {}


def _swapped(places: Mapping[str, dict[str, Any]], contents: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the dictionaries held; afterwards each holds its part of `contents`."""
    held = {name: dict(place) for name, place in places.items()}
    for name, place in places.items():
        place.clear()
        place.update(contents.get(name, {}))
    return held


@dataclass(frozen=True)
class Loop:
    """What a step needs beside its rows."""

    staged: Staged
    order: Order
    optimizer: Optimizer
    model: nn.Module
    prepared: Optimizer
    accelerator: Accelerator


def loop_of(stage: Staged) -> Loop:
    """A loop that has made no step yet."""
    optimizer = stage.hooks.create_optimizer(stage.run, stage.model)
    with on_cpu():
        accelerator = pipeline.accelerator_for(stage.recipe)
        model, prepared = accelerator.prepare(stage.model, optimizer)
    order = pipeline.order_of(stage.recipe, stage.loaded, stage.rows)
    return Loop(stage, order, optimizer, model, prepared, accelerator)


def stepped(loop: Loop, step: int, pieces: int = 1) -> float:
    """One step of training, as a run makes it, each micro-batch dealt into `pieces`; the loss that it reports."""
    stage, settings = loop.staged, loop.staged.recipe.settings
    for group in loop.optimizer.param_groups:
        group["lr"] = learning_rate(settings, settings.lr or 0.0, step, STEPS) * group.get("lr_ratio", 1.0)
    stage.model.train()
    with seeded(settings.seed, "step", step, 0), on_cpu():
        return stage.hooks.train_step(
            run=stage.run, step=step, model=loop.model, batches=batches_of(loop, step, pieces), loss=stage.rows.loss,
            optimizer=loop.prepared, accelerator=loop.accelerator,
        )  # fmt: skip


def batches_of(loop: Loop, step: int, pieces: int = 1) -> list[Batch]:
    """The micro-batches of a step, each dealt into `pieces`."""
    data = loop.staged.rows
    dealt = [rows[piece::pieces] for rows in next(loop.order.after(step - 1)) for piece in range(pieces)]
    return [data.collate([data.train[i] for i in rows]) for rows in dealt if rows]


def practise(stage: Staged, steps: int = 2) -> Staged:
    """The same, trained for a few steps: in the second one also what stands before a zero gets a gradient."""
    loop = loop_of(stage)
    for step in range(1, steps + 1):
        stepped(loop, step)
    return stage


def practised(plugins: object, scene: Scene, steps: int = 2, **keys: Any) -> Staged:
    """A method injected and trained for a few steps, without a directory."""
    return practise(staged(plugins, scene, **keys), steps)


def saved(stage: Staged) -> Adapter:
    """What a run would write of the method."""
    return adapters.saved(stage.hooks, stage.run, stage.injected)


def restored(plugins: object, scene: Scene, adapter: Adapter, intent: Intent = "infer", **keys: Any) -> Staged:
    """A saved adapter on a base of its own."""
    stage = staged(plugins, scene, intent, **keys)
    adapters.restore(stage.hooks, stage.run, stage.injected, adapter)
    return stage


def folded(stage: Staged) -> nn.Module:
    """The adapted model, merged."""
    return adapters.fold(stage.hooks, stage.run, stage.model.eval())


# Whole runs


@dataclass(eq=False)
class Witness:
    """An extension that sees a run from within: the model, what was frozen, what trains, and the gradients."""

    model: nn.Module | None = None
    frozen: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    trained: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    slopes: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @hookimpl(wrapper=True)
    def inject_adapter(self, run: Run, model: nn.Module) -> Generator[None, Any, Any]:
        """Every tensor is remembered as it is before the first step: those of the base that stay, those that train."""
        brought = {id(tensor) for tensor in tensors_of(model).values()}
        answer = yield
        if run.intent != "train":
            return answer
        self.model = adapted = answer[0]
        for name, tensor in tensors_of(adapted).items():
            kept = (name, tensor, tensor.detach().clone())
            if tensor.requires_grad:
                self.trained.append(kept)
            elif id(tensor) in brought:
                self.frozen.append(kept)
        return answer

    @hookimpl(wrapper=True)
    def train_step(self) -> Generator[None, Any, Any]:
        """The largest gradient that each trainable tensor ever had is remembered."""
        loss = yield
        self.steps += 1
        for name, tensor, _ in self.trained:
            slope = 0.0 if tensor.grad is None else float(tensor.grad.abs().max())
            self.slopes[name] = max(self.slopes.get(name, 0.0), slope)
        return loss


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, also those that no state dict holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass(frozen=True)
class Trained:
    """A run that came to its last step: its directory, what was seen, and what went wrong afterwards, if anything."""

    output: Path
    witness: Witness
    fault: Exception | None

    @property
    def model(self) -> nn.Module:
        """The adapted model after training, in evaluation mode."""
        assert self.witness.model is not None
        return self.witness.model.eval()


def trained(bench: Bench, **keys: Any) -> Trained:
    """A whole run on the main scene; the exception of one that did not reach its last step."""
    name = ("trained", *sorted(keys.items()))
    return bench.once(name, lambda: run_of(bench, bench.place("run"), bench.plugin, **keys))


def run_of(bench: Bench, output: Path, plugins: object, **keys: Any) -> Trained:
    """A run in `output`, begun or resumed; the exception of one that did not reach its last step."""
    given: dict[str, Any] = {**KEYS, **main_scene(bench).keys, "packing": packing_of(bench), **keys}
    witness, fault = Witness(), None
    try:
        with on_cpu():
            ftcore.run(**{**given, "method": plugins, "output": output, "with": [witness]})
    except Exception as raised:
        if not witness.steps or (given["steps"] - witness.steps) % HALF:
            raise
        fault = raised
    return Trained(output, witness, fault)


def finished(run: Trained) -> Path:
    """The directory of a whole run; the exception of one that failed after its last step."""
    if run.fault is not None:
        raise run.fault
    return run.output


def reopening(bench: Bench, plugins: object | None = None) -> dict[str, Any]:
    """What takes the place of a run's plugins when it is opened again: fresh ones."""
    scene = main_scene(bench)
    methods = [bench.fresh()] if plugins is None else plugins
    return {"method": methods, "model": scene.family, "task": scene.task, "with": []}


def attached(bench: Bench, output: Path, intent: Intent = "infer", **overrides: Any) -> Attached:
    """The adapted model of a run, by a fresh instance of the method."""
    return pipeline.attach(output, intent, silent, {**reopening(bench), **overrides})


# What is asked of a model, and how answers are compared


def questions(scene: Scene) -> dict[str, Tensor]:
    """The forward's keywords for three rows of tokens, the shorter ones padded."""
    batch = padded(scene.head, [exercise_row(number, 300) for number in (90, 91, 93)])
    return {**batch.inputs}


def answers(model: nn.Module, asked: Mapping[str, Tensor]) -> Tensor:
    """What the model answers in evaluation mode, in float32, to every token that is one."""
    import torch

    with torch.no_grad():
        said = logits_of(model.eval()(**asked))
    per_token = said.shape[:2] == asked["input_ids"].shape
    return said[asked["attention_mask"].bool()] if per_token else said


def loaded_anew(plugin: object, scene: Scene, **keys: Any) -> Loaded:
    """The base of a scene, loaded as for the method, with nothing injected."""
    hooks, run = pipeline.begin(recipe_of(plugin, scene, **keys), "infer", silent)
    return pipeline.load_model(hooks, run)


def base_of(bench: Bench, scene: Scene, **keys: Any) -> Loaded:
    """The base of a scene, for looking at only: checks share it."""
    name = ("base", scene.checkpoint, *sorted(keys.items()))
    return bench.once(name, lambda: loaded_anew(bench.plugin, scene, **keys))


def base_answers(bench: Bench, scene: Scene, **keys: Any) -> Tensor:
    """What the base of a scene answers."""
    name = ("answers", scene.checkpoint, *sorted(keys.items()))
    return bench.once(name, lambda: answers(base_of(bench, scene, **keys).model, questions(scene)))


def trained_answers(bench: Bench) -> Tensor:
    """What the model of the main run answers after training."""
    return bench.once("answers", lambda: answers(trained(bench).model, questions(main_scene(bench))))


def merging_intent(bench: Bench) -> Intent:
    """With which intent a run is opened to see how it answers before it is merged.

    A method that has the base loaded in a way of its own, as one that quantises it, may be merged into another base.
    """
    return "merge" if has_hook("load_kwargs", bench.plugin) else "infer"


def answers_to_merge(bench: Bench) -> Tensor:
    """What the model of the main run answers on the base that it is merged into."""
    if merging_intent(bench) == "infer":
        return trained_answers(bench)
    asked = questions(main_scene(bench))
    return bench.once(
        "to merge", lambda: answers(attached(bench, finished(trained(bench)), "merge").loaded.model, asked)
    )


def base_to_merge(bench: Bench) -> Staged:
    """The method before the first step, on the base that it is merged into."""
    if merging_intent(bench) == "infer":
        return begun(bench)
    scene, packing = main_scene(bench), packing_of(bench)
    return bench.once("merges into", lambda: staged(bench.plugin, scene, "merge", packing=packing))


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference, infinite where there is no comparing."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0


def spread(tensor: Tensor) -> float:
    """The root of the mean square."""
    return float(tensor.double().square().mean().sqrt())


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor], within: float = 0.0) -> str:
    """How two sets of tensors differ, in words; empty when they do not."""
    lone = sorted(one.keys() ^ other.keys())
    if lone:
        return f"tensor '{lone[0]}' is in one of them only"
    gaps = {name: gap(tensor, other[name]) for name, tensor in one.items()}
    wrong = [name for name, found in gaps.items() if not found <= within]
    if not wrong:
        return ""
    worst = max(wrong, key=lambda name: gaps[name])
    return f"{len(wrong)} of {len(one)} tensors differ, '{worst}' by {gaps[worst]:.1e}"


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors.torch import load

    found: dict[str, Tensor] = load(file.read_bytes())
    return found


def has_hook(name: str, plugin: object) -> bool:
    """Whether the plugin answers the hook."""
    return hasattr(getattr(plugin, name, None), "ftcore_impl")


def shown(names: Sequence[str]) -> str:
    """The first of some names and how many more there are."""
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
