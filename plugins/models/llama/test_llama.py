"""Llama checkpoints load whole, and the real one that is at hand is as good as its makers say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
import torch
from family_facts import answers_as_plain_transformers, loaded, outside_of_parts, refuses_another_type
from ftcore.batches import token_loss
from ftcore.hooks import Run
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_llama import Llama
from ftcore_pretrain import Pretrain
from safetensors.torch import load_file, save_file

SHARED = Path(__file__).resolve().parents[4] / "shared"
STORIES = [
    (weights, text)
    for weights in (SHARED / "weights").glob("stories260K")
    for text in (SHARED / "data" / "tinystories").glob("tinystories.txt")
]


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(tied: bool) -> None:
    answers_as_plain_transformers(Llama(), tiny_checkpoint("llama", tie_word_embeddings=tied))


def test_every_part_names_modules_and_every_weight_is_in_a_part() -> None:
    found = loaded(Llama(), tiny_checkpoint("llama"))
    assert outside_of_parts(found) == set()
    assert len(found.parts["block"]) == len(found.parts["attention.q"]) == 2


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    refuses_another_type(Llama(), tiny_checkpoint("qwen2"), "llama")
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    gone = tensors.pop("lm_head.weight")
    save_file({**tensors, "lm_tail.weight": gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 missing tensors, the first is 'lm_head\.weight'"):
        ftcore.load("llama", checkpoint=folder)


def test_the_published_weights_read_stories_as_well_as_their_source_says() -> None:
    """SOURCE.md: 1.407 nats a token over the first 100 stories, 1.394 over the held-out ones."""
    for weights, text in STORIES:
        found = ftcore.load("llama", checkpoint=weights)
        settings = Settings(data=(str(text),), eval_data=(str(text),))
        data = Pretrain(eos=None).prepare_data(Run(settings, "train", "causal-lm"), found)
        assert found.tokenizer.convert_ids_to_tokens(data.eval[0].input_ids[:1].tolist()) == ["<s>"]
        batches = [data.collate(data.eval[start : start + 10]) for start in range(0, 100, 10)]
        with torch.no_grad():
            total = sum(float(token_loss(found.model, batch)) for batch in batches)
        assert 1.39 <= total / sum(batch.weight for batch in batches) <= 1.42


@model_checks(Llama())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
