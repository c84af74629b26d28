"""T5, mT5 and UMT5 load whole and answer as plain transformers does, also as published; the starter can be taught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import (
    IDS,
    answers_as_plain_transformers,
    loaded,
    numbers,
    outside_of_parts,
    planned,
    refuses_another_type,
    same_tensors,
)
from ftcore.hooks import Intent, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_t5 import T5, TINY
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

HEAD = "seq2seq-lm"
# Fields of a published config.json, and how many numbers its weights hold.
SMALL = {"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "t5-small": ({**SMALL, "d_ff": 2048, "num_layers": 6, "num_heads": 8}, 60_506_624),
    "t5-base": ({**SMALL, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 222_903_552),
    "flan-t5-small": (
        {
            **SMALL,
            "d_ff": 1024,
            "num_layers": 8,
            "num_heads": 6,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        76_961_152,
    ),
}


def made(folder: Path, intent: Intent = "train") -> Loaded:
    """What the family makes of a checkpoint."""
    return loaded(T5(), folder, HEAD, intent)


@pytest.mark.parametrize("kind", T5.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    folder = tiny_checkpoint(kind, HEAD, **TINY, tie_word_embeddings=tied)
    begun = torch.arange(7, 21).reshape(2, 7)
    answers_as_plain_transformers(T5(), folder, HEAD, input_ids=IDS, decoder_input_ids=begun)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_numbers_as_their_weights(name: str, tmp_path: Path) -> None:
    fields, wanted = PUBLISHED[name]
    assert numbers(planned(T5(), fields, tmp_path, HEAD)) == wanted


@pytest.mark.parametrize(("kind", "gated"), [("t5", False), ("t5", True), ("mt5", True), ("umt5", True)])
def test_every_weight_of_a_block_is_in_a_part(kind: str, gated: bool) -> None:
    act = "gated-gelu" if gated else "relu"
    found = made(tiny_checkpoint(kind, HEAD, **TINY, feed_forward_proj=act))
    assert all(name.endswith(("relative_attention_bias", "embed_tokens")) for name in outside_of_parts(found))
    assert ("mlp.gate" in found.parts) == gated
    assert len(found.parts["block"]) == 4
    assert len(found.parts["attention.q"]) == 6  # two of the encoder, two of the decoder, two over what was read


def test_files_as_they_were_published_load_whole(tmp_path: Path) -> None:
    """They hold the shared embedding three times, and a bias that nothing ever used."""
    native = tiny_checkpoint("t5", HEAD, **TINY, tie_word_embeddings=True)
    folder = Path(shutil.copytree(native, tmp_path / "published"))
    tensors = load_file(native / "model.safetensors")
    copies = {f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 4)}
    save_file({**tensors, **copies, **unused}, folder / "model.safetensors", {"format": "pt"})
    assert same_tensors(T5(), native, folder, HEAD)


def untied() -> Path:
    """A checkpoint as Flan-T5 has it: a gate, and a head apart from the embedding."""
    native = tiny_checkpoint("t5", HEAD, **TINY, feed_forward_proj="gated-gelu")
    folder = native.parent / f"{native.name}-untied"
    if not folder.exists():
        shutil.copytree(native, folder)
        tensors = load_file(native / "model.safetensors")
        head = torch.linspace(-1, 1, tensors["shared.weight"].numel()).reshape(tensors["shared.weight"].shape)
        save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": False}), encoding="utf-8")
    return folder


def test_a_head_apart_from_the_embedding_stays_apart_also_in_a_plan_and_drawn_anew() -> None:
    ways = [made(untied()), made(untied(), "plan")]
    run = Run(Settings(checkpoint=str(untied())), "train", HEAD)
    ways.append(T5(weights="random").load_model(run, {}))
    assert len(set(map(numbers, ways))) == 1
    assert torch.equal(ways[0].model.lm_head.weight[0, :1], torch.tensor([-1.0]))


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(T5(), tiny_checkpoint("llama"), "t5, mt5, umt5", HEAD)


# --- the starter -----------------------------------------------------------------------------------------

STORY = "The small cat saw a red bird in the tree. It wanted to play with the bird, but the bird was too high."
TEXTS = [
    STORY,
    'Tom said, "Hello!"\n  He ran.',
    "小猫在门口看雨。",
    "naïve café 👩‍👧 🐱\n\tif x != y: pass",
    "\u200b \x7f",
]


def cost(found: Loaded, read: str, asked: str) -> float:
    """What a text costs after another, in nats a token."""
    tokenizer: Any = found.tokenizer
    given = tokenizer(read, return_tensors="pt").input_ids
    with torch.inference_mode():
        return float(found.model(input_ids=given, labels=tokenizer(asked, return_tensors="pt").input_ids).loss)


def test_the_starter_is_small_and_loads_whole_as_plain_transformers_has_it() -> None:
    folder = T5.starter
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_500_000
    plain, info = T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    found = ftcore.load("t5", "seq2seq")
    assert found.checkpoint == str(folder)
    with torch.no_grad():
        answers = [one.eval()(input_ids=IDS, decoder_input_ids=IDS[:, :9]).logits for one in (found.model, plain)]
    assert torch.allclose(*answers, atol=1e-5)


def test_any_text_goes_through_the_starters_tokenizer_and_back() -> None:
    tokenizer: Any = ftcore.load("t5", "seq2seq").tokenizer
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == TEXTS
    assert tokenizer("Tim")["input_ids"][-1] == tokenizer.eos_token_id == 1
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 2)


def test_the_starter_writes_what_it_reads() -> None:
    found = ftcore.load("t5", "seq2seq")
    first, second = f"{STORY.partition('.')[0]}.", STORY.partition(". ")[2]
    assert cost(found, f"copy: {first}", first) < 0.5 * cost(found, f"copy: {second}", first)


def test_the_first_command_learns_to_write_what_is_asked_for(tmp_path: Path) -> None:
    outcome = ftcore.run(method="lora", task="seq2seq", model="t5", output=tmp_path / "run", epochs=2)
    assert outcome.metrics["loss"] < 0.5 * outcome.before["loss"]
    assert all(sample["before"] != sample["after"] for sample in outcome.samples)


@model_checks(T5())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
