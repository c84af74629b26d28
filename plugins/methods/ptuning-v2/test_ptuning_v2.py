"""P-tuning v2 learns keys and values as they are, on decoders and on encoders for understanding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
import trials
from ftcore import adapters
from ftcore.hooks import Loaded
from ftcore.testing import method_checks
from ftcore_ptuning_v2 import PTuningV2
from torch import Tensor
from trials import answers, read_again, shaken, tiny

N = 5
# The output layer that a task of understanding adds, and how many numbers it has.
HEADS: Mapping[str, tuple[str, int]] = {
    "sequence-classification": ("classifier", 3 * 32 + 3),
    "token-classification": ("classifier", 3 * 32 + 3),
    "question-answering": ("qa_outputs", 2 * 32 + 2),
}
bound = partial(trials.bound, "ptuning-v2", num_virtual_tokens=N)
injected = partial(trials.injected, "ptuning-v2", num_virtual_tokens=N)


def encoder(head: str) -> Loaded:
    return tiny("bert", head, num_key_value_heads=4, **({} if head == "question-answering" else {"num_labels": 3}))


def asked() -> dict[str, Tensor]:
    """A row of seven tokens and one of four, each of two segments."""
    ids = torch.arange(10, 24).reshape(2, 7)
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(7) > 2).long().expand(2, -1)}


@pytest.mark.parametrize("head", HEADS)
def test_an_encoder_answers_as_after_the_keys_and_values(head: str) -> None:
    from transformers import DynamicCache

    loaded = encoder(head)
    plain = copy.deepcopy(loaded.model)
    model: Any = injected(loaded, head=head).model
    prefix = model.prompt_encoder["default"].embedding.weight.detach().reshape(N, 2, 2, 4, 8).permute(1, 2, 3, 0, 4)
    cache = DynamicCache([tuple(part.expand(2, -1, -1, -1) for part in layer) for layer in prefix])
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), asked()["attention_mask"]], 1)
    places = torch.arange(N, N + 7)[None]
    given = {**asked(), "attention_mask": mask, "past_key_values": cache, "position_ids": places}
    assert torch.allclose(answers(model, asked()), answers(plain, given), atol=1e-5)
    assert float((answers(model, asked()) - answers(plain, asked())).abs().max()) > 1e-2


@pytest.mark.parametrize("head", HEADS)
def test_the_new_output_layer_trains_is_kept_and_is_given_back(head: str, tmp_path: Path) -> None:
    loaded, (layer, numbers) = encoder(head), HEADS[head]
    fresh = replace(loaded, model=copy.deepcopy(loaded.model))
    hooks, run = bound(head=head)
    found = adapters.inject(hooks, run, loaded, None, 10)
    assert found.trainable == N * 2 * 2 * 32 + numbers
    shaken(found.model)
    adapter, again, theirs = read_again(hooks, run, found, fresh, tmp_path)
    assert set(adapter.tensors) == {"prompt_embeddings", f"base_model.{layer}.weight", f"base_model.{layer}.bias"}
    given = {name: tensor for name, tensor in asked().items() if name != "token_type_ids"}  # PEFT drops them at times
    for other in (again, theirs):
        assert torch.allclose(answers(other, given), answers(found.model, given), atol=1e-5)
    assert torch.equal(answers(again, asked()), answers(found.model, asked()))


def test_an_adapter_without_the_output_layer_is_refused() -> None:
    hooks, run = bound(head="sequence-classification")
    found = adapters.inject(hooks, run, encoder("sequence-classification"), None, 10)
    adapter = adapters.saved(hooks, run, found)
    lacking = {name: tensor for name, tensor in adapter.tensors.items() if not name.endswith("bias")}
    again = adapters.inject(hooks, replace(run, intent="infer"), encoder("sequence-classification"), None, 10)
    with pytest.raises(ftcore.Refused, match=r"lacks tensor 'base_model\.classifier\.bias'"):
        adapters.restore(hooks, run, again, replace(adapter, tensors=lacking))
    wide = {**adapter.tensors, "prompt_embeddings": torch.zeros(N, 999)}
    with pytest.raises(ftcore.Refused, match=r"have shape \(5, 999\), and the model wants \(5, 128\)"):
        adapters.restore(hooks, run, again, replace(adapter, tensors=wide))


def test_as_many_numbers_train_as_keys_and_values_have(checkpoint: Callable[..., Path]) -> None:
    for options, numbers in (({}, N * 2 * 2 * 24), ({"projection": True}, N * 24 + 25 * 24 + 25 * 2 * 2 * 24)):
        loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen3", head_dim=12))
        assert injected(loaded, **options).trainable == numbers


@method_checks(PTuningV2())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
