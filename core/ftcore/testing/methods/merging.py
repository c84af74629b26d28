"""What a method promises of merging: a plain model of the base's format that answers as the adapted one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import adapters, directory, merging
from ftcore.errors import Refused
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.work import (
    WEIGHTS,
    Staged,
    answers,
    answers_to_merge,
    attached,
    base_answers,
    base_of,
    base_to_merge,
    begun,
    differing,
    finished,
    folded,
    gap,
    main_scene,
    merging_intent,
    packing_of,
    practised,
    questions,
    read,
    reopening,
    restored,
    saved,
    scene_of,
    silent,
    spread,
    trained,
)

if TYPE_CHECKING:
    from torch import nn

# A share of the answers' size: merging adds up in another order, which changed those of 25 methods by 3e-5 at most.
MERGED = 1e-4
# What may differ in the settings of a checkpoint that was written anew; the core sees to its stop tokens.
WRITTEN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "eos_token_id")


def merged_once(bench: Bench) -> nn.Module:
    """The main run merged by its hook, without the core's own comparison."""

    def make() -> nn.Module:
        found = attached(bench, finished(trained(bench)), "merge")
        return adapters.fold(found.hooks, found.run, found.injected.model)

    return bench.once("merged", make)


def check_merged_it_is_the_base_again(plugin: object, bench: Bench | None = None) -> None:
    """Merged, it is a model of the base's class with the base's modules, tensor names, shapes and number formats."""
    bench = bench_of("method", plugin, bench)
    wrong = unlike(merged_once(bench), base_to_merge(bench))
    if wrong:
        raise Failed(f"{wrong}; return the base's own model from merge, with nothing of the adapter left in it")


def unlike(merged: nn.Module, stage: Staged) -> str:
    """In what a merged model is not built as its base was; empty when it is."""
    classes = {name: type(module) for name, module in merged.named_modules()}
    if type(merged) is not stage.classes[""]:
        return f"merge returned {_name(type(merged))}, not {_name(stage.classes[''])}"
    odd = sorted(name for name in classes.keys() | stage.classes.keys() if classes.get(name) != stage.classes.get(name))
    if odd:
        was, now = (_name(found.get(odd[0])) for found in (stage.classes, classes))
        return f"module '{odd[0]}' was {was} in the base and is {now} once merged"
    state = merged.state_dict()
    lone = sorted(state.keys() ^ stage.base.keys())
    if lone:
        return f"tensor '{lone[0]}' is in {'the merged model' if lone[0] in state else 'the base'} only"
    for name, tensor in stage.base.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            was, now = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, state[name]))
            return f"tensor '{name}' was {was} in the base and is {now} once merged"
    left = [name for name, module in merged.named_modules() if _changed(module)]
    return f"module '{left[0]}' keeps a hook or a forward of its own once merged" if left else ""


def _name(kind: type | None) -> str:
    return "absent" if kind is None else kind.__name__


def _changed(module: nn.Module) -> bool:
    """Whether something hangs on a module that no checkpoint would hold."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)


def check_merged_it_answers_the_same(plugin: object, bench: Bench | None = None) -> None:
    """Merged, it answers as it did after training."""
    bench = bench_of("method", plugin, bench)
    wanted = answers_to_merge(bench)
    found = gap(answers(merged_once(bench), questions(main_scene(bench))), wanted)
    if not found <= MERGED * spread(wanted):
        learnt = gap(base_answers(bench, main_scene(bench)), wanted)
        raise Failed(
            f"merged, its logits differ from the adapted model's by {found:.1e} (the base's do by {learnt:.1e}); "
            "fold every layer's whole change into its weights, by the scale that the forward pass uses"
        )


def merged_checkpoint(bench: Bench) -> Path:
    """The main run merged as users do."""
    return bench.once("checkpoint", lambda: _merge(bench, finished(trained(bench)), bench.fresh()))


def _merge(bench: Bench, run: Path, plugin: object, **how: Any) -> Path:
    overrides = reopening(bench, [plugin])
    return merging.merge(run, bench.place("merged"), silent, overrides, **how)


def check_the_merged_checkpoint_is_plain(plugin: object, bench: Bench | None = None) -> None:
    """The merged checkpoint has the base's files and config, and transformers alone loads it with the same answers."""
    bench = bench_of("method", plugin, bench)
    scene, folder = main_scene(bench), merged_checkpoint(bench)
    was, now = (read(place / WEIGHTS) for place in (scene.checkpoint, folder))
    lone = sorted(was.keys() ^ now.keys())
    if lone:
        raise Failed(f"tensor '{lone[0]}' is in {'the merged' if lone[0] in now else 'the base'} checkpoint only")
    for name in ("config.json", "generation_config.json"):
        _same_settings(_settings(scene.checkpoint / name), _settings(folder / name), name)
    wanted, found = answers_to_merge(bench), answers(_loaded(folder, begun(bench)), questions(scene))
    if not gap(wanted, found) <= MERGED * spread(wanted):
        raise Failed(f"loaded by transformers, the merged checkpoint answers differently by {gap(wanted, found):.1e}")


def _settings(file: Path) -> dict[str, Any]:
    """A checkpoint's settings without what is written anew; empty where it has none."""
    said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {key: value for key, value in said.items() if key not in WRITTEN}


def _same_settings(was: dict[str, Any], now: dict[str, Any], name: str) -> None:
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            values = f"{was.get(key)!r} in the base and {now.get(key)!r} in the merged checkpoint"
            raise Failed(f"'{key}' in {name} is {values}; leave the model's settings as they are")


def _loaded(folder: Path, stage: Staged) -> nn.Module:
    base: Any = stage.classes[""]
    model, told = base.from_pretrained(folder, output_loading_info=True)
    for kind, names in told.items():
        if names:
            raise Failed(f"transformers finds {kind.replace('_', ' ')} in the merged checkpoint: {sorted(names)[0]}")
    loaded: nn.Module = model
    return loaded


def check_tied_weights_stay_tied(plugin: object, bench: Bench | None = None) -> None:
    """On a base whose input and output embeddings are one tensor, merging leaves them one."""
    bench = bench_of("method", plugin, bench)
    scene = scene_of(main_scene(bench).head, tie_word_embeddings=True)
    try:
        stage = practised(plugin, scene, packing=packing_of(bench))
    except Refused:
        return  # it says that it cannot be used there
    ready = restored(plugin, scene, saved(stage), "merge", packing=packing_of(bench))
    adapted = answers((stage if merging_intent(bench) == "infer" else ready).model, questions(scene))
    merged = folded(ready)
    tied = shared(base_of(bench, scene).model)
    if shared(merged) != tied:
        torn = " and ".join(min(map(sorted, tied - shared(merged)), default=["tensors"]))
        raise Failed(f"merging tore {torn} apart, which are one tensor in the base; leave the model's tensors in place")
    found = gap(answers(merged, questions(scene)), adapted)
    if not found <= MERGED * spread(adapted):
        raise Failed(
            f"on a base with tied embeddings the merged model's logits differ from the adapted one's by {found:.1e}; "
            "what is added to one of two tied tensors must be refused, or act on both"
        )


def shared(model: nn.Module) -> set[frozenset[str]]:
    """The names that mean one parameter, where they are several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def check_merged_by_blocks_it_is_the_same(plugin: object, bench: Bench | None = None) -> None:
    """Merged one block at a time, as `--stream` does it, the checkpoint holds the same tensors."""
    bench = bench_of("method", plugin, bench)
    whole = read(merged_checkpoint(bench) / WEIGHTS)
    blocks = _merge(bench, finished(trained(bench)), bench.fresh(), stream=True)
    largest = max(float(tensor.abs().max()) for tensor in whole.values())
    found = differing(whole, read(blocks / WEIGHTS), within=MERGED * largest)
    if found:
        raise Failed(
            f"merged block by block and all at once: {found}; what is done to a block must follow from its own names "
            "and tensors, not from its place among the others"
        )


def check_merging_can_be_repeated(plugin: object, bench: Bench | None = None) -> None:
    """Merging twice gives the same twice, and leaves the run and the plugin as they were."""
    bench = bench_of("method", plugin, bench)
    run = finished(trained(bench))
    before = _digest(run)
    first, second = (read(_merge(bench, run, plugin) / WEIGHTS) for _ in range(2))
    found = differing(first, second)
    if found:
        raise Failed(f"merged a second time by the same instance, the checkpoint is another: {found}")
    if _digest(run) != before:
        raise Failed("merging changed the adapter's files in the run's directory; it must only read them")


def _digest(run: Path) -> list[str]:
    files = (run / name for name in (directory.TENSOR_FILE, directory.CONFIG_FILE, directory.RUN_FILE))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
