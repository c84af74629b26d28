"""ftcore for programs: the same path as the command line, with plugin names or instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import FtcoreError as FtcoreError
from ftcore.progress import Screen, Silent

if TYPE_CHECKING:
    from torch import nn

    from ftcore.comparing import Entry
    from ftcore.hooks import Intent, Loaded
    from ftcore.pipeline import Outcome
    from ftcore.planning import Plan


def run(*, screen: Screen | None = None, **keys: Any) -> Outcome:
    """Train as `ftcore run` does; `keys` are those of a YAML file, plugins by name or as instances.

    `ftcore.run(method=M, task=T, model=F, data="rows.jsonl", M={"option": value})`. Raises Refused for what cannot
    be run as given and Interrupted when asked to stop, with everything saved.
    """
    from ftcore import config, pipeline

    return pipeline.run(config.resolve(keys), screen or Silent())


def plan(**keys: Any) -> Plan:
    """What `run` with the same keys would do, computed without weights; its `refused` says why it would not."""
    from ftcore import planning

    return planning.plan(keys, Silent())


def compare(methods: Sequence[str], *, output: str | Path, **keys: Any) -> tuple[Entry, ...]:
    """What the same job comes to by each of `methods` (names, `a+b` for two together), the best first.

    `keys` are those of `run`, with plugins by name: each method runs in a process of its own, in OUTPUT/METHOD.
    """
    from ftcore import comparing

    return comparing.compare(methods, keys, Path(output), lambda line: None)


def load(model: Any, task: Any = None, checkpoint: str | Path | None = None, **family: Any) -> Loaded:
    """A base model with its tokenizer and parts; `family` are options of the model plugin, `task` chooses the head."""
    return _load(model, task, checkpoint, "infer", family)


def _load(model: Any, task: Any, checkpoint: str | Path | None, intent: Intent, family: Mapping[str, Any]) -> Loaded:
    from ftcore.discovery import bind, choose, declared_datum
    from ftcore.hooks import Run
    from ftcore.pipeline import load_model
    from ftcore.settings import Settings
    from ftcore.training import Core

    chosen = choose("model", model, dict(family))
    tasks = [choose("task", task, {})] if task else []
    head = declared_datum(tasks[0].plugin if tasks else None, "head")
    settings = Settings(checkpoint=None if checkpoint is None else str(checkpoint))
    hooks = bind([chosen, *tasks], Core())
    return load_model(hooks, Run(settings, intent, head))


def attach(directory: str | Path, **overrides: Any) -> Loaded:
    """The base and the adapter of a finished run, together and in evaluation mode."""
    from ftcore import pipeline

    return pipeline.attach(Path(directory), "infer", lambda line: None, overrides).loaded


def merge(directory: str | Path, *, output: str | Path, stream: bool = False, **overrides: Any) -> Path:
    """A plain checkpoint in `output` that transformers loads without ftcore and that answers as the adapted model.

    With `stream` one block of the model is in memory at a time.
    """
    from ftcore import merging

    return merging.merge(Path(directory), Path(output), lambda line: None, overrides, stream=stream)


def convert(
    checkpoint: str | Path,
    *,
    model: Any = None,
    output: str | Path,
    adapter: str | Path | None = None,
    **family: Any,
) -> Path:
    """A plain checkpoint in `output`, with its tokenizer, made from one of the family `model` in another shape.

    transformers loads it without ftcore. It keeps the precision of the files, and one tensor at a time is in memory.
    Without `model` it is the family that makes checkpoints of this type plain. With the directory
    of an adapter that was trained on its makers' modules, `output` is that adapter for the plain checkpoint instead.
    """
    from ftcore import families, merging

    merging.refuse_existing(Path(output))
    loaded = _load(model or families.converting_family(str(checkpoint)), None, checkpoint, "plan", family)
    if adapter is not None:
        return merging.convert_adapter(loaded, Path(adapter), Path(output))
    return merging.convert(loaded, Path(output))


def inject(module: nn.Module, *, method: Any, **options: Any) -> nn.Module:
    """Any torch module with `method`'s adapter in place, its base frozen; address modules by name, not by part."""
    from ftcore import adapters
    from ftcore.discovery import bind, choose
    from ftcore.hooks import Loaded, Run
    from ftcore.settings import Settings
    from ftcore.training import Core

    hooks = bind([choose("method", method, options)], Core())
    loaded = Loaded(module, None, {}, "", 0, 0)
    return adapters.inject(hooks, Run(Settings(), "train", ""), loaded, None, 1).model


def plugins() -> list[Mapping[str, str | None]]:
    """Every installed plugin: kind, name, distribution, version and the error that keeps it from being used."""
    from ftcore.discovery import listing

    return listing()
