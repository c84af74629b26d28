"""One path: load the model, prepare the data, inject the adapter, train, and later evaluate, attach or merge."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import adapters, config
from ftcore.adapters import Injected
from ftcore.batches import Order, digest
from ftcore.checkpoints import Store, locked, publish
from ftcore.config import Recipe
from ftcore.discovery import Hooks, bind, declared_datum
from ftcore.errors import Refused
from ftcore.hooks import Adapter, Data, Intent, Loaded, Run
from ftcore.progress import Screen
from ftcore.seeds import seeded
from ftcore.training import Core, Job, evaluate, evaluation_order, train

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

RUN_FILE, METRICS_FILE = "ftcore.json", "metrics.jsonl"


@dataclass(frozen=True)
class Outcome:
    """A finished run: where it is, its metrics before and after, and the same questions answered before and after."""

    output: Path
    steps: int
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    samples: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Prepared:
    """A run up to its first step, the same whether it trains or only plans."""

    recipe: Recipe
    hooks: Hooks
    run: Run
    loaded: Loaded
    data: Data
    order: Order
    steps: int
    injected: Injected
    answers: tuple[str, ...] = ()


def begin(recipe: Recipe, intent: Intent, say: Callable[[str], None]) -> tuple[Hooks, Run]:
    """The plugins bound to one run, and the run."""
    core = Core()
    head = next(declared_datum(c.plugin, "head") for c in recipe.chosen if c.kind == "task")
    return bind(recipe.chosen, core), Run(recipe.settings, intent, head, recipe.output, say)


def prepare(recipe: Recipe, intent: Intent, screen: Screen, answer: bool = False) -> Prepared:
    """The model loaded, the data prepared, the adapter injected; with `answer`, the probes answered in between."""
    hooks, run = begin(recipe, intent, screen.say)
    loaded = load_model(hooks, run)
    data = prepare_data(hooks, run, loaded)
    order = order_of(recipe, loaded, data)
    steps = recipe.settings.steps or order.steps(recipe.settings.epochs)
    answers = answers_of(loaded, data) if answer else ()
    injected = inject_adapter(hooks, run, loaded, data, steps)
    return Prepared(recipe, hooks, run, loaded, data, order, steps, injected, answers)


def load_model(hooks: Hooks, run: Run) -> Loaded:
    """The base model, in evaluation mode, its activations recomputed in the backward pass when asked for."""
    with seeded(run.settings.seed, "load"):
        loaded = hooks.load_model(run)
    loaded.model.eval()
    if run.settings.gradient_checkpointing and run.intent == "train":
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return loaded


def prepare_data(hooks: Hooks, run: Run, loaded: Loaded) -> Data:
    """The rows; refused when there is nothing to learn from or one holds a token that the model lacks."""
    with seeded(run.settings.seed, "data"):
        data = hooks.prepare_data(run, loaded)
    if run.intent == "train" and not data.train:
        raise Refused("there are no training rows; name a file with --data")
    for row in (*data.train, *data.eval):
        largest = max(getattr(row, "input_ids", (0,)))
        if largest >= loaded.vocab_size:
            raise Refused(
                f"{row.place} holds token {largest}, and the model has {loaded.vocab_size}; "
                "the tokenizer does not belong to this checkpoint"
            )
    return data


def inject_adapter(hooks: Hooks, run: Run, loaded: Loaded, data: Data | None, steps: int) -> Injected:
    """The adapter in place on the frozen base."""
    return adapters.inject(hooks, run, loaded, data, steps)


def order_of(recipe: Recipe, loaded: Loaded, data: Data) -> Order:
    """The order in which training rows come, across all processes."""
    settings = recipe.settings
    padded = bool(loaded.unpackable) or settings.packing == "off"
    return Order(
        [row.size for row in data.train],
        settings.seed,
        settings.batch_size,
        settings.batch_tokens,
        settings.accumulate * int(os.environ.get("WORLD_SIZE", "1")),
        by_length=padded,
    )


def run(recipe: Recipe, screen: Screen) -> Outcome:
    """The run is finished in its output directory: begun, resumed, or found finished already."""
    accelerator = _accelerator(recipe)
    with locked(recipe.output) if accelerator.is_main_process else _unlocked():
        asks = accelerator.is_main_process and not _finished(recipe.output)
        prepared = prepare(recipe, "train", screen, answer=asks)
        record = _record(prepared)
        _same_run(recipe, record, screen)
        if _finished(recipe.output):
            screen.say(f"{recipe.output} holds this run, finished already; nothing was trained")
            return _outcome(prepared, _probed(recipe.output))
        if accelerator.is_main_process:
            publish(recipe.output / RUN_FILE, _json(record))
        _train(prepared, accelerator, screen)
        samples = _samples(prepared)
        if accelerator.is_main_process:
            _finish(prepared, record, samples)
        return _outcome(prepared, samples)


def _accelerator(recipe: Recipe) -> Accelerator:
    """One for every process; only fp16, which needs a scaler, is left to it, so that runs in threads can differ."""
    from accelerate import Accelerator

    with seeded(recipe.settings.seed, "accelerator"):
        return Accelerator(mixed_precision="fp16" if recipe.settings.precision == "fp16" else "no")


def _unlocked() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _train(prepared: Prepared, accelerator: Accelerator, screen: Screen) -> None:
    settings, output = prepared.recipe.settings, prepared.recipe.output
    store = Store(output / "checkpoints", settings.keep)
    checkpoint = store.latest(screen.say)
    if checkpoint is None and settings.resume:
        raise Refused(f"--resume was given and {output} holds no checkpoint; leave --resume out to start")
    if checkpoint is not None:
        screen.say(f"resuming after step {checkpoint.step} of {prepared.steps}")
    _rewind(output / METRICS_FILE, checkpoint.step if checkpoint else 0)
    method = prepared.hooks.methods[0]
    peak = settings.lr or declared_datum(method.plugin, "suggested_lr")

    def log(line: Mapping[str, float]) -> None:
        if accelerator.is_main_process:
            with (output / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    job = Job(
        prepared.run, prepared.hooks, prepared.injected, prepared.data, prepared.order, prepared.steps,
        peak, accelerator, store, screen, log,
    )  # fmt: skip
    train(job, checkpoint)


def _rewind(metrics: Path, done: int) -> None:
    """The log holds what belongs to the first `done` steps; what came after is written again."""
    kept = [line for line in read_metrics(metrics) if line["step"] < done or (line["step"] == done and "loss" in line)]
    publish(metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl; a last one cut off half-way is left out."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def _record(prepared: Prepared) -> dict[str, Any]:
    """Everything that says what this run is."""
    recipe, loaded, data = prepared.recipe, prepared.loaded, prepared.data
    written = recipe.plain()
    for key in ("data", "eval_data"):
        written[key] = [_absolute(source) for source in written[key]]
    if recipe.settings.checkpoint:
        written["checkpoint"] = loaded.checkpoint
    return {
        "ftcore": version(),
        "run": written,
        "steps": prepared.steps,
        "base": loaded.checkpoint,
        "plugins": [
            {"kind": c.kind, "name": c.name, "distribution": c.distribution, "version": c.version}
            for c in recipe.chosen
        ],
        "fingerprints": {
            "data": digest(data.train),
            "eval_data": digest(data.eval),
            "base": fingerprint(loaded.checkpoint),
        },
        "versions": _versions(),
        "trainable_parameters": prepared.injected.trainable,
        "total_parameters": prepared.injected.total,
    }


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def version() -> str:
    """The installed version of ftcore."""
    from importlib import metadata

    return metadata.version("ftcore")


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "safetensors")}


def fingerprint(folder: str) -> str:
    """A sha256 over the weights, the configuration and the tokenizer of a checkpoint directory."""
    import hashlib

    hashed = hashlib.sha256()
    for file in sorted(Path(folder).glob("*")):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model") and file.is_file():
            hashed.update(file.name.encode())
            with file.open("rb") as content:
                hashed.update(hashlib.file_digest(content, "sha256").digest())
    return hashed.hexdigest()


def _same_run(recipe: Recipe, record: Mapping[str, Any], screen: Screen) -> None:
    """The directory is new or holds this run; another run in it is refused, by what differs."""
    file = recipe.output / RUN_FILE
    if not file.exists():
        strangers = [p.name for p in recipe.output.iterdir() if p.name != ".lock"]
        if strangers:
            raise Refused(
                f"the output directory {recipe.output} holds '{sorted(strangers)[0]}' and no run; "
                "name an empty or new one with --output"
            )
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    found = config.changes(saved["run"], record["run"])
    found += config.changes(saved["fingerprints"], record["fingerprints"])
    found += config.changes({"steps": saved["steps"]}, {"steps": record["steps"]})
    breaking = [change for change in found if not change.harmless]
    if breaking and not recipe.settings.allow_drift:
        listed = "; ".join(str(change) for change in breaking)
        raise Refused(
            f"{recipe.output} holds another run: {listed}; name a new --output, or --allow-drift to go on all the same"
        )
    for change in found:
        screen.say(f"note: {change}")


def _finished(output: Path) -> bool:
    return (output / "README.md").exists()


def answers_of(loaded: Loaded, data: Data) -> tuple[str, ...]:
    """What the model says to each probe, greedily, in at most 64 tokens."""
    return tuple(_answer(loaded, data, probe.input_ids) for probe in data.probes)


def _answer(loaded: Loaded, data: Data, input_ids: Sequence[int]) -> str:
    from ftcore.chat import generate

    stops = (*data.stop_ids, *loaded.stop_ids)
    return generate(loaded.model, loaded.tokenizer, input_ids, stops, max_new_tokens=64)


def _samples(prepared: Prepared) -> tuple[dict[str, str], ...]:
    """The probes with the base's answers and the adapted model's."""
    prepared.injected.model.eval()
    adapted = replace(prepared.loaded, model=prepared.injected.model)
    after = answers_of(adapted, prepared.data)
    asked = zip(prepared.data.probes, prepared.answers or [""] * len(after), after, strict=True)
    return tuple({"question": probe.question, "before": before, "after": answer} for probe, before, answer in asked)


def _finish(prepared: Prepared, record: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> None:
    """The adapter, the tokenizer and, last, the report and the card are in the output directory."""
    from safetensors.torch import save

    from ftcore.report import Finished, model_card, report_html

    output, recipe = prepared.recipe.output, prepared.recipe
    adapter = adapters.saved(prepared.hooks, prepared.run, prepared.injected)
    publish(output / adapters.CONFIG_FILE, _json(adapter.config))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    publish(output / adapters.TENSOR_FILE, save(tensors, {"format": "pt"}))
    _save_tokenizer(prepared.loaded, output)
    finished = Finished(
        title=recipe.title,
        command=f"ftcore run --config {output / RUN_FILE}",
        config=recipe.plain(),
        plugins=record["plugins"],
        facts=_facts(prepared),
        metrics=read_metrics(output / METRICS_FILE),
        samples=samples,
        base=prepared.loaded.checkpoint,
        library="peft" if "peft_type" in adapter.config else "ftcore",
    )
    publish(output / "samples.json", _json(list(samples)))
    publish(output / "report.html", report_html(finished).encode())
    publish(output / "README.md", model_card(finished).encode())


def _save_tokenizer(loaded: Loaded, output: Path) -> None:
    import tempfile

    assert loaded.tokenizer is not None
    with tempfile.TemporaryDirectory() as folder:
        loaded.tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            publish(output / file.name, file.read_bytes())


def _facts(prepared: Prepared) -> dict[str, str]:
    trainable, total = prepared.injected.trainable, prepared.injected.total
    counts = {name.replace("_", " "): f"{count:,}" for name, count in prepared.data.counts.items()}
    return {
        "trainable parameters": f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)",
        "steps": f"{prepared.steps:,}",
        **counts,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _probed(output: Path) -> tuple[dict[str, str], ...]:
    file = output / "samples.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else ()


def _outcome(prepared: Prepared, samples: Sequence[Mapping[str, str]]) -> Outcome:
    lines = [line for line in read_metrics(prepared.recipe.output / METRICS_FILE) if "eval_loss" in line]
    ends = (lines[0], lines[-1]) if lines else ({}, {})
    before, after = ({k.removeprefix("eval_"): v for k, v in line.items() if k != "step"} for line in ends)
    return Outcome(prepared.recipe.output, prepared.steps, after, before, tuple(samples))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n").encode()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


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


def attach(
    directory: Path, intent: Intent, say: Callable[[str], None], overrides: Mapping[str, object] | None = None
) -> Attached:
    """The adapted model of a finished run, in evaluation mode; refused when base or adapter are not what they were."""
    saved = read_run(directory)
    recipe = config.resolve({**saved["run"], **(overrides or {})})
    hooks, run = begin(recipe, intent, lambda line: None)
    loaded = load_model(hooks, run)
    if fingerprint(loaded.checkpoint) != saved["fingerprints"]["base"]:
        raise Refused(f"the base weights in '{loaded.checkpoint}' are not those that {directory} was trained on")
    base_class, base_names = type(loaded.model), frozenset(loaded.model.state_dict())
    injected = inject_adapter(hooks, run, loaded, None, int(saved["steps"]))
    adapters.restore(hooks, run, injected, _adapter(directory))
    injected.model.eval()
    from ftcore.families import read_tokenizer

    tokenizer = read_tokenizer(str(directory))
    adapted = replace(loaded, model=injected.model, tokenizer=tokenizer)
    return Attached(recipe, hooks, run, adapted, injected, base_class, base_names)


def read_run(directory: Path) -> dict[str, Any]:
    """The record of a finished run; Refused when the directory holds none or it is not finished."""
    if not (directory / RUN_FILE).is_file():
        raise Refused(f"'{directory}' holds no {RUN_FILE}; pass the --output directory of a run")
    if not _finished(directory):
        raise Refused(f"the run in '{directory}' is not finished; run its command again first")
    saved: dict[str, Any] = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
    return saved


def _adapter(directory: Path) -> Adapter:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        described = json.loads((directory / adapters.CONFIG_FILE).read_text(encoding="utf-8"))
        return Adapter(described, load((directory / adapters.TENSOR_FILE).read_bytes()))
    except (OSError, SafetensorError, json.JSONDecodeError) as broken:
        reason = f"{type(broken).__name__}: {broken}"
        raise Refused(f"the adapter in '{directory}' cannot be read ({reason}); run its command again") from None


def evaluate_run(directory: Path, data: Sequence[str], screen: Screen) -> dict[str, float]:
    """The task's metrics of a finished run on the rows of `data`, or on its own held-out rows."""
    overrides: dict[str, object] = {"eval_data": list(data), "eval_share": 0.0} if data else {}
    attached = attach(directory, "infer", screen.say, overrides)
    prepared = prepare_data(attached.hooks, attached.run, attached.loaded)
    if not prepared.eval:
        raise Refused(f"the run in '{directory}' held no rows out; name some with --data")
    accelerator = _accelerator(attached.recipe)
    model = accelerator.prepare(attached.injected.model)
    order = evaluation_order(attached.recipe.settings, prepared)
    metrics = evaluate(attached.run, prepared, model, order, accelerator, prepared.loss)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
