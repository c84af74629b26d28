"""What a method promises of doing it again: the same result, whatever else the process does, however rows are dealt."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftcore
from ftcore import adapters
from ftcore.seeds import seeded
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.work import (
    FUSED,
    KEYS,
    Scene,
    answers,
    batches_of,
    decodes,
    differing,
    done,
    folded,
    gap,
    has_hook,
    heads_of,
    loaded_anew,
    loop_of,
    main_scene,
    on_cpu,
    other_weights,
    packing_of,
    questions,
    read,
    saved,
    scene_of,
    shown,
    staged,
    staging,
    stepped,
    trained,
)

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 2  # steps of a run that is played hook by hook
SMOOTH = 0.1  # with this epsilon a step is smooth in the gradient, so that rounding is not blown up into a sign


def check_evaluation_is_deterministic(plugin: object, bench: Bench | None = None) -> None:
    """In evaluation mode the same question gets the same answer, whatever was asked before."""
    bench = bench_of("method", plugin, bench)
    model, asked = trained(bench).model, questions(main_scene(bench))
    first = answers(model, asked)
    again = answers(model, asked)
    if gap(first, again):
        raise Failed(
            f"asked the same twice in evaluation mode, it gave logits that differ by {gap(first, again):.1e}; "
            "dropout and the like must be off there, as `self.training` says"
        )
    answers(model, {name: tensor.flip(0)[:1] for name, tensor in asked.items()})
    after = answers(model, asked)
    if gap(first, after):
        raise Failed(
            f"after another question the same one got logits that differ by {gap(first, after):.1e}; "
            "a forward pass in evaluation mode must leave nothing behind for the next"
        )


# The same run played in fresh processes, alone and among others


def played(plugin: object, scene: Scene, seen: dict[str, Tensor], **keys: Any) -> Generator[None, None, None]:
    """A run hook by hook, from loading to merging; `seen` holds what came of it, for comparison."""
    import torch

    stage = yield from staging(plugin, scene, **keys)
    loop = loop_of(stage)
    for step in range(1, TOGETHER + 1):
        yield
        seen[f"the loss of step {step}"] = torch.tensor(stepped(loop, step))
    yield
    adapter = saved(stage)
    tensors = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    seen.update(tensors)
    again = yield from staging(plugin, scene, "merge", **keys)
    adapters.restore(again.hooks, again.run, again.injected, replace(adapter, tensors=tensors))
    yield
    seen["the answers of the adapted model"] = answers(again.model, questions(scene))
    yield
    if has_hook("merge", plugin):
        seen["the answers of the merged model"] = answers(folded(again), questions(scene))


def play(described: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], file: str) -> list[str]:
    """In a fresh process: runs in turns, one hook each; what came of them is in `file`. What is wrong afterwards."""
    from safetensors.torch import save_file

    one = fresh.rebuilt(described)
    plugins = {name: fresh.rebuilt(described) if name == "last" else one for name in runs}
    scenes = {name: scene_of(run["scene"], Path(run["checkpoint"])) for name, run in runs.items()}
    main = next(iter(scenes.values()))
    before = answers(loaded_anew(one, main).model, questions(main))
    seen: dict[str, dict[str, Tensor]] = {name: {} for name in runs}
    turns = [played(plugins[name], scenes[name], seen[name], **run["keys"]) for name, run in runs.items()]
    while turns:
        turns = [turn for turn in turns if next(turn, turns) is None]
    after = answers(loaded_anew(one, main).model, questions(main))
    save_file({f"{run}/{n}": t.contiguous() for run, tensors in seen.items() for n, t in tensors.items()}, file)
    return _left_behind(one, main, gap(before, after), **runs["first"]["keys"]) if "first" in runs else []


def _left_behind(plugin: object, scene: Scene, moved: float, **keys: Any) -> list[str]:
    """What is wrong in a process once its runs are over."""
    stage = staged(plugin, scene, **keys)
    model = weakref.ref(stage.model)
    del stage
    gc.collect()
    found = [
        f"a plain model loaded afterwards answers differently, by {moved:.1e}; change the modules of the model that "
        "was given, not their classes"
    ]
    kept = ["the model of a run that is over is still in memory; keep no reference to it in the plugin or its module"]
    return (found if moved else []) + (kept if model() is not None else [])


def runs_of(bench: Bench) -> dict[str, dict[str, Any]]:
    """Runs for one process: the same at the beginning and at the end, and others between them."""
    return bench.once("runs", lambda: _runs_of(bench))


def _runs_of(bench: Bench) -> dict[str, dict[str, Any]]:
    scene, keys = main_scene(bench), {"packing": packing_of(bench)}
    weights = bench.once("weights", lambda: other_weights(scene, bench.place("weights")))
    one = {"scene": scene.head, "checkpoint": str(scene.checkpoint), "keys": keys}
    other = {**one, "checkpoint": str(weights), "keys": {**keys, "seed": 11, "lr": 3e-3}}
    runs = {"first": one, "between": other}
    for name in (FUSED, *heads_of(bench.plugin)):
        if name != scene.head and (name != FUSED or decodes(bench.plugin)) and _takes(bench, scene_of(name), **keys):
            runs["elsewhere"] = {"scene": name, "checkpoint": str(scene_of(name).checkpoint), "keys": keys}
            break
    return {**runs, "last": one}


def _takes(bench: Bench, scene: Scene, **keys: Any) -> bool:
    """Whether the method can be used on a scene at all; where it claims to, another check says so."""
    try:
        staged(bench.plugin, scene, **keys)
    except Exception:
        return False
    return True


def _played(bench: Bench, process: str, *names: str) -> tuple[dict[str, Tensor], list[str]]:
    """What came of the runs in a fresh process, and what was wrong there afterwards."""

    def make() -> tuple[dict[str, Tensor], list[str]]:
        file, described = bench.place(f"{process}.safetensors"), fresh.reference(bench.plugin)
        runs = {name: run for name, run in runs_of(bench).items() if name in names or not names}
        told: list[str] = fresh.call(
            f"{__name__}:play", libraries=fresh.libraries(bench.plugin), described=described, runs=runs, file=str(file)
        )
        return read(file), told

    return bench.once(("played", process), make)


def _of(tensors: Mapping[str, Tensor], run: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{run}/")}


def check_the_same_seed_gives_the_same(plugin: object, bench: Bench | None = None) -> None:
    """The same run twice, each in a process of its own, gives the same result bit for bit."""
    bench = bench_of("method", plugin, bench)
    found = differing(_played(bench, "first", "first")[0], _played(bench, "again", "first")[0])
    if found:
        raise Failed(
            f"two runs with one seed, each in a process of its own: {found}; "
            "draw from torch's generator inside the hooks, where the core has seeded it, and from nothing else"
        )


def check_keeps_no_state(plugin: object, bench: Bench | None = None) -> None:
    """Runs in turns, hook by hook, give what each gives alone, and leave nothing behind in their process."""
    bench = bench_of("method", plugin, bench)
    together, wrong = _played(bench, "together")
    for name in runs_of(bench):
        alone = "first" if name == "last" else name
        found = differing(_of(_played(bench, alone, alone)[0], alone), _of(together, name))
        if found:
            raise Failed(
                f"a run that shares its process with others gave something else than alone: {found}; "
                "keep what belongs to a run in its model, never in the module, the class or the plugin, and draw "
                "numbers in inject_adapter and train_step only, where the core has seeded them"
            )
    if wrong:
        raise Failed(wrong[0])


def check_a_fresh_process_trains_the_same(plugin: object, bench: Bench | None = None) -> None:
    """A run in another process, where text hashes differently, gives the same bit for bit."""
    bench = bench_of("method", plugin, bench)
    here: dict[str, Tensor] = {}
    with one_thread():
        done(played(plugin, main_scene(bench), here, packing=packing_of(bench)))
    found = differing(_of(_played(bench, "first", "first")[0], "first"), here)
    if found:
        raise Failed(
            f"the same run in another process: {found}; do not go through a set, or draw by hash() or id(), "
            "where the order or the number matters"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, sums are made in one thread, and so in one order, as in fresh processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# However rows are dealt


def random_in_training(bench: Bench) -> bool:
    """Whether the method draws numbers in the forward pass of training, so that only its averages can be compared.

    It may do so in its first steps only.
    """

    def drawn() -> bool:
        loop = loop_of(staged(bench.plugin, main_scene(bench), packing=packing_of(bench)))
        for step in range(1, TOGETHER + 1):
            stepped(loop, step)
        batch, model = batches_of(loop, 1)[0], loop.staged.model.train()
        lost = []
        for seed in (1, 2):
            with seeded(seed, "kit"):
                lost.append(float(loop.staged.rows.loss(model, batch).detach()))
        return lost[0] != lost[1]

    return bench.once("random", drawn)


def slopes(bench: Bench, pieces: int = 1, **keys: Any) -> dict[str, Tensor]:
    """The gradients of the second step, when what begins at zero has moved; its rows are dealt into `pieces`."""
    loop = loop_of(staged(bench.plugin, main_scene(bench), packing=packing_of(bench), **keys))
    for step in range(1, TOGETHER + 1):
        stepped(loop, step, pieces)
    named = loop.staged.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None and p.requires_grad}


def check_micro_batches_change_nothing(plugin: object, bench: Bench | None = None) -> None:
    """A step over four rows at once and one that accumulates over twice two have the same gradients."""
    bench = bench_of("method", plugin, bench)
    if random_in_training(bench):
        return
    whole, halves = (slopes(bench, pieces, adam_epsilon=SMOOTH) for pieces in (1, 2))
    largest = max(float(slope.abs().max()) for slope in whole.values())
    found = differing(whole, halves, within=1e-4 * largest)
    if found:
        raise Failed(
            f"the gradients of one step depend on how its rows are dealt into micro-batches: {found}, the largest "
            f"gradient being {largest:.1e}; rows must not meet in the forward pass, and a train_step of its own must "
            "accumulate over all batches, each weighted by what it supervises"
        )


def check_checkpointing_changes_nothing(plugin: object, bench: Bench | None = None) -> None:
    """With gradient checkpointing, where activations are computed twice, the same is learnt."""
    bench = bench_of("method", plugin, bench)
    kept, recomputed = (slopes(bench, gradient_checkpointing=on) for on in (False, True))
    lost = sorted(name for name in kept if name not in recomputed or not recomputed[name].any())
    if lost:
        raise Failed(
            f"with gradient checkpointing {shown(lost)} of {len(kept)} trainable tensors gets no gradient; "
            "the forward pass must compute the same whether activations are kept or not"
        )
    largest = max(float(slope.abs().max()) for slope in kept.values())
    found = differing(kept, recomputed, within=1e-5 * largest)
    if found:
        raise Failed(
            f"with gradient checkpointing the gradients are others: {found}; the forward pass runs twice there, "
            "so it must leave nothing behind and draw from torch's generator only"
        )


# Two processes


def check_two_processes_train_as_one(plugin: object, bench: Bench | None = None) -> None:
    """Two processes learn what one does that accumulates twice as many micro-batches."""
    bench = bench_of("method", plugin, bench)
    scene, folder = main_scene(bench), bench.place("processes")
    fresh.call(
        f"{__name__}:together", libraries=fresh.libraries(plugin), described=fresh.reference(plugin), head=scene.head,
        checkpoint=str(scene.checkpoint), packing=packing_of(bench), folder=str(folder),
    )  # fmt: skip
    two, one = (read(folder / name / "adapter_model.safetensors") for name in ("two", "one"))
    within = float("inf") if random_in_training(bench) else 1e-5
    found = differing(one, two, within=within)
    if found:
        raise Failed(
            f"two processes learnt something else than one: {found}; each has its own model, whose gradients the "
            "core exchanges: keep to its train_step, and do the same in every process"
        )


def together(described: Mapping[str, Any], head: str, checkpoint: str, packing: str, folder: str) -> None:
    """In a fresh process: the run in two processes, in `folder`/two, and in one, in `folder`/one."""
    dealt = {"packing": packing, "adam_epsilon": SMOOTH, "batch_size": 3, "steps": TOGETHER}
    keys = {**scene_of(head, Path(checkpoint)).keys, **KEYS, **dealt}
    port = _free_port()
    workers = [_worker(rank, port, {**keys, "output": Path(folder) / "two"}, described) for rank in (0, 1)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    if any(codes):
        told = [(Path(folder) / f"fault-{rank}.txt") for rank in (0, 1)]
        reasons = [file.read_text(encoding="utf-8") for file in told if file.exists()]
        raise Failed(reasons[0] if reasons else f"one of the processes did not end, or with {codes}")
    with on_cpu():
        ftcore.run(method=fresh.rebuilt(described), **{**keys, "output": Path(folder) / "one", "accumulate": 2})


def _free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _worker(rank: int, port: int, keys: Mapping[str, Any], described: Mapping[str, Any]) -> int:
    """The number of a process that takes its part in the run; it ends by itself, whatever happens."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(60)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    try:
        ftcore.run(method=fresh.rebuilt(described), **keys)
        code = 0
    except BaseException as fault:
        file = Path(keys["output"]).parent / f"fault-{rank}.txt"
        file.write_text(f"{type(fault).__name__}: {fault}", encoding="utf-8")
        code = 1
    os._exit(code)
