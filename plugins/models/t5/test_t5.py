"""T5, mT5 and UMT5 checkpoints load whole and answer as plain transformers does, also as they were published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_t5 import T5, TINY
from safetensors.torch import load_file, save_file

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


def loaded(folder: Path, intent: Any = "train") -> Loaded:
    """What the family makes of a checkpoint."""
    return T5().load_model(Run(Settings(checkpoint=str(folder)), intent, HEAD), {})


@pytest.mark.parametrize("kind", T5.model_types)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool) -> None:
    from transformers import AutoModelForSeq2SeqLM

    folder = tiny_checkpoint(kind, HEAD, **TINY, tie_word_embeddings=tied)
    found, plain = loaded(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(found.model) is type(plain)
    ids, begun = torch.arange(5, 65).reshape(2, 30), torch.arange(7, 21).reshape(2, 7)
    with torch.no_grad():
        answers, wanted = (one.eval()(input_ids=ids, decoder_input_ids=begun).logits for one in (found.model, plain))
    assert torch.allclose(answers, wanted, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_numbers_as_their_weights(name: str, tmp_path: Path) -> None:
    fields, numbers = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    assert sum(parameter.numel() for parameter in loaded(tmp_path, "plan").model.parameters()) == numbers


@pytest.mark.parametrize(("kind", "gated"), [("t5", False), ("t5", True), ("mt5", True), ("umt5", True)])
def test_every_weight_of_a_block_is_in_a_part(kind: str, gated: bool) -> None:
    act = "gated-gelu" if gated else "relu"
    found = loaded(tiny_checkpoint(kind, HEAD, **TINY, feed_forward_proj=act))
    named = {name for role, names in found.parts.items() if role != "block" for name in names}
    rest = {name for name, module in found.model.named_modules() if module._parameters} - named
    assert all(name.endswith(("relative_attention_bias", "embed_tokens")) for name in rest)
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
    wanted, found = (loaded(place).model.state_dict() for place in (native, folder))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


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
    ways = [loaded(untied()), loaded(untied(), "plan")]
    run = Run(Settings(checkpoint=str(untied())), "train", HEAD)
    ways.append(T5(weights="random").load_model(run, {}))
    sizes = {sum(parameter.numel() for parameter in found.model.parameters()) for found in ways}
    assert len(sizes) == 1
    assert torch.equal(ways[0].model.lm_head.weight[0, :1], torch.tensor([-1.0]))


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads t5, mt5, umt5"):
        loaded(tiny_checkpoint("llama"))


@model_checks(T5())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
