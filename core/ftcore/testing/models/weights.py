"""What stays of a family's weights: tied ones tied, saved ones equal, random ones drawn by the seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ftcore.declaring import build, dump
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models import loading, tokens
from ftcore.testing.models.families import (
    Case,
    cases,
    copied,
    is_tied,
    load,
    loaded,
    made_case,
    plain,
    plain_cases,
    questions,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.hooks import Loaded


def check_tied_weights_stay_tied(plugin: object, bench: Bench | None = None) -> None:
    """Embedding and head are one tensor exactly when the config ties them, also once trained and saved."""
    bench = bench_of("model", plugin, bench)
    for case in tied_and_not(bench):
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


def tied_and_not(bench: Bench) -> list[Case]:
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
    weights = {name for name, _ in one.model.named_parameters(remove_duplicate=False)}
    for name, tensor in one.model.state_dict().items():
        if not torch.isfinite(tensor).all() or tensor.shape != stored[name].shape:
            raise Failed(f"the random '{name}' of {case} is not finite or has another shape than the checkpoint's")
        if (
            name in weights
            and tensor.ndim > 1
            and (torch.equal(tensor, later[name]) or torch.equal(tensor, stored[name]))
        ):
            raise Failed(f"the random '{name}' of {case} is the same for another seed, or the checkpoint's; draw it")
