"""What a plugin leaves alone while it works: everything that a process shares with others in it."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ftcore import adapters
from ftcore.discovery import Kind, bind
from ftcore.hooks import Intent, Run
from ftcore.settings import Settings
from ftcore.testing.kit import Bench, Failed, bench_of, kind_of
from ftcore.testing.models import families
from ftcore.testing.neighbours import changed, process
from ftcore.testing.stage import Decoder, Recital, tiny_checkpoint
from ftcore.testing.tasks import stage as tasks_stage
from ftcore.training import Core

RANDOM = "the random state"


def check_leaves_the_process_alone(plugin: object, bench: Bench | None = None) -> None:
    """While it works it reseeds no generator and leaves environment, logging, directory and torch's settings alone."""
    bench = bench_of(kind_of(plugin, bench), plugin, bench)
    use = USES.get(bench.kind)
    if use is None:
        return
    with as_it_was():
        _tried(use, bench)  # what libraries do when they are first imported is not the plugin's doing
    with as_it_was():
        before = process()
        after = _used(use, bench, 1)
        found = [one for one in changed(before, after) if not one.startswith(RANDOM)]
    if found:
        raise Failed(f"using it changes {found[0]}, which other code in the process relies on; take that out")
    with as_it_was():
        other = _used(use, bench, 2)
    for name in (key for key in after if key.startswith(RANDOM)):
        if after[name] == other[name]:
            raise Failed(f"using it sets {name} anew, whatever it was; draw from the generator and do not seed it")


def _used(use: Callable[[Bench], None], bench: Bench, seed: int) -> dict[str, Any]:
    """What the process is like after a use that began with the generators at `seed`."""
    import numpy
    import torch

    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)
    _tried(use, bench)
    return process()


def _tried(use: Callable[[Bench], None], bench: Bench) -> None:
    """The plugin was used as far as it goes: what it raises is for the checks of its kind to say."""
    with suppress(Exception):
        use(bench)


@contextmanager
def as_it_was() -> Iterator[None]:
    """Afterwards the process is what it was before, whatever was done inside."""
    import numpy
    import torch

    state, arrays = random.getstate(), numpy.random.get_state()
    environment, directory, path = dict(os.environ), os.getcwd(), list(sys.path)
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], root.manager.disable
    deterministic, dtype, threads = (
        torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
    )  # fmt: skip
    with torch.random.fork_rng(), warnings.catch_warnings(), torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            random.setstate(state)
            numpy.random.set_state(arrays)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(directory)
            sys.path[:] = path
            root.setLevel(level)
            root.handlers[:] = handlers
            logging.disable(disabled)
            torch.use_deterministic_algorithms(deterministic)
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)


def use_method(bench: Bench) -> None:
    """The method has been through injecting, saving, loading and, where it can, merging, hook by hook."""
    chosen = bench.chosen
    hooks = bind([chosen], Core())
    run = Run(Settings(checkpoint=str(tiny_checkpoint("granite"))), "train", "causal-lm")
    loaded = Decoder().load_model(run, {})
    data = Recital().prepare_data(run, loaded)
    loaded.model.requires_grad_(False)
    model = hooks.inject_adapter(run, chosen, loaded.model, loaded, data, 4)
    injected = adapters.Injected(model, tuple(n for n, p in model.named_parameters() if p.requires_grad), ())
    data.loss(model, data.collate(data.train[:2])).backward()
    adapters.restore(hooks, run, injected, adapters.saved(hooks, run, injected))
    if hasattr(type(bench.plugin), "merge"):
        hooks.merge(run, chosen, model)


def use_task(bench: Bench) -> None:
    """The task has read its rows, batched them and computed their loss."""
    base = tasks_stage.loaded(bench)
    file = bench.once("manners", lambda: tasks_stage.file_of(bench, tasks_stage.crowd(bench, 4)))
    settings = Settings(data=(str(file),), max_length=tasks_stage.POSITIONS, eval_share=0.5)
    run = Run(settings, "train", tasks_stage.head(bench.plugin))
    data = bind([bench.chosen], Core()).prepare_data(run, base)
    data.loss(base.model, data.collate(data.train))


def use_model(bench: Bench) -> None:
    """The family has loaded a checkpoint and planned with it."""
    case = families.first(bench)
    for intent in INTENTS:
        run = Run(Settings(checkpoint=str(case.folder)), intent, case.head)
        bind([bench.chosen], Core()).load_model(run)


INTENTS: tuple[Intent, ...] = ("train", "plan")
USES: Mapping[Kind, Callable[[Bench], None]] = {"method": use_method, "task": use_task, "model": use_model}
