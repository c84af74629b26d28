"""One path: load the model, prepare the data, inject the adapter, train; later attach and evaluate."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import adapters, config, directory
from ftcore.adapters import Injected
from ftcore.batches import Indexed, Order, TokenRow, sizes_of
from ftcore.checkpoints import Store, locked, publish
from ftcore.config import Recipe
from ftcore.discovery import Hooks, bind, declared_datum
from ftcore.errors import FtcoreError, Refused
from ftcore.families import read_tokenizer
from ftcore.generation import generate
from ftcore.hooks import Data, Intent, Loaded, Run
from ftcore.progress import Screen, Silent
from ftcore.seeds import seeded
from ftcore.training import Core, Job, evaluate, evaluation_order, lines, stoppable, train

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


MANY_STEPS = 10**6  # of a run whose data, and so whose length, is not known yet


@dataclass(frozen=True)
class Outcome:
    """A finished run: where it is, its metrics before and after, and the same questions answered before and after.

    `chats` says whether what was trained is a model to talk to.
    """

    output: Path
    steps: int
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    samples: tuple[Mapping[str, str], ...]
    chats: bool = True


@dataclass(frozen=True)
class Prepared:
    """A run up to its first step; `answers` are what the base said to the probes."""

    recipe: Recipe
    hooks: Hooks
    run: Run
    loaded: Loaded
    data: Data
    order: Order
    steps: int
    injected: Injected
    answers: tuple[str, ...]


def run(recipe: Recipe, screen: Screen) -> Outcome:
    """The run is finished in its output directory: begun, resumed, or found finished already."""
    recipe = completed(recipe)
    accelerator = accelerator_for(recipe)
    main, output = accelerator.is_main_process, recipe.output
    screen = screen if main else Silent()
    screen.say(f"{recipe.title} in {output}")
    with stoppable(), locked(output) if main else nullcontext():
        already = directory.is_finished(output)
        prepared = prepare(recipe, screen, answer=main and not already)
        record = directory.record(recipe, prepared.loaded, prepared.data, prepared.steps)
        if main:
            directory.same_run(output, record, recipe.settings.allow_drift, screen.say)
        if already:
            screen.say(f"{output} holds this run, finished already; nothing was trained")
            return outcome(prepared, directory.read_samples(output))
        if recipe.settings.resume and not Store(output / "checkpoints").steps():
            raise Refused(f"--resume was given and {output} holds no checkpoint; leave --resume out to start")
        if main:
            publish(output / directory.RUN_FILE, directory.as_json(record))
        fit(prepared, accelerator, screen)
        samples = samples_of(prepared) if main else ()
        if main:
            finish(prepared, record, samples)
        accelerator.wait_for_everyone()
        return outcome(prepared, samples)


def prepare(recipe: Recipe, screen: Screen, *, answer: bool) -> Prepared:
    """The model loaded, the data prepared, the adapter injected; with `answer`, the probes answered in between."""
    rehearse(recipe)
    hooks, run = begin(recipe, "train", screen.say)
    loaded = load_model(hooks, run)
    data = prepare_data(hooks, run, loaded)
    order = order_of(recipe, loaded, data)
    steps = recipe.settings.steps or order.steps(recipe.settings.epochs)
    answers = answers_of(loaded, data) if answer else ("",) * len(data.probes)
    injected = inject_adapter(hooks, run, loaded, data, steps)
    return Prepared(recipe, hooks, run, loaded, data, order, steps, injected, answers)


def completed(recipe: Recipe) -> Recipe:
    """The recipe with the options that the rows decide, which are then part of the run."""
    hooks, run = begin(recipe, "plan", lambda line: None)
    filled = {chosen.name: hooks.fill_options(run, chosen) for chosen in recipe.chosen}
    return recipe.with_filled({name: options for name, options in filled.items() if options})


def rehearse(recipe: Recipe) -> None:
    """Refused before a weight is read when model and methods do not go together, as their shapes alone tell."""
    hooks, run = begin(recipe, "plan", lambda line: None)
    try:
        inject_adapter(hooks, run, load_model(hooks, run), None, recipe.settings.steps or MANY_STEPS)
    except FtcoreError:
        raise
    except Exception:
        return  # what only fails without weights may well run with them


def begin(recipe: Recipe, intent: Intent, say: Callable[[str], None]) -> tuple[Hooks, Run]:
    """The plugins bound to one run, and the run."""
    head = next(declared_datum(c.plugin, "head") for c in recipe.chosen if c.kind == "task")
    return bind(recipe.chosen, Core()), Run(recipe.settings, intent, head, recipe.output, say)


def load_model(hooks: Hooks, run: Run) -> Loaded:
    """The base model, in evaluation mode, its activations recomputed in the backward pass when asked for."""
    with seeded(run.settings.seed, "load"):
        loaded = hooks.load_model(run)
    asked = [chosen.plugin for chosen in hooks.chosen if chosen.kind in ("method", "task")]
    reasons = (loaded.unpackable, *(declared_datum(plugin, "unpackable") for plugin in asked))
    loaded = replace(loaded, unpackable=next(filter(None, reasons), ""))
    loaded.model.eval()
    _place(run, loaded.model)
    if run.settings.gradient_checkpointing and run.intent == "train":
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return loaded


def _place(run: Run, model: Any) -> None:
    """The model is on the accelerator, if there is one, unless its loader has placed it."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is not None and run.intent in ("train", "infer", "predict") and not hasattr(model, "hf_device_map"):
        model.to(device)


def prepare_data(hooks: Hooks, run: Run, loaded: Loaded) -> Data:
    """The rows; refused when there is nothing to learn from or one holds a token that the model lacks."""
    with seeded(run.settings.seed, "data"):
        data = hooks.prepare_data(run, loaded)
    if run.intent == "train" and not data.train:
        raise Refused("there are no training rows; name a file with --data")
    for rows in (data.train, data.eval):
        for row in () if isinstance(rows, Indexed) else rows:  # those were looked at when they were written
            if isinstance(row, TokenRow):
                check_row(row, loaded.vocab_size)
    return data


def check_row(row: TokenRow, vocab_size: int) -> None:
    """Refused when the row has nothing to learn or a token that the model lacks."""
    if not row.supervised:
        raise Refused(f"{row.place} gives the model nothing to predict: {row.size} tokens, none of them supervised")
    if int(row.input_ids.max()) >= vocab_size:
        raise Refused(
            f"{row.place} holds token {int(row.input_ids.max())}, and the model has {vocab_size}; "
            "the tokenizer does not belong to this checkpoint"
        )


def order_of(recipe: Recipe, loaded: Loaded, data: Data) -> Order:
    """The order in which training rows come, across all processes."""
    settings = recipe.settings
    return Order(
        sizes_of(data.train),
        settings.seed,
        settings.batch_size,
        settings.batch_tokens,
        settings.accumulate * int(os.environ.get("WORLD_SIZE", "1")),
        by_length=bool(loaded.unpackable) or settings.packing == "off",
        shares=data.shares,
    )


def inject_adapter(hooks: Hooks, run: Run, loaded: Loaded, data: Data | None, steps: int) -> Injected:
    """The adapter in place on the frozen base."""
    return adapters.inject(hooks, run, loaded, data, steps)


def accelerator_for(recipe: Recipe) -> Accelerator:
    """One for each process; only fp16, which needs a scaler, is left to it, so that runs in threads can differ."""
    import torch
    from accelerate import Accelerator

    scaled = "fp16" if recipe.settings.precision == "fp16" else "no"
    try:
        with seeded(recipe.settings.seed, "accelerator"):
            return Accelerator(mixed_precision=scaled, cpu=not torch.accelerator.is_available())
    except ValueError as taken:
        reason = str(taken).splitlines()[0]
        raise Refused(f"this process cannot train in {recipe.settings.precision}: {reason}; start another") from None


def fit(prepared: Prepared, accelerator: Accelerator, screen: Screen) -> None:
    """The adapter is trained to the last step, from the newest sound checkpoint if there is one."""
    settings, output = prepared.recipe.settings, prepared.recipe.output
    store = Store(output / "checkpoints", settings.keep)
    with accelerator.main_process_first():
        checkpoint = store.latest(screen.say)
    if checkpoint is None and settings.resume:
        raise Refused(f"--resume was given and {output} holds no checkpoint; leave --resume out to start")
    if checkpoint is not None:
        screen.say(f"resuming after step {checkpoint.step} of {prepared.steps}")
    metrics = output / directory.METRICS_FILE
    if accelerator.is_main_process:
        directory.rewind(metrics, checkpoint.step if checkpoint else 0)

    def log(line: Mapping[str, float]) -> None:
        if accelerator.is_main_process:
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    job = Job(
        run=prepared.run,
        hooks=prepared.hooks,
        injected=prepared.injected,
        data=prepared.data,
        order=prepared.order,
        steps=prepared.steps,
        peak_lr=settings.lr or suggested_lr(prepared),
        accelerator=accelerator,
        store=store,
        screen=screen,
        log=log,
    )
    train(job, checkpoint)


def suggested_lr(prepared: Prepared) -> float:
    """The learning rate of the first method, scaled for the model."""
    own: float = declared_datum(prepared.hooks.methods[0].plugin, "suggested_lr")
    return own * prepared.loaded.lr_scale


def answers_of(loaded: Loaded, data: Data) -> tuple[str, ...]:
    """What the model says to each probe, greedily, in at most 64 tokens."""
    stops = (*data.stop_ids, *loaded.stop_ids)
    return tuple(generate(loaded.model, loaded.tokenizer, p.input_ids, stops, max_new_tokens=64) for p in data.probes)


def samples_of(prepared: Prepared) -> tuple[dict[str, str], ...]:
    """The probes with the base's answers and the adapted model's."""
    prepared.injected.model.eval()
    after = answers_of(replace(prepared.loaded, model=prepared.injected.model), prepared.data)
    asked = zip(prepared.data.probes, prepared.answers, after, strict=True)
    return tuple({"question": probe.question, "before": before, "after": answer} for probe, before, answer in asked)


def finish(prepared: Prepared, record: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> None:
    """The adapter, the tokenizer and, last, the report and the card are in the output directory."""
    from ftcore.report import Finished

    output, recipe, injected = prepared.recipe.output, prepared.recipe, prepared.injected
    adapter = adapters.saved(prepared.hooks, prepared.run, injected)
    directory.write_adapter(output, adapter)
    assert prepared.loaded.tokenizer is not None
    directory.write_tokenizer(output, prepared.loaded.tokenizer)
    share = 100 * injected.trainable / injected.total
    finished = Finished(
        title=recipe.title,
        command=f"ftcore run --config {output / directory.RUN_FILE}",
        config=recipe.plain(),
        plugins=record["plugins"],
        facts={
            "trainable parameters": f"{injected.trainable:,} of {injected.total:,} ({share:.2f} %)",
            "steps": f"{prepared.steps:,}",
            **{name.replace("_", " "): f"{count:,}" for name, count in prepared.data.counts.items()},
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
        metrics=directory.read_metrics(output / directory.METRICS_FILE),
        samples=samples,
        base=prepared.loaded.checkpoint,
        library=adapter.library,
        chats=prepared.run.head == "causal-lm",
    )
    directory.write_pages(output, finished)


def outcome(prepared: Prepared, samples: Sequence[Mapping[str, str]]) -> Outcome:
    """What the run came to, as its directory tells it."""
    before, after = directory.metric_ends(prepared.recipe.output)
    chats = prepared.run.head == "causal-lm"
    return Outcome(prepared.recipe.output, prepared.steps, after, before, tuple(samples), chats)


@dataclass(frozen=True)
class Attached:
    """A finished run's base and adapter together again, and what the base was before."""

    recipe: Recipe
    hooks: Hooks
    run: Run
    loaded: Loaded
    injected: Injected
    base_class: type[nn.Module]
    base_names: frozenset[str]


def reopen(
    output: Path, intent: Intent, overrides: Mapping[str, object], say: Callable[[str], None]
) -> tuple[Recipe, Hooks, Run, int]:
    """A finished run begun anew for another purpose, and the steps that it took."""
    saved = directory.read_run(output)
    recipe = config.resolve(config.overridden(saved.run, overrides)).with_filled(saved.filled)
    return recipe, *begin(recipe, intent, say), saved.steps


def load_base(hooks: Hooks, run: Run, output: Path) -> Loaded:
    """The base of the run in `output`; refused when it is not what the adapter was trained on."""
    loaded = load_model(hooks, run)
    if directory.fingerprint(loaded.checkpoint) != directory.read_run(output).base_fingerprint:
        raise Refused(f"the base weights in '{loaded.checkpoint}' are not those that {output} was trained on")
    return loaded


def attach(
    output: Path, intent: Intent, say: Callable[[str], None], overrides: Mapping[str, object] | None = None
) -> Attached:
    """The adapted model of a finished run, in evaluation mode; refused when base or adapter are not what they were."""
    return attached_to(*opened_base(output, intent, say, overrides or {}))


def opened_base(
    output: Path, intent: Intent, say: Callable[[str], None], overrides: Mapping[str, object]
) -> tuple[Path, Recipe, Hooks, Run, int, Loaded]:
    """A finished run with its base loaded, not yet adapted, and the tokenizer that it trained with."""
    recipe, hooks, run, steps = reopen(output, intent, overrides, say)
    loaded = replace(load_base(hooks, run, output), tokenizer=read_tokenizer(str(output)))
    return output, recipe, hooks, run, steps, loaded


def attached_to(output: Path, recipe: Recipe, hooks: Hooks, run: Run, steps: int, loaded: Loaded) -> Attached:
    """The base with its adapter in place, as training left it."""
    base_class, base_names = type(loaded.model), frozenset(loaded.model.state_dict())
    injected = inject_adapter(hooks, run, loaded, None, steps)
    adapters.restore(hooks, run, injected, directory.read_adapter(output))
    injected.model.eval()
    return Attached(recipe, hooks, run, replace(loaded, model=injected.model), injected, base_class, base_names)


@dataclass(frozen=True)
class Examined:
    """A finished run with rows to answer: they were prepared on the base, before the adapter was in it."""

    attached: Attached
    data: Data
    accelerator: Accelerator
    model: nn.Module
    order: Order


def examined(output: Path, data: Sequence[str], intent: Intent, screen: Screen) -> Examined:
    """The finished run and the rows of `data`, or its own held-out rows; refused when there are none."""
    overrides: dict[str, object] = {"data": [], "eval_data": list(data), "eval_share": 0.0} if data else {}
    opened = opened_base(output, intent, screen.say, overrides)
    _, recipe, hooks, run, _, loaded = opened
    prepared = prepare_data(hooks, run, loaded)
    if not prepared.eval:
        raise Refused(f"the run in '{output}' held no rows out; name some with --data")
    attached, accelerator = attached_to(*opened), accelerator_for(recipe)
    model = accelerator.prepare(attached.injected.model)
    return Examined(attached, prepared, accelerator, model, evaluation_order(recipe.settings, prepared))


def evaluate_run(output: Path, data: Sequence[str], screen: Screen) -> dict[str, float]:
    """The task's metrics of a finished run on the rows of `data`, or on its own held-out rows."""
    found = examined(output, data, "infer", screen)
    run, rows = found.attached.run, found.data
    metrics = evaluate(run, rows, found.model, found.order, found.accelerator, rows.loss)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def predict_run(output: Path, data: Sequence[str], file: Path, screen: Screen) -> int:
    """`file` holds what the finished run answers, a line of JSON for each record of `data`; returns their number."""
    found = examined(output, data, "predict", screen)
    if found.data.scoring is None:
        task = found.attached.recipe.named("task")
        raise Refused(f"the task '{task}' answers no rows; 'ftcore evaluate' measures its loss")
    answers = lines(found.attached.run, found.data, found.model, found.order, found.accelerator)
    if found.accelerator.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        publish(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers).encode())
    return len(answers)
