"""Every starter is small, loads whole, has read stories, and can be taught by the first command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ftcore
import pytest
import torch
from ftcore.discovery import sound
from ftcore.families import HFModel
from ftcore.hooks import Loaded
from transformers import AutoModelForCausalLM

# The families that ship a decoder, and the token that stands before a story.
BEGIN = {"bloom": "<s>", "chatglm": "<sop>", "internlm": "<s>", "qwen": "<|endoftext|>"}
STORY = (
    "Once upon a time there was a small cat named Tim. Tim liked to play in the garden. One day he saw a big red ball "
    "under a tree. He ran to it and pushed it with his nose. The ball rolled away, and Tim was happy."
)
TEXTS = [
    STORY, 'Tom said, "Hello!"\n  He ran.', "小猫在门口看雨。", "naïve café 👩‍👧 🐱\n\tif x != y: pass", "\u200b \x7f",
]  # fmt: skip


def shipped() -> dict[str, Path]:
    """The starter of each family of decoders that has one; others are tried beside their families."""
    classes = {offer.name: offer.load() for offer in sound("model")}
    decoders = {name: cls for name, cls in classes.items() if issubclass(cls, HFModel) and "causal-lm" in cls.heads}
    return {name: cls.starter for name, cls in decoders.items() if cls.starter}


def cost(loaded: Loaded, begin: str) -> float:
    """What a story that no model has read costs, in nats a token."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    ids = torch.tensor(
        [[tokenizer.convert_tokens_to_ids(begin), *tokenizer(STORY, add_special_tokens=False)["input_ids"]]]
    )
    with torch.inference_mode():
        return float(loaded.model(input_ids=ids, labels=ids).loss)


def test_every_starter_is_tried_here() -> None:
    assert shipped().keys() == BEGIN.keys()


@pytest.mark.parametrize("family", BEGIN)
def test_a_starter_is_small_and_loads_whole_as_plain_transformers_has_it(family: str) -> None:
    folder = shipped()[family]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_500_000
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert [type(model).__name__] == json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    loaded = ftcore.load(family)
    assert loaded.checkpoint == str(folder)
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("family", BEGIN)
def test_any_text_goes_through_a_starters_tokenizer_and_back(family: str) -> None:
    tokenizer = ftcore.load(family).tokenizer
    assert tokenizer is not None
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("family", BEGIN)
def test_a_starter_has_read_stories(family: str) -> None:
    read = ftcore.load(family)
    unread = ftcore.load(family, checkpoint=read.checkpoint, weights="random")
    assert cost(read, BEGIN[family]) < 0.5 * math.log(read.vocab_size) < cost(unread, BEGIN[family])


@pytest.mark.parametrize("family", BEGIN)
def test_the_first_command_lowers_the_loss_on_held_out_rows(family: str, tmp_path: Path) -> None:
    outcome = ftcore.run(method="lora", task="causal", model=family, output=tmp_path / "run", epochs=1)
    assert outcome.metrics["loss"] < 0.7 * outcome.before["loss"]
    assert all(sample["before"] != sample["after"] for sample in outcome.samples)
