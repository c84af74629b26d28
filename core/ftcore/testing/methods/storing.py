"""What a method promises of what it keeps: all that was learnt, none of the base, and no other's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import adapters, directory, pipeline
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.work import (
    HALF,
    STEPS,
    answers,
    answers_to_merge,
    attached,
    base_answers,
    base_of,
    differing,
    finished,
    gap,
    has_hook,
    main_scene,
    packing_of,
    practised,
    questions,
    read,
    run_of,
    saved,
    scene_of,
    silent,
    spread,
    staged,
    trained,
    trained_answers,
)

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = directory.TENSOR_FILE
# Shares of the answers' size. Loading repeats the same operations on the same numbers: 0 for 25 methods tried, where
# one process has one thread; merging adds up in another order.
SAME, MERGED = 1e-6, 1e-4


def check_saving_changes_nothing(plugin: object, bench: Bench | None = None) -> None:
    """Saving looks at the model and leaves it as it is."""
    bench = bench_of("method", plugin, bench)
    scene = main_scene(bench)
    stage = practised(plugin, scene, packing=packing_of(bench))
    before = answers(stage.model, questions(scene))
    first = {name: tensor.detach().clone() for name, tensor in saved(stage).tensors.items()}
    after = answers(stage.model, questions(scene))
    if gap(before, after):
        raise Failed(f"save_adapter changed the model's logits by {gap(before, after):.1e}; it must only look at it")
    found = differing(first, saved(stage).tensors)
    if found:
        raise Failed(f"saved twice in a row, the adapter is not the same: {found}")


def check_loaded_again_it_answers_the_same(plugin: object, bench: Bench | None = None) -> None:
    """Saved, and loaded into a new base by another instance, it answers as it did after training."""
    bench = bench_of("method", plugin, bench)
    wanted = trained_answers(bench)
    model = attached(bench, finished(trained(bench))).loaded.model
    found = gap(answers(model, questions(main_scene(bench))), wanted)
    if not found <= SAME * spread(wanted):
        learnt = gap(base_answers(bench, main_scene(bench)), wanted)
        raise Failed(
            f"loaded again, its logits differ from the trained model's by {found:.1e} (the base's do by {learnt:.1e}); "
            "save every tensor that training changes, unrounded, and put each back in its place"
        )


def check_another_process_loads_the_same(plugin: object, bench: Bench | None = None) -> None:
    """A process that did not train it loads it, and merges it where it can, with the same answers."""
    bench = bench_of("method", plugin, bench)
    scene, file = main_scene(bench), bench.place("answers.safetensors")
    learnt = {"loaded": trained_answers(bench), "merged": answers_to_merge(bench)}
    fresh.call(
        f"{__name__}:answers_there", libraries=fresh.libraries(plugin), described=fresh.reference(plugin),
        head=scene.head, checkpoint=str(scene.checkpoint), output=str(finished(trained(bench))), file=str(file),
    )  # fmt: skip
    for how, share in (("loaded", MERGED / 10), ("merged", MERGED)):
        wanted = learnt[how]
        found = gap(read(file).get(how, wanted), wanted)
        if not found <= share * spread(wanted):
            raise Failed(
                f"{how} in a process that did not train it, its logits differ by {found:.1e}; "
                "what the adapter needs must be in its tensors and options, not in the process that trained it"
            )


def answers_there(described: Mapping[str, Any], head: str, checkpoint: str, output: str, file: str) -> None:
    """In a fresh process: what the run in `output` answers, loaded and merged, is in `file`."""
    from safetensors.torch import save_file

    plugin, scene = fresh.rebuilt(described), scene_of(head, Path(checkpoint))
    overrides = {"method": [plugin], "model": scene.family, "task": scene.task, "with": []}
    said = {"loaded": answers(pipeline.attach(Path(output), "infer", silent, overrides).loaded.model, questions(scene))}
    if has_hook("merge", plugin):
        found = pipeline.attach(Path(output), "merge", silent, overrides)
        said["merged"] = answers(adapters.fold(found.hooks, found.run, found.injected.model), questions(scene))
    save_file(said, file)


def check_the_adapter_holds_only_what_was_learnt(plugin: object, bench: Bench | None = None) -> None:
    """The saved adapter holds finite tensors and no frozen one of the base."""
    bench = bench_of("method", plugin, bench)
    tensors = read(finished(trained(bench)) / ADAPTER)
    wild = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wild:
        raise Failed(f"tensor '{wild[0]}' of the saved adapter is not finite")
    base = base_of(bench, main_scene(bench)).model.state_dict()
    for name, tensor in tensors.items():
        same = next((n for n, b in base.items() if tensor.numel() > 1 and gap(b, tensor) == 0), None)
        if same:
            raise Failed(
                f"tensor '{name}' of the saved adapter is the base's '{same}', unchanged; whoever uses the adapter has "
                "the base: keep the base's own tensors in place instead of copies, and save what training changes"
            )


def check_a_foreign_adapter_is_refused(plugin: object, bench: Bench | None = None) -> None:
    """An adapter that lacks a tensor, has one too many or one of another shape is refused when it is loaded."""
    bench = bench_of("method", plugin, bench)
    adapter = directory.read_adapter(finished(trained(bench)))
    for how, tensors in foreign(adapter.tensors):
        stage = staged(plugin, main_scene(bench), "infer", packing=packing_of(bench))
        try:
            adapters.restore(stage.hooks, stage.run, stage.injected, replace(adapter, tensors=tensors))
        except Exception:
            continue
        raise Failed(
            f"an adapter {how} was loaded as if it were its own; answer load_adapter with exactly the names that were "
            "put in place, or leave the hook out, and refuse what does not fit"
        )


def foreign(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Adapters that are nearly `tensors`, and how they are not."""
    import torch

    names = sorted(tensors)
    for name in (names[0], names[-1]):
        yield f"without '{name}'", {key: tensor for key, tensor in tensors.items() if key != name}
        wrong = torch.cat([tensors[name].flatten()[None], torch.ones(1, 1)], dim=1)
        yield f"whose '{name}' has another shape", {**tensors, name: wrong}
    yield "with a tensor 'kit.stranger'", {**tensors, "kit.stranger": torch.ones(2, 2)}


def check_resumed_it_ends_the_same(plugin: object, bench: Bench | None = None) -> None:
    """A run that was cut off and resumed by another instance ends bit for bit as one that was not."""
    bench = bench_of("method", plugin, bench)
    whole, halved = finished(trained(bench)), bench.place("resumed")
    shutil.copytree(whole / "checkpoints" / f"step-{HALF:09d}", halved / "checkpoints" / f"step-{HALF:09d}")
    for name in (directory.RUN_FILE, directory.METRICS_FILE):
        shutil.copy(whole / name, halved / name)
    run = run_of(bench, halved, bench.fresh())
    if run.witness.steps != STEPS - HALF:
        raise Failed(f"resumed after step {HALF} of {STEPS}, it made {run.witness.steps} steps")
    last = Path("checkpoints") / f"step-{STEPS:09d}"
    for file in (last / "adapter.safetensors", last / "optimizer.safetensors", Path(ADAPTER)):
        found = differing(read(whole / file), read(finished(run) / file))
        if found:
            raise Failed(
                f"resumed after step {HALF}, it ended otherwise in {file.name} of step {STEPS}: {found}; whatever a "
                "step depends on must be in a parameter or a buffer of the model, or follow from `step`"
            )
