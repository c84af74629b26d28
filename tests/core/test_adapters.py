"""The adapter is exactly what was chosen, and only what fits is ever given back to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
import torch
from ftcore import adapters
from ftcore.adapters import Injected, give, matching, select
from ftcore.discovery import bind, choose
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.training import Core
from torch import nn

PARTS = {
    "attention.q": ("a.0.q", "a.1.q"),
    "attention.o": ("a.0.o", "a.1.o"),
    "mlp.up": ("a.0.up",),
    "head": ("head",),
}


def injected(loaded: Loaded, seed: int = 42, **methods: dict[str, object]) -> Injected:
    """`loaded` with the adapters of `methods` by name."""
    hooks = bind([choose("method", name, options) for name, options in methods.items()], Core())
    return adapters.inject(hooks, Run(Settings(seed=seed), "train", "causal-lm"), loaded, None, 10)


def test_a_role_stands_for_itself_and_for_all_roles_below_it() -> None:
    assert select(PARTS, ["attention"]) == ("a.0.q", "a.1.q", "a.0.o", "a.1.o")
    assert select(PARTS, ["attention.o", "head"]) == ("a.0.o", "a.1.o", "head")
    assert select(PARTS, ["attention", "attention.q"]) == select(PARTS, ["attention"])


@pytest.mark.parametrize("roles", [["atention"], ["attention", "atention"], ["head", "attention.", "mlp"]])
def test_a_role_that_matches_nothing_is_refused_with_the_nearest_also_when_others_match(roles: list[str]) -> None:
    with pytest.raises(ftcore.Refused, match=r"no part 'at\w+\.?'; did you mean 'attention(\.[oq])?'\?"):
        select(PARTS, roles)


def test_a_role_near_nothing_is_refused_with_all_there_are() -> None:
    with pytest.raises(ftcore.Refused, match=r"no part 'xyz'; it has attention\.o, attention\.q, head, mlp\.up"):
        select(PARTS, ["head", "xyz"])


def test_a_role_without_modules_is_refused() -> None:
    with pytest.raises(ftcore.Refused, match="no part 'norm'"):
        select({**PARTS, "norm": ()}, ["head", "norm"])


def model() -> nn.Module:
    """Two blocks with modules whose names end alike."""
    block = {"q_proj": nn.Linear(2, 2), "big_q_proj": nn.Linear(2, 2)}
    return nn.Sequential(nn.ModuleDict(block), nn.ModuleDict({"q_proj": nn.Linear(2, 2)}))


def test_a_target_matches_whole_names_and_endings_at_a_dot() -> None:
    assert matching(model(), ["q_proj"]) == ("0.q_proj", "1.q_proj")
    assert matching(model(), ["1.q_proj", "big_q_proj"]) == ("1.q_proj", "0.big_q_proj")


def test_a_target_that_matches_nothing_is_refused_with_the_nearest_also_when_others_match() -> None:
    with pytest.raises(ftcore.Refused, match=r"no module of Sequential is named 'q_prj'; did you mean 'q_proj'\?"):
        matching(model(), ["q_proj", "q_prj"])
    with pytest.raises(ftcore.Refused, match=r"is named 'zzzzzz'; 'ftcore plan' lists the modules"):
        matching(model(), ["zzzzzz"])


@ftcore.options
class Chosen(ftcore.OnModules):
    """A method that somebody else wrote."""


def test_a_method_on_modules_takes_those_of_its_roles_or_those_that_are_named_instead() -> None:
    base = model()
    loaded = Loaded(base, None, {"attention.q": ("0.q_proj", "1.q_proj"), "mlp.up": ("0.big_q_proj",)}, "", 0, 0)
    run, merging = (Run(Settings(), intent, "") for intent in ("train", "merge"))
    assert Chosen().targets(run, base, loaded) == ("0.q_proj", "1.q_proj", "0.big_q_proj")
    assert Chosen(parts=("mlp",)).targets(run, base, loaded) == ("0.big_q_proj",)
    assert Chosen(parts=("mlp",), target_modules=("q_proj",)).targets(run, base, loaded) == ("0.q_proj", "1.q_proj")
    stray = Chosen(target_modules=("q_proj", "k_proj"))
    with pytest.raises(ftcore.Refused, match="is named 'k_proj'; did you mean 'q_proj'"):
        stray.targets(run, base, loaded)
    assert stray.targets(merging, base, loaded) == ("0.q_proj", "1.q_proj")  # the others are in another block


def test_what_an_adapter_adds_or_trains_is_what_is_kept_and_the_base_is_frozen(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    names = set(loaded.model.state_dict())
    found = injected(loaded, lora={"bias": "all", "parts": ["attention.q"]})
    state = found.model.state_dict(keep_vars=True)
    trained = {name for name in state if state[name].requires_grad}
    assert set(found.names) == trained
    assert {name for name in trained if ".bias" not in name} == {n for n in trained if "lora_" in n}
    assert len([name for name in trained if ".bias" in name]) == len([n for n in names if n.endswith(".bias")])
    assert found.trainable == sum(tensor.numel() for tensor in found.tensors().values())
    assert all(tensor.dtype == torch.float32 for tensor in found.tensors().values())


def test_tied_weights_are_kept_once(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2", tie_word_embeddings=True))
    found = injected(loaded, full={})
    assert "model.embed_tokens.weight" in found.names
    assert "lm_head.weight" not in found.names
    assert found.trainable == sum(p.numel() for p in loaded.model.parameters())


def test_the_matched_modules_are_those_in_which_something_trains(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("llama", checkpoint=checkpoint("llama"))
    found = injected(loaded, lora={"parts": ["mlp.up", "attention.k"]})
    assert set(found.matched) == {*loaded.parts["mlp.up"], *loaded.parts["attention.k"]}


def test_the_seed_fixes_the_initial_values(checkpoint: Callable[..., Path]) -> None:
    def values(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed + 1000)  # the process's own generator plays no part
        return injected(ftcore.load("qwen", checkpoint=checkpoint("qwen2")), seed, lora={"init": "gaussian"}).tensors()

    first, again, other = values(1), values(1), values(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_method_that_leaves_nothing_to_train_is_refused(checkpoint: Callable[..., Path]) -> None:
    class Nothing:
        """A third party's method that changes nothing."""

        @ftcore.hookimpl
        def inject_adapter(self, model: nn.Module) -> nn.Module:
            """The model as it came."""
            return model

    with pytest.raises(ftcore.Refused, match=r"method 'nothing' left nothing to train in Qwen2ForCausalLM"):
        ftcore.inject(ftcore.load("qwen", checkpoint=checkpoint("qwen2")).model, method=Nothing())


def test_a_saved_adapter_gives_another_model_the_same_answers(checkpoint: Callable[..., Path]) -> None:
    one, other = (injected(ftcore.load("qwen", checkpoint=checkpoint("qwen2")), lora={}) for _ in range(2))
    for tensor in one.tensors().values():
        torch.nn.init.normal_(tensor, std=0.1)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.equal(one.model(ids).logits, other.model(ids).logits)
        give(other, {name: tensor.clone() for name, tensor in one.tensors().items()})
        assert torch.equal(one.model(ids).logits, other.model(ids).logits)


def test_an_adapter_that_does_not_fit_is_refused_by_the_tensor_at_fault(checkpoint: Callable[..., Path]) -> None:
    found = injected(ftcore.load("qwen", checkpoint=checkpoint("qwen2")), lora={})
    whole = {name: tensor.clone() for name, tensor in found.tensors().items()}
    first = sorted(whole)[0]
    cases = {
        f"lacks tensor '{first}'": {name: tensor for name, tensor in whole.items() if name != first},
        "holds an unexpected tensor 'stray'": {**whole, "stray": torch.zeros(1)},
        f"tensor '{first}' of the saved adapter has shape": {**whole, first: torch.zeros(3, 3)},
    }
    for message, tensors in cases.items():
        with pytest.raises(ftcore.Refused, match=message):
            give(found, tensors)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.tensors().items())


def test_two_methods_train_the_union_whatever_their_order(checkpoint: Callable[..., Path]) -> None:
    class Norms:
        """A third party's method that trains the norms."""

        @ftcore.hookimpl
        def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
            """The norms of the base train."""
            for name in loaded.parts["norm"]:
                loaded.model.get_submodule(name).requires_grad_(True)
            return model

    def both(methods: list[object]) -> Injected:
        loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
        hooks = bind([choose("method", method, {}) for method in methods], Core())
        return adapters.inject(hooks, Run(Settings(), "train", "causal-lm"), loaded, None, 10)

    one, other = both(["lora", Norms()]), both([Norms(), "lora"])
    assert set(one.names) == set(other.names)
    assert one.trainable == other.trainable
    assert set(one.matched) == set(other.matched)
    assert any("norm" in name for name in one.names)
    assert any("lora_A" in name for name in one.names)
