"""What a family promises of a plan: the model that a run would have, without a number of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import cases, change, load, loaded, one_of_each_type, vocabulary
from ftcore.testing.models.weights import tied_and_not

if TYPE_CHECKING:
    from ftcore.hooks import Loaded


def check_plan_needs_no_weights(plugin: object, bench: Bench | None = None) -> None:
    """For a plan, config.json is enough: the same model and parts on the meta device, weights or none beside it."""
    bench = bench_of("model", plugin, bench)
    for case in (*cases(bench), *tied_and_not(bench)):
        bare = bench.place("bare")
        bare.mkdir()
        (bare / "config.json").write_bytes((case.folder / "config.json").read_bytes())
        _planned(load(bench, bare, case.head, intent="plan"), loaded(bench, case), f"config.json of {case}")
        whole = load(bench, case.folder, case.head, intent="plan")
        _planned(whole, loaded(bench, case), f"checkpoint of {case}")
        if whole.tokenizer is None or whole.stop_ids != loaded(bench, case).stop_ids:
            raise Failed(
                f"a plan on {case} has no tokenizer or other stop_ids though they are there; load the tokenizer"
            )


def _planned(plan: Loaded, real: Loaded, what: str) -> None:
    """The plan's model is the real one without numbers."""
    solid = [name for name, parameter in plan.model.named_parameters() if not parameter.is_meta]
    if solid:
        raise Failed(f"a plan with the {what} makes '{solid[0]}' real; build on the meta device for intent 'plan'")
    if type(plan.model) is not type(real.model):
        raise Failed(f"a plan with the {what} gives {type(plan.model).__name__}, a run {type(real.model).__name__}")
    shapes, wanted = _shapes(plan.model), _shapes(real.model)
    odd = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if odd:
        raise Failed(f"a plan with the {what} has '{odd[0]}' as {shapes.get(odd[0])}, a run as {wanted.get(odd[0])}")
    if dict(plan.parts) != dict(real.parts):
        role = next(r for r in {**plan.parts, **real.parts} if plan.parts.get(r) != real.parts.get(r))
        raise Failed(f"a plan with the {what} names other modules under '{role}' than a run does")
    for name in ("vocab_size", "max_positions", "unpackable", "lr_scale"):
        if getattr(plan, name) != getattr(real, name):
            raise Failed(f"a plan with the {what} says {name} {getattr(plan, name)!r}, a run {getattr(real, name)!r}")


def _shapes(model: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each parameter, a tied one once."""
    return {name: (tuple(parameter.shape), parameter.dtype) for name, parameter in model.named_parameters()}


def check_plan_needs_no_memory(plugin: object, bench: Bench | None = None) -> None:
    """A plan of a model of many gigabytes is made where there is no room for it."""
    bench = bench_of("model", plugin, bench)
    for case in (case for case in one_of_each_type(bench) if case.made):
        folder = bench.place("huge")
        folder.mkdir()
        (folder / "config.json").write_bytes((case.folder / "config.json").read_bytes())
        change(folder / "config.json", vocab_size=HUGE)
        asked: dict[str, Any] = {"described": fresh.reference(bench.plugin), "folder": str(folder), "head": case.head}
        try:
            rows = fresh.call(f"{__name__}:planned_there", **asked)
        except Failed as fault:
            raise Failed(f"a plan of a large model takes its memory ({fault}); build it on the meta device") from None
        if rows != HUGE:
            raise Failed(f"a plan on {case} with a vocabulary of {HUGE} embeds {rows}; build what config.json says")


HUGE = 100_000_000  # rows of the embedding: 12.8 GB in float32 at the kit's hidden size
ROOM = 3 * 2**30


def planned_there(described: Mapping[str, Any], folder: str, head: str) -> int:
    """What the described plugin's plan embeds, made here with no more than `ROOM` bytes of new memory.

    Runs in a fresh process; where memory cannot be limited, nothing is tried.
    """
    import resource

    if not _memory():
        return HUGE
    most = _memory() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    bench = Bench("model", fresh.rebuilt(described))
    return vocabulary(load(bench, folder, head, intent="plan").model)


def _memory() -> int:
    """Bytes of memory that this process may touch, 0 where the system does not tell."""
    from pathlib import Path
    from resource import getpagesize

    told = Path("/proc/self/statm")
    return int(told.read_text(encoding="ascii").split()[0]) * getpagesize() if told.exists() else 0
