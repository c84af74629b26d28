"""Tiny checkpoints that the tests make for themselves: two layers, a byte-level tokenizer, nothing downloaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("trials")  # so that what it finds wrong is told as a test would

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


# Checkpoints in their makers' own form


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written(config, tensors, form)` is a checkpoint directory with these; forms are named like their files."""
    made: list[Path] = []

    def write(config: dict[str, Any], tensors: dict[str, torch.Tensor], form: str = "model.safetensors") -> Path:
        folder = tmp_path / f"original-{len(made)}"
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        stem = form.removesuffix(".index.json")
        names = sorted(tensors)
        shards = [names] if stem == form else [names[::2], names[1::2]]
        held = {}
        for number, shard in enumerate(shards):
            name = stem if stem == form else stem.replace(".", f"-{number + 1:05d}-of-00002.", 1)
            _write_tensors(folder / name, {key: tensors[key].clone() for key in shard})
            held.update(dict.fromkeys(shard, name))
        if stem != form:
            (folder / form).write_text(json.dumps({"metadata": {}, "weight_map": held}), encoding="utf-8")
        return folder

    return write


FORMS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """Each way in which a checkpoint is stored."""
    return str(request.param)


def _write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def pieces() -> Callable[..., bytes]:
    """`pieces(words, user=...)` is a sentencepiece file of byte pairs whose merges make these words, best first."""
    return _pieces


def _pieces(words: tuple[str, ...], user: tuple[str, ...] = (), *, prefix: bool = False) -> bytes:
    grown = [word[:end] for word in words for end in range(2, len(word) + 1)]
    letters = sorted({letter for word in words for letter in word})
    entries = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    entries += [(text, 1) for text in dict.fromkeys([*grown, *letters])] + [(text, 4) for text in user]
    packed = b""
    for number, (text, kind) in enumerate(entries):
        piece = _part(1, text.encode()) + b"\x15" + struct.pack("<f", -float(number)) + b"\x18" + bytes([kind])
        packed += _part(1, piece)
    return packed + _part(2, b"\x18\x02") + _part(3, b"\x18" + bytes([prefix]) + b"\x20\x00")


def _part(number: int, content: bytes) -> bytes:
    size, length = b"", len(content)
    while length >= 128:
        size, length = size + bytes([length % 128 | 128]), length // 128
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.fixture(scope="session")
def published() -> Callable[..., list[Path]]:
    """`published("internlm*")` are the checkpoints of that name with what their makers' code answers, where at hand."""
    place = Path(__file__).resolve().parents[1] / "shared" / "families"

    def named(pattern: str) -> list[Path]:
        return sorted(place.glob(pattern))

    return named


@pytest.fixture(scope="session")
def as_published() -> Callable[[Any, Path], None]:
    """`as_published(loaded, folder)`: logits, loss, gradients, batches, tokens and chats are the original code's."""
    return _as_published


def _as_published(loaded: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    wanted, model = load_file(folder / "expected.safetensors"), loaded.model
    with torch.no_grad():
        assert torch.allclose(model(wanted["input_ids"]).logits, wanted["logits"], atol=2e-5, rtol=0)
        for side in ("right", "left"):
            if f"{side}_input_ids" in wanted:
                mask = wanted[f"{side}_attention_mask"]
                answer = model(wanted[f"{side}_input_ids"], attention_mask=mask).logits
                assert torch.allclose(answer[mask == 1], wanted[f"{side}_logits"][mask == 1], atol=2e-5, rtol=0)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    loss = model(wanted["input_ids"], labels=wanted["labels"]).loss
    assert abs(float(loss.detach()) - float(wanted["loss"])) < 2e-5
    loss.backward()
    rows = embedding.grad[wanted["grad_embed_row_ids"]]
    assert torch.allclose(rows, wanted["grad_embed_rows"], atol=2e-5 * float(wanted["grad_embed_rows"].abs().max()))
    prompt = wanted["greedy_ids"][:, :8]
    said = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert torch.equal(said, wanted["greedy_ids"])
    if (folder / "expected_tokens.json").is_file():
        _tokens_as_published(loaded.tokenizer, json.loads((folder / "expected_tokens.json").read_text("utf-8")))


def _tokens_as_published(tokenizer: Any, wanted: dict[str, Any]) -> None:
    assert [tokenizer(text)["input_ids"] for text in wanted["texts"]] == wanted["input_ids"]
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted["texts"]]
    assert plain == wanted["plain_ids"]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain] == wanted["decoded"]
    if "chat_messages" in wanted:
        chat = tokenizer.apply_chat_template(wanted["chat_messages"], add_generation_prompt=True)
        assert chat["input_ids"] == wanted["chat_input_ids"]
