"""Encoders load whole, answer as plain transformers does, and get a head where they were published with another."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import answers_as_plain_transformers, numbers, planned, refuses_another_type, same_tensors
from ftcore.hooks import Loaded, Run
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_bert import Bert
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

CLASSIFY = [head for head in Bert.heads if head != "masked-lm"]
STORY = (
    "Once upon a time there was a small cat named Tim. Tim liked to play in the garden. One day he saw a big red ball "
    "under a tree. He ran to it and pushed it with his nose. The ball rolled away, and Tim was happy."
)
# Fields of a published config.json, and how many numbers its weights hold with the head of a masked language model.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "bert-base-uncased": ({"model_type": "bert", "vocab_size": 30522}, 109_514_298),
    "roberta-base": (
        {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
        124_697_433,
    ),
    "distilbert-base-uncased": ({"model_type": "distilbert", "vocab_size": 30522}, 66_985_530),
}


def made(folder: Path, head: str, intent: Any = "train", said: list[str] | None = None) -> Loaded:
    """What the family makes of a checkpoint for a task with this head."""
    told = [] if said is None else said
    with seeded(0, "test"):
        return Bert().load_model(Run(Settings(checkpoint=str(folder)), intent, head, say=told.append), {})


def tiny(kind: str, head: str, **fields: Any) -> Path:
    """A random two-layer checkpoint of that type and head."""
    return tiny_checkpoint(kind, head, **Bert.tiny.get(kind, {}), **fields)


@pytest.mark.parametrize("kind", Bert.model_types)
@pytest.mark.parametrize("head", Bert.heads)
def test_a_checkpoint_answers_as_plain_transformers(kind: str, head: str) -> None:
    answers_as_plain_transformers(Bert(), tiny(kind, head), head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_numbers_as_their_weights(name: str, tmp_path: Path) -> None:
    fields, wanted = PUBLISHED[name]
    found = planned(Bert(), fields, tmp_path, "masked-lm")
    assert numbers(found) == wanted
    assert found.max_positions == 512


@pytest.mark.parametrize("kind", Bert.model_types)
@pytest.mark.parametrize("head", CLASSIFY)
def test_a_checkpoint_with_another_head_gets_the_one_asked_for(kind: str, head: str) -> None:
    published, said = tiny(kind, "masked-lm"), list[str]()
    found, again = made(published, head, said=said), made(published, head)
    assert any(f"no head for {head}: a new one is drawn" in line for line in said)
    assert any("no use here and" in line for line in said)
    stored, state = load_file(published / "model.safetensors"), found.model.state_dict()
    inside = [name for name in state if name.startswith(found.model.base_model_prefix) and "pooler" not in name]
    assert all(torch.equal(state[name], stored[name]) for name in inside)
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in state.items())
    assert found.parts["head"] == ("qa_outputs" if head == "question-answering" else "classifier",)


def test_bert_as_it_was_published_is_read_for_masked_words_and_for_classes(tmp_path: Path) -> None:
    """Its file has a pooler, a second head, a buffer, and the old names of what normalises."""
    native = tiny("bert", "masked-lm", tie_word_embeddings=True)
    folder = Path(shutil.copytree(native, tmp_path / "published"))
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(native / "model.safetensors").items()
    }
    tensors |= {
        "bert.pooler.dense.weight": torch.full((32, 32), 0.5),
        "bert.pooler.dense.bias": torch.zeros(32),
        "bert.embeddings.position_ids": torch.arange(256)[None],
        "cls.seq_relationship.weight": torch.zeros(2, 32),
        "cls.seq_relationship.bias": torch.zeros(2),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert same_tensors(Bert(), native, folder, "masked-lm")
    pooler = made(folder, "sequence-classification").model.bert.pooler.dense.weight
    assert torch.equal(pooler, tensors["bert.pooler.dense.weight"])


def test_half_a_head_and_a_missing_language_head_are_refused(tmp_path: Path) -> None:
    half = Path(shutil.copytree(tiny("bert", "token-classification"), tmp_path / "half"))
    tensors = load_file(half / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 missing tensors, the first is 'classifier\.bias'"):
        made(half, "token-classification")
    with pytest.raises(ftcore.Refused, match=r"missing tensors, the first is 'cls\.predictions"):
        made(tiny("bert", "token-classification"), "masked-lm")
    refuses_another_type(Bert(), tiny_checkpoint("llama"), "bert, roberta", "masked-lm")


def starter(task: str = "mlm", **family: Any) -> Loaded:
    """The starter as a task with that head gets it."""
    return ftcore.load("bert", task, **family)


def filled(loaded: Loaded, text: str) -> list[str]:
    """The five words that the starter holds for most likely in the place of the mask."""
    tokenizer: Any = loaded.tokenizer
    made = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        logits = loaded.model(**made).logits
    return list(
        tokenizer.convert_ids_to_tokens(logits[made["input_ids"] == tokenizer.mask_token_id][0].topk(5).indices)
    )


def cost(loaded: Loaded, text: str, before: str | None = None) -> float:
    """What each token of a text costs when it alone is hidden, in nats; `before` is a first segment."""
    tokenizer: Any = loaded.tokenizer
    made = tokenizer(*filter(None, (before, text)), return_tensors="pt")
    ids, segments = made["input_ids"][0], made["token_type_ids"][0]
    places = [place for place in range(1, len(ids) - 1) if before is None or segments[place]]
    rows = ids.repeat(len(places), 1)
    rows[range(len(places)), places] = tokenizer.mask_token_id
    with torch.inference_mode():
        logits = loaded.model(rows, token_type_ids=segments.repeat(len(places), 1)).logits
    return float(cross_entropy(logits[range(len(places)), places], ids[places]))


def test_the_starter_is_small_and_loads_whole_as_plain_transformers_has_it() -> None:
    folder = Bert.starter
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_500_000
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    loaded = starter()
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model.eval()(ids).logits, atol=1e-5)
    assert (loaded.max_positions, loaded.model.config.type_vocab_size) == (512, 2)


def test_the_starters_tokens_are_berts_and_say_where_they_stand_in_a_text() -> None:
    tokenizer: Any = starter().tokenizer
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = "Lily's dog RAN home. 小猫在门口看雨!"
    made = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert "".join(text[start:end] for start, end in made["offset_mapping"]) == text.replace(" ", "")
    assert made["input_ids"] == tokenizer(text.lower(), add_special_tokens=False)["input_ids"]
    assert tokenizer("a cat", "the dog")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_the_starter_has_read_stories_in_either_segment_and_at_any_place() -> None:
    read, unread = starter(), starter(checkpoint=Bert.starter, weights="random")
    assert cost(read, STORY) < 0.55 * math.log(read.vocab_size) < cost(unread, STORY)
    assert cost(read, STORY, before="Tim had a cat.") < cost(read, STORY) + 0.3
    assert cost(read, STORY, before=STORY[:60] * 25) < cost(read, STORY) + 0.3
    assert "time" in filled(read, "Once upon a [MASK], there was a little girl.")
    assert {"he", "it", "tim"} & set(filled(read, "Tim was happy. [MASK] ran home to his mom."))


def test_the_starter_gets_the_head_of_a_question_answerer() -> None:
    said = list[str]()
    with seeded(0, "test"):
        loaded = Bert().load_model(Run(Settings(), "train", "question-answering", say=said.append), {})
    assert any("a new one is drawn (qa_outputs)" in line for line in said)
    assert loaded.lr_scale == Bert.starter_lr_scale


def test_the_first_command_lowers_the_loss_on_held_out_text(tmp_path: Path) -> None:
    outcome = ftcore.run(method="lora", task="mlm", model="bert", mlm={"duplicates": 5}, output=tmp_path / "run")
    assert outcome.metrics["loss"] < outcome.before["loss"] - 0.05


@model_checks(Bert())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
