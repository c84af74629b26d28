"""What a method promises wherever it is put: every head, bf16, fused projections, batches, a cache, a plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ftcore
from ftcore import adapters
from ftcore.adapters import matching, select
from ftcore.batches import pack, pad, token_loss
from ftcore.declaring import Option, build, declared, dump
from ftcore.errors import FtcoreError, Refused
from ftcore.hooks import Batch, Loaded
from ftcore.seeds import seeded
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.learning import START, starts_as_base
from ftcore.testing.methods.merging import MERGED, unlike
from ftcore.testing.methods.properties import FusedOnce, exercise_loss, exercise_row, padded
from ftcore.testing.methods.repeating import random_in_training
from ftcore.testing.methods.storing import SAME
from ftcore.testing.methods.work import (
    CAUSAL,
    FUSED,
    Scene,
    Staged,
    answers,
    attached,
    base_answers,
    base_of,
    begun,
    finished,
    folded,
    gap,
    has_hook,
    heads_of,
    main_scene,
    merging_intent,
    packing_of,
    practise,
    questions,
    restored,
    saved,
    scene_of,
    shown,
    spread,
    staged,
    trained,
)
from ftcore.testing.stage import recital_row

if TYPE_CHECKING:
    from torch import Tensor, nn

# How much more than the base's answers an adapted model's may suffer from bf16; of 22 methods 3.1 times at most.
ROUNDED = 5.0
DEALT = 1e-5  # of the loss; it was 1e-7 for 25 methods
PIECES = 8  # tokens that are generated one at a time


# In batches


def check_rows_in_a_batch_do_not_meet(plugin: object, bench: Bench | None = None) -> None:
    """The loss of rows in one batch, laid end to end or padded, is the sum of what each has alone."""
    bench = bench_of("method", plugin, bench)
    model, rows = trained(bench).model, rows_of(bench)
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        for how, collate, loss in _ways(bench):
            if _lost(model, loss, collate(rows), 1) != _lost(model, loss, collate(rows), 2):
                continue  # it draws numbers, so that there is nothing to compare
            alone = sum(_lost(model, loss, collate([row])) for row in rows)
            together = [_lost(model, loss, collate(chosen)) for chosen in (rows, rows[::-1])]
            if any(abs(lost - alone) > DEALT * alone for lost in together):
                raise Failed(
                    f"in {mode} mode four rows {how} have the loss {together[0]:.4f}, in reverse order "
                    f"{together[1]:.4f}, and one by one {alone:.4f}; a row must not see its neighbours, nor padding"
                )
    model.eval()


def check_padding_and_packing_are_the_same(plugin: object, bench: Bench | None = None) -> None:
    """Rows that are padded and rows that are laid end to end have the same loss."""
    bench = bench_of("method", plugin, bench)
    model, rows = trained(bench).model, rows_of(bench)
    lost = {how: _lost(model, loss, collate(rows)) for how, collate, loss in _ways(bench)}
    if max(lost.values()) - min(lost.values()) > DEALT * max(lost.values()):
        told = " and ".join(f"{loss:.4f} {how}" for how, loss in lost.items())
        raise Failed(f"the same four rows have the loss {told}; look at tokens, not at how they came into the batch")


def check_training_and_evaluation_agree(plugin: object, bench: Bench | None = None) -> None:
    """Where nothing is drawn at random, the loss in training mode is that in evaluation mode."""
    bench = bench_of("method", plugin, bench)
    if random_in_training(bench):
        return
    _, collate, loss = _ways(bench)[-1]
    model, batch = trained(bench).model, collate(rows_of(bench))
    wanted = _lost(model, loss, batch)
    found = _lost(model.train(), loss, batch)
    model.eval()
    if abs(found - wanted) > DEALT * wanted:
        raise Failed(
            f"over the same rows the loss is {found:.4f} in training mode and {wanted:.4f} in evaluation mode; "
            "what is learnt in one must be what answers in the other"
        )


def rows_of(bench: Bench) -> list[Any]:
    """Four rows of the main scene that were not trained on."""
    decoder = main_scene(bench).head == CAUSAL
    return [recital_row(n, 300) if decoder else exercise_row(n, 300) for n in range(40, 44)]


def _ways(bench: Bench) -> list[tuple[str, Callable[[Sequence[Any]], Batch], Any]]:
    """How rows can be put into one batch for the method, and the loss over it."""
    head = main_scene(bench).head
    if head != CAUSAL:
        return [("padded", partial(padded, head), exercise_loss)]
    ways: list[tuple[str, Callable[[Sequence[Any]], Batch], Any]] = [
        ("padded", partial(pad, pad_id=0), token_loss),
        ("laid end to end", pack, token_loss),
    ]
    return ways if packing_of(bench) == "auto" else ways[:1]


def _lost(model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, seed: int = 1) -> float:
    with seeded(seed, "kit"):
        return float(loss(model, batch).detach())


# Word by word


def check_it_generates_what_it_answers(plugin: object, bench: Bench | None = None) -> None:
    """What it generates, word by word, follows from what its forward pass answers."""
    bench = bench_of("method", plugin, bench)
    if _cached(bench) <= MERGED:
        return
    found = _apart(bench, cached=False)
    if not found <= MERGED:
        raise Failed(
            f"the logits by which it generates differ by {found:.1e} from those of its forward pass over the "
            "same tokens, as a share of their size; generating, which chatting does, must go through the adapted model"
        )


def check_the_cache_changes_nothing(plugin: object, bench: Bench | None = None) -> None:
    """With a cache, where each token is read alone, it generates as without."""
    bench = bench_of("method", plugin, bench)
    found = _cached(bench)
    if not found <= MERGED:
        raise Failed(
            f"generating with the cache, its logits differ from those over all tokens at once by {found:.1e} of their "
            "size; what it does to a token must depend on that token and the ones before, as the model keeps them"
        )


def _cached(bench: Bench) -> float:
    return bench.once("cached", lambda: _apart(bench, cached=True))


def _apart(bench: Bench, *, cached: bool) -> float:
    """How far the logits of a generation are from those of the forward pass, as a share of their size."""
    import torch
    from transformers import GenerationConfig

    model: Any = trained(bench).model
    ids = questions(main_scene(bench))["input_ids"][1:2]
    settings = GenerationConfig(
        max_new_tokens=PIECES, min_new_tokens=PIECES, do_sample=False, use_cache=cached, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.inference_mode():
        said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        whole = model(input_ids=said.sequences, use_cache=False).logits[:, -PIECES - 1 : -1]
    return gap(torch.stack(said.logits, 1), whole) / spread(whole)


# On every head, and on fused projections


def check_every_head_it_claims(plugin: object, bench: Bench | None = None) -> None:
    """On every head that it claims it starts as the base, learns, is loaded again and merges."""
    bench = bench_of("method", plugin, bench)
    for head in heads_of(plugin):
        if head != main_scene(bench).head:
            _whole_way(bench, scene_of(head), f"on a model with the head '{head}'")


def check_fused_projections(plugin: object, bench: Bench | None = None) -> None:
    """Where q, k and v are one module, and gate and up, it adapts each module once, and does all that it does else."""
    bench = bench_of("method", plugin, bench)
    scene, packing = scene_of(FUSED), packing_of(bench)
    stage = _whole_way(bench, scene, "on a model with fused projections", packing=packing)
    once = [
        found for role in ("attention.q", "attention.k", "attention.v") if (found := _trainable(plugin, scene, role))
    ]
    if once and stage.injected.trainable > max(once):
        raise Failed(
            f"where several roles name one module {stage.injected.trainable:,} numbers train, and {max(once):,} where "
            "each module has one role; several roles may name a module, so take each name once"
        )


def _trainable(plugin: object, scene: Scene, role: str) -> int:
    """Numbers that train where the fused projection has this role only; 0 where the method does not ask for it."""
    try:
        stage = staged(plugin, replace(scene, family=FusedOnce(first=role)), packing="off")
    except Refused:
        return 0
    return stage.injected.trainable


def _whole_way(bench: Bench, scene: Scene, where: str, **keys: Any) -> Staged:
    """The method trained for a few steps on a scene; Failed when something is otherwise there than it should be."""
    plugin, asked = bench.plugin, questions(scene)
    try:
        stage = staged(plugin, scene, **keys)
    except Refused as refusal:
        raise Failed(f"{where} it is refused ({refusal}); declare the heads it can adapt with only_heads") from refusal
    start = gap(answers(stage.model, asked), base_answers(bench, scene))
    if starts_as_base(bench) and not start <= START:
        raise Failed(f"{where} it differs from the base by {start:.1e} before the first step")
    practise(stage)
    idle = [n for n, p in stage.model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    if idle:
        raise Failed(f"{where} {shown(idle)} gets no gradient")
    learnt = answers(stage.model, asked)
    again = restored(plugin, scene, saved(stage), **keys)
    found = gap(answers(again.model, asked), learnt)
    if not found <= SAME * spread(learnt):
        raise Failed(f"{where} its answers differ by {found:.1e} when it is loaded again")
    if has_hook("merge", plugin):
        ready = restored(plugin, scene, saved(stage), "merge", **keys)
        _merges(ready, learnt if merging_intent(bench) == "infer" else answers(ready.model, asked), asked, where)
    return stage


def _merges(ready: Staged, learnt: Tensor, asked: Mapping[str, Tensor], where: str) -> None:
    merged = folded(ready)
    wrong = unlike(merged, ready)
    if wrong:
        raise Failed(f"{where} it does not merge into its base: {wrong}")
    found = gap(answers(merged, asked), learnt)
    if not found <= MERGED * spread(learnt):
        raise Failed(f"{where} its answers differ by {found:.1e} once it is merged")


# In bf16


def check_bf16_trains_in_float32(plugin: object, bench: Bench | None = None) -> None:
    """With bf16 weights, what trains is float32 while it trains, stays finite, and what is frozen stays bf16."""
    import torch

    bench = bench_of("method", plugin, bench)
    seen = trained(bench, precision="bf16").witness
    coarse = [(name, tensor) for name, tensor, _ in seen.trained if tensor.dtype != torch.float32]
    if coarse:
        raise Failed(
            f"'{coarse[0][0]}' trains in {coarse[0][1].dtype}, where small steps round to nothing; keep it float32"
        )
    own = [(name, tensor) for name, tensor, _ in seen.frozen if isinstance(tensor, torch.nn.Parameter)]
    wide = [name for name, tensor in own if tensor.is_floating_point() and tensor.dtype != torch.bfloat16]
    if wide:
        raise Failed(
            f"the base is loaded in bf16, and its frozen {shown(wide)} is not any more; leave its weights as they are"
        )
    wild = [name for name, tensor, _ in seen.trained if not bool(tensor.isfinite().all())]
    if wild:
        raise Failed(f"{shown(wild)} is not finite after training in bf16")


def check_bf16_answers_as_float32(plugin: object, bench: Bench | None = None) -> None:
    """Loaded in bf16, it answers without autocast, as chatting asks it, close to what it does in float32."""
    bench = bench_of("method", plugin, bench)
    scene, run = main_scene(bench), finished(trained(bench, precision="bf16"))
    asked = questions(scene)
    exact, rounded = (answers(attached(bench, run, precision=p).loaded.model, asked) for p in ("fp32", "bf16"))
    _close(bench, exact, rounded, "in bf16 its answers differ from those in float32")


def check_bf16_merges(plugin: object, bench: Bench | None = None) -> None:
    """In bf16 it merges into a bf16 model that answers close to what it does in float32."""
    bench = bench_of("method", plugin, bench)
    scene, run = main_scene(bench), finished(trained(bench, precision="bf16"))
    asked = questions(scene)
    exact = answers(attached(bench, run, merging_intent(bench), precision="fp32").loaded.model, asked)
    found = attached(bench, run, "merge")
    merged = adapters.fold(found.hooks, found.run, found.injected.model)
    state = staged(bench.plugin, scene, "merge", precision="bf16", packing=packing_of(bench)).base
    odd = [name for name, tensor in merged.state_dict().items() if name in state and tensor.dtype != state[name].dtype]
    if odd:
        is_, was = (tensors[odd[0]].dtype for tensors in (merged.state_dict(), state))
        raise Failed(f"merged from a {was} base, {shown(odd)} is {is_}; give each weight back in the base's format")
    _close(bench, exact, answers(merged, asked), "merged in bf16 its answers differ from those in float32")


def _close(bench: Bench, exact: Tensor, rounded: Tensor, what: str) -> None:
    """Failed when the difference is more than a few times what bf16 does to the base's own answers."""
    scene = main_scene(bench)
    base = base_answers(bench, scene, precision="bf16")
    noise = spread(base - base_answers(bench, scene)) / spread(base)
    found = spread(rounded - exact) / spread(exact)
    if not found <= ROUNDED * noise:
        raise Failed(f"{what} by {found:.1%} of their size, and the base's own by {noise:.1%}; compute as in float32")


# Before there are weights, and with parts that are not there


def check_a_plan_tells_what_trains(plugin: object, bench: Bench | None = None) -> None:
    """A plan, which has a config and no weights, counts the same trainable numbers in the same modules."""
    bench = bench_of("method", plugin, bench)
    scene, stage, folder = main_scene(bench), begun(bench), bench.place("weightless")
    shutil.copytree(scene.checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    given = {**scene.keys, "checkpoint": folder, "packing": packing_of(bench)}
    planned = ftcore.plan(method=plugin, **given)
    if planned.refused is not None:
        raise Failed(f"a plan of the run is refused ({planned.refused}) although the run itself is not")
    if planned.trainable_parameters != stage.injected.trainable:
        raise Failed(
            f"a plan counts {planned.trainable_parameters:,} trainable numbers and the run has "
            f"{stage.injected.trainable:,}; inject the same whatever `run.intent` is and wherever the weights are"
        )
    odd = sorted(set(planned.matched_modules) ^ set(stage.injected.matched))
    if odd:
        raise Failed(f"a plan and the run differ in whether '{odd[0]}' is adapted")


def choosing(plugin: object, bench: Bench) -> list[Option]:
    """The options by which the method is told which modules to adapt."""
    loaded = base_of(bench, main_scene(bench))
    return [option for option in declared(type(plugin)) if _chooses(plugin, option, loaded)]


def _chooses(plugin: object, option: Option, loaded: Loaded) -> bool:
    value = getattr(plugin, option.attribute)
    if option.name in ("parts", "target_modules"):
        return True
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
        return False
    roles = {*loaded.parts, *(role.partition(".")[0] for role in loaded.parts)}
    modules = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    return set(names) <= roles or set(names) <= modules


def check_unknown_parts_are_refused(plugin: object, bench: Bench | None = None) -> None:
    """A part or module that the model lacks is refused by name, also beside one that it has."""
    bench = bench_of("method", plugin, bench)
    stranger = "no_such_part"
    for option in choosing(plugin, bench):
        value = getattr(plugin, option.attribute)
        known = () if isinstance(value, str) else tuple(value) or _known(bench, option)
        for chosen in ((stranger,), (*known, stranger)):
            given: Any = stranger if isinstance(value, str) else chosen
            said = _refusal(plugin, bench, {option.name: given})
            if said is None:
                raise Failed(
                    f"{option.name}={given!r} is taken although no part of the model is called '{stranger}'; "
                    "look parts up with ftcore.adapters.select, and modules with ftcore.adapters.matching"
                )
            if stranger not in said:
                raise Failed(f"{option.name}={given!r} is refused without naming '{stranger}': {said}")


def _known(bench: Bench, option: Option) -> tuple[str, ...]:
    """What the model has of the kind that the option names: a role, or a module in which something trains."""
    if option.name == "parts":
        return (min(base_of(bench, main_scene(bench)).parts),)
    return begun(bench).injected.matched[:1]


def check_adapts_what_it_is_told(plugin: object, bench: Bench | None = None) -> None:
    """Something trains in every module that its parts, or its target_modules, name."""
    bench = bench_of("method", plugin, bench)
    loaded = base_of(bench, main_scene(bench))
    options = {name: getattr(plugin, name, ()) for name in ("target_modules", "parts")}
    name, value = next(((name, value) for name, value in options.items() if value), ("", ()))
    if not name:
        return
    told = matching(loaded.model, value) if name == "target_modules" else select(loaded.parts, value)
    missed = sorted(set(told) - set(begun(bench).injected.matched))
    if missed:
        raise Failed(
            f"its {name} name {len(told)} modules, and in {shown(missed)} nothing trains; adapt all that are named, "
            "and refuse what cannot be"
        )


def _refusal(plugin: object, bench: Bench, options: Mapping[str, object]) -> str | None:
    try:
        other = build(type(plugin), {**dump(plugin), **options}, bench.label)
        staged(other, main_scene(bench), packing=packing_of(bench))
    except FtcoreError as refusal:
        return str(refusal)
    return None
