"""What a model family promises: the checkpoint's own weights, under roles that name them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ftcore.declaring import build, declared, dump
from ftcore.testing import files, fresh, loading, roles, strangers, tokens, working
from ftcore.testing.families import (
    Case,
    cases,
    change,
    copied,
    is_tied,
    load,
    loaded,
    made_case,
    one_of_each_type,
    plain,
    plain_cases,
    questions,
    vocabulary,
)
from ftcore.testing.kit import Bench, Check, Failed, bench_of

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.hooks import Loaded


def check_plan_needs_no_weights(plugin: object, bench: Bench | None = None) -> None:
    """For a plan, config.json is enough: the same model and parts on the meta device, weights or none beside it."""
    bench = bench_of("model", plugin, bench)
    for case in (*cases(bench), *_tied_and_not(bench)):
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
            rows = fresh.call("ftcore.testing.models:planned_there", **asked)
        except Failed as fault:
            raise Failed(f"a plan of a large model takes its memory ({fault}); build it on the meta device") from None
        if rows != HUGE:
            raise Failed(f"a plan on {case} with a vocabulary of {HUGE} embeds {rows}; build what config.json says")


HUGE = 100_000_000  # rows of the embedding: 12.8 GB in float32 at the kit's hidden size
ROOM = 3 * 2**30


def planned_there(described: Mapping[str, Any], folder: str, head: str) -> int:
    """What the described plugin's plan embeds, made here with no more than `ROOM` bytes of new memory.

    Runs in a fresh process.
    """
    import resource

    most = _memory() + ROOM
    if most > ROOM:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    bench = Bench("model", fresh.rebuilt(described))
    return vocabulary(load(bench, folder, head, intent="plan").model)


def _memory() -> int:
    """Bytes of memory that this process may touch, 0 where the system does not tell."""
    from pathlib import Path
    from resource import getpagesize

    told = Path("/proc/self/statm")
    return int(told.read_text(encoding="ascii").split()[0]) * getpagesize() if told.exists() else 0


def check_tied_weights_stay_tied(plugin: object, bench: Bench | None = None) -> None:
    """Embedding and head are one tensor exactly when the config ties them, also once trained and saved."""
    bench = bench_of("model", plugin, bench)
    for case in _tied_and_not(bench):
        tied = is_tied(plain(case.folder, case.head))
        model: Any = load(bench, case.folder, case.head).model
        if is_tied(model) != tied:
            raise Failed(
                f"embedding and head of {case} are {_one(is_tied(model))}, and in transformers {_one(tied)}; "
                "leave them as from_pretrained gives them"
            )
        _step(model, questions(model, case.head)["a batch"])
        folder = bench.place("trained")
        model.save_pretrained(folder)
        again = plain(folder, case.head)
        if is_tied(again) != tied:
            raise Failed(f"{case}, trained and saved, loads with {_one(is_tied(again))}; leave its config as it is")
        own = model.state_dict()
        loading.same_weights(again.state_dict(), own, f"{case}, trained and saved,", "leave its config as it is")


def _step(model: Any, asked: Mapping[str, Tensor]) -> None:
    """Every weight has moved by its gradient."""
    import torch

    model.requires_grad_(True)(**asked).logits.square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad


def _one(tied: bool) -> str:
    return "one tensor" if tied else "two tensors"


def _tied_and_not(bench: Bench) -> list[Case]:
    """A checkpoint with an output layer of each type that the kit can make, tied and not."""
    made = {case.model_type: case for case in reversed(plain_cases(bench)) if case.made and case.head.endswith("-lm")}
    pairs = [(case.model_type, case.head, tied) for case in made.values() for tied in (True, False)]
    return [bench.once(("tied", *pair), partial(_tied_case, bench, *pair)) for pair in pairs]


def _tied_case(bench: Bench, model_type: str, head: str, tied: bool) -> Case:
    return made_case(bench, model_type, head, f", tie_word_embeddings {tied}", tie_word_embeddings=tied)


SAVED = "leave save_pretrained and the names of tensors as transformers has them"


def check_saved_and_loaded_it_is_the_same(plugin: object, bench: Bench | None = None) -> None:
    """What save_pretrained writes loads again bit for bit, by transformers and, of its own types, by the family."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found, folder = loaded(bench, case), bench.place("saved")
        model: Any = found.model
        model.save_pretrained(folder)
        assert found.tokenizer is not None
        found.tokenizer.save_pretrained(folder)
        if type(model).__module__.startswith("transformers."):
            again = plain(folder, case.head).state_dict()
            loading.same_weights(again, model.state_dict(), f"{case}, saved and loaded by transformers,", SAVED)
        if case.native:
            own = load(bench, folder, case.head)
            loading.same_weights(own.model.state_dict(), model.state_dict(), f"{case}, saved and loaded again,", SAVED)
            _same_tokenizer(own, found, case)


def _same_tokenizer(again: Loaded, found: Loaded, case: Case) -> None:
    one: Any = again.tokenizer
    other: Any = found.tokenizer
    same_text = all(one(text)["input_ids"] == other(text)["input_ids"] for text in tokens.TEXTS)
    if not same_text or one.chat_template != other.chat_template or again.stop_ids != found.stop_ids:
        raise Failed(f"the tokenizer of {case} reads, renders or stops otherwise once saved and loaded again")


def check_random_weights_follow_the_seed(plugin: object, bench: Bench | None = None) -> None:
    """Asked for random weights it draws them anew for each seed and alike for the same, from the config alone."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _drawn(bench, case)


def _drawn(bench: Bench, case: Case) -> None:
    import torch

    drawing = build(type(bench.plugin), {**dump(bench.plugin), "weights": "random"}, bench.label)
    folder = copied(bench, case.folder, "random")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    given = ((case.folder, 1), (folder, 1), (folder, 2))
    one, same, other = (load(bench, place, case.head, plugin=drawing, seed=seed) for place, seed in given)
    again = f"{case}, drawn again with the same seed and without weights beside it,"
    loading.same_weights(same.model.state_dict(), one.model.state_dict(), again, "draw from torch's own generator")
    stored, later = loaded(bench, case).model.state_dict(), other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        if not torch.isfinite(tensor).all() or tensor.shape != stored[name].shape:
            raise Failed(f"the random '{name}' of {case} is not finite or has another shape than the checkpoint's")
        if tensor.ndim > 1 and (torch.equal(tensor, later[name]) or torch.equal(tensor, stored[name])):
            raise Failed(f"the random '{name}' of {case} is the same for another seed, or the checkpoint's; draw it")


def _draws(plugin: object) -> bool:
    """Whether the family offers random weights."""
    return any(option.name == "weights" and "random" in option.choices for option in declared(type(plugin)))


LOADED = ("check_loads_each_head",)
PARTS = ("check_roles_are_complete",)
UNTOUCHED = ("check_transformers_stays_as_it_was",)
PRECISE = ("check_precision_is_as_asked",)
OWN = ("check_weights_are_the_checkpoints_own",)
ANSWERS = ("check_answers_as_the_original",)
PLANS = ("check_plan_needs_no_weights",)
NUMBERS = ("check_vocabulary_is_the_models", "check_positions_are_the_models")
RUNS = ("check_answers_can_stop", "check_checkpoint_is_left_alone", "check_loads_in_a_fresh_process")

EVERY_MODEL: tuple[Check, ...] = (
    Check(loading.check_loads_its_checkpoint),
    Check(loading.check_keeps_no_state, needs=("check_loads_its_checkpoint",)),
    Check(loading.check_loads_each_head, needs=("check_keeps_no_state",)),
    Check(loading.check_transformers_stays_as_it_was, needs=LOADED),
    Check(loading.check_precision_is_as_asked, needs=UNTOUCHED),
    Check(check_tied_weights_stay_tied, needs=UNTOUCHED),
    Check(
        loading.check_weights_are_the_checkpoints_own,
        needs=("check_precision_is_as_asked", "check_tied_weights_stay_tied"),
    ),
    Check(loading.check_answers_as_the_original, needs=OWN),
    Check(loading.check_loads_in_a_fresh_process, needs=LOADED),
    Check(loading.check_keywords_reach_the_model, needs=PRECISE),
    Check(roles.check_roles_name_modules, needs=LOADED),
    Check(roles.check_roles_are_complete, needs=("check_roles_name_modules",)),
    Check(roles.check_ends_are_named, needs=PARTS),
    Check(roles.check_attention_roles_mean_what_they_say, needs=PARTS),
    Check(roles.check_mlp_roles_mean_what_they_say, needs=PARTS),
    Check(tokens.check_vocabulary_is_the_models, needs=LOADED),
    Check(tokens.check_positions_are_the_models, needs=LOADED),
    Check(tokens.check_tokenizer_is_the_checkpoints, needs=LOADED),
    Check(tokens.check_answers_can_stop, needs=("check_tokenizer_is_the_checkpoints",)),
    Check(tokens.check_template_leaves_an_exact_mask, needs=("check_answers_can_stop",)),
    Check(tokens.check_starter_stands_in, needs=LOADED),
    Check(check_plan_needs_no_weights, needs=("check_roles_name_modules", *OWN, *NUMBERS)),
    Check(check_plan_needs_no_memory, needs=(*PLANS, "check_loads_in_a_fresh_process")),
    Check(check_saved_and_loaded_it_is_the_same, needs=(*OWN, "check_answers_can_stop")),
    Check(check_random_weights_follow_the_seed, needs=LOADED, concerns=_draws),
    Check(files.check_loads_all_or_nothing, needs=LOADED),
    Check(files.check_shards_load, needs=LOADED),
    Check(files.check_other_types_are_refused, needs=LOADED),
    Check(files.check_incomplete_folders_are_refused, needs=("check_loads_all_or_nothing",)),
    Check(files.check_loads_nothing_else, needs=("check_loads_all_or_nothing", *ANSWERS)),
    Check(files.check_checkpoint_is_left_alone, needs=LOADED),
    Check(strangers.check_no_code_of_a_checkpoint_runs, needs=LOADED),
    Check(strangers.check_asks_nothing_of_the_network, needs=LOADED),
    Check(working.check_rows_do_not_see_each_other, needs=ANSWERS),
    Check(working.check_activations_can_be_recomputed, needs=(*PARTS, *NUMBERS, "check_rows_do_not_see_each_other")),
    Check(working.check_generates_alike_with_a_cache, needs=ANSWERS),
    Check(working.check_a_run_trains_and_resumes, needs=("check_activations_can_be_recomputed", *RUNS)),
    Check(working.check_an_attached_run_answers_as_trained, needs=("check_a_run_trains_and_resumes",)),
    Check(working.check_merges_into_a_plain_checkpoint, needs=("check_an_attached_run_answers_as_trained",)),
    Check(working.check_merges_by_blocks, needs=("check_merges_into_a_plain_checkpoint", *PLANS)),
)
