"""Tiny checkpoints that the tests make for themselves: two layers, a byte-level tokenizer, nothing downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = (
    "The cat sat by the door and looked at the rain. A small dog ran over the hill to find its ball. "
    "Lily said hello to the old man, and he smiled at her. 小猫在门口看雨。小狗去找它的球。"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint("qwen2", **config)` is the directory of a random two-layer model of that type with a tokenizer."""
    made: dict[str, Path] = {}

    def make(model_type: str = "qwen2", **changes: Any) -> Path:
        key = json.dumps([model_type, changes], sort_keys=True)
        if key not in made:
            made[key] = _checkpoint(tmp_path_factory.mktemp(model_type), model_type, changes)
        return made[key]

    return make


def _checkpoint(folder: Path, model_type: str, changes: dict[str, Any]) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(model_type, **(shape | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # far enough from zero that wrong answers differ from right ones
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with 40 alpaca rows of differing length, in English and Chinese."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    things = ["cat", "dog", "rain", "ball", "door", "hill", "old man", "small dog"]
    with file.open("w", encoding="utf-8") as out:
        for i in range(40):
            thing = things[i % len(things)]
            answer = f"The {thing} is by the door. " * (1 + i % 3) if i % 4 else f"小{'猫狗'[i % 2]}在门口看雨。"
            out.write(json.dumps({"instruction": f"Where is the {thing}? ({i})", "output": answer.strip()}) + "\n")
    return file


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A text file of four short documents."""
    file = tmp_path / "story.txt"
    file.write_text("\n<|endoftext|>\n".join([WORDS, WORDS[40:], WORDS[:90], WORDS[10:150]]), encoding="utf-8")
    return file
