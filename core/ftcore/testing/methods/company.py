"""What a method promises beside another: both train, in either order, both are loaded again, and both merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.discovery import declared_datum
from ftcore.errors import Refused
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.learning import START
from ftcore.testing.methods.merging import MERGED, unlike
from ftcore.testing.methods.properties import Envelope
from ftcore.testing.methods.storing import SAME
from ftcore.testing.methods.work import (
    Staged,
    answers,
    base_of,
    begun,
    folded,
    gap,
    has_hook,
    main_scene,
    merging_intent,
    packing_of,
    practise,
    questions,
    restored,
    saved,
    shown,
    spread,
    staged,
)
from ftcore.testing.stage import Companion

if TYPE_CHECKING:
    from torch import Tensor

# A share of the answers' size: the two orders add gradients up in another order when they are clipped.
ORDER = 1e-4


def stands_alone(plugin: object) -> bool:
    """Whether the method says that it cannot stand beside another."""
    return bool(declared_datum(plugin, "alone"))


def check_refuses_company_if_it_says_so(plugin: object, bench: Bench | None = None) -> None:
    """Declared to stand alone, it is refused beside another method, with its reason."""
    bench = bench_of("method", plugin, bench)
    reason = str(declared_datum(plugin, "alone"))
    for methods in ([plugin, Companion()], [Companion(), plugin]):
        try:
            staged(methods, main_scene(bench), packing=packing_of(bench))
        except Refused as refusal:
            if reason in str(refusal):
                continue
            raise Failed(f"beside another method it is refused for another reason than '{reason}': {refusal}") from None
        raise Failed(f"it declares that it stands alone ({reason}), and runs beside another method")


def check_trains_beside_another(plugin: object, bench: Bench | None = None) -> None:
    """Beside another method, before it or after it, both train and are loaded again, with the same answers."""
    bench = bench_of("method", plugin, bench)
    module = free_module(bench)
    expected = begun(bench).injected.trainable + _numbers(bench, module)
    said = {}
    for where, stage in _beside(bench).items():
        if stage.injected.trainable != expected:
            raise Failed(
                f"{where} a method that trains '{module}', {stage.injected.trainable:,} numbers train and not "
                f"{expected:,}; leave in the model what others put there, and requires_grad to the core"
            )
        said[where] = _trained(bench, where, stage)
    found = gap(*said.values())
    if not found <= ORDER * spread(said["after"]):
        raise Failed(
            f"before and after another method it learns otherwise: its answers differ by {found:.1e}; "
            "take the modules to adapt from loaded.parts, and nothing from the order of things in the model"
        )


def check_merges_beside_another(plugin: object, bench: Bench | None = None) -> None:
    """Beside another method, before it or after it, both merge into the base's format."""
    bench = bench_of("method", plugin, bench)
    for where, stage in _beside(bench).items():
        _merged(bench, where, stage)


def check_works_on_a_wrapped_model(plugin: object, bench: Bench | None = None) -> None:
    """On a model that another method has wrapped in a module of its own, it does all that it does else."""
    bench = bench_of("method", plugin, bench)
    module, where = free_module(bench), "inside the wrapper of"
    expected = begun(bench).injected.trainable + _numbers(bench, module)
    stage = staged([Envelope(module=module), plugin], main_scene(bench), packing=packing_of(bench))
    if stage.injected.trainable != expected:
        raise Failed(
            f"on a model wrapped by another method, {stage.injected.trainable:,} numbers train and not {expected:,}; "
            "find modules by the names in loaded.parts, which are those of the model as it is now"
        )
    _trained(bench, where, stage)
    if has_hook("merge", plugin):
        _merged(bench, where, stage)


def free_module(bench: Bench) -> str:
    """A module of the base in which the method trains nothing; Failed when it leaves none."""
    taken = set(begun(bench).injected.matched)
    loaded = base_of(bench, main_scene(bench))
    weighty = [
        name
        for name, module in loaded.model.named_modules()
        if "weight" in dict(module.named_parameters(recurse=False))
    ]
    free = [name for name in weighty if not any(f"{name}.".startswith(f"{other}.") for other in taken)]
    if not free:
        raise Failed("it trains something in every module of the base; declare with `alone` that it stands alone")
    norms = [name for name in free if name in loaded.parts.get("norm", ())]
    last: str = (norms or free)[-1]
    return last


def _numbers(bench: Bench, module: str) -> int:
    return base_of(bench, main_scene(bench)).model.get_parameter(f"{module}.weight").numel()


def _beside(bench: Bench) -> dict[str, Staged]:
    """The method before another one and after it; the first check that asks trains them."""
    other = Companion(module=free_module(bench))
    orders = {"before": [bench.plugin, other], "after": [other, bench.plugin]}

    def make() -> dict[str, Staged]:
        return {where: staged(both, main_scene(bench), packing=packing_of(bench)) for where, both in orders.items()}

    return bench.once("beside", make)


def _methods(stage: Staged) -> list[object]:
    return [chosen.plugin for chosen in stage.hooks.methods]


def _trained(bench: Bench, where: str, stage: Staged) -> Tensor:
    """The answers after some steps; Failed when the start is not the base, or what is loaded again not the same."""
    scene, asked = main_scene(bench), questions(main_scene(bench))
    start = gap(answers(stage.model, asked), answers(begun(bench).model, asked))
    if not start <= START:
        raise Failed(f"{where} another method its answers before the first step are others than alone, by {start:.1e}")
    training = [(name, p) for name, p in stage.model.named_parameters() if p.requires_grad]
    learnt = answers(practise(stage).model, asked)
    idle = [name for name, p in training if p.grad is None or not p.grad.any()]
    if idle:
        raise Failed(f"{where} another method {shown(idle)} does not learn; freeze nothing that others made trainable")
    again = restored(_methods(stage), scene, saved(stage), packing=packing_of(bench))
    found = gap(answers(again.model, asked), learnt)
    if not found <= SAME * spread(learnt):
        raise Failed(f"{where} another method its answers differ by {found:.1e} when both are loaded again")
    return learnt


def _merged(bench: Bench, where: str, stage: Staged) -> None:
    asked = questions(main_scene(bench))
    again = restored(_methods(stage), main_scene(bench), saved(stage), "merge", packing=packing_of(bench))
    learnt = answers((stage if merging_intent(bench) == "infer" else again).model, asked)
    merged = folded(again)
    wrong = unlike(merged, again)
    if wrong:
        raise Failed(f"{where} another method it does not merge into the base: {wrong}")
    found = gap(answers(merged, asked), learnt)
    if not found <= MERGED * spread(learnt):
        raise Failed(f"{where} another method the merged model's answers differ by {found:.1e}")
