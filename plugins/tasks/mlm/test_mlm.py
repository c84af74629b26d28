"""Whole words are hidden as BERT's paper says, the same whenever a run is repeated, and an encoder fills them in."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftcore
import numpy as np
import pytest
import torch
from ftcore.batches import digest
from ftcore.errors import Interrupted
from ftcore.hooks import Data, Loaded, Run
from ftcore.progress import Silent, StepReport
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import WORDS, tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer
from ftcore_mlm import Mlm
from transformers import BertTokenizer, DataCollatorForTokenClassification, PreTrainedTokenizerBase

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = (
    "the cat sat by door and look ##ed at rain small dog ran over hill to find its ball li ##ly said hello old man he "
    "smil ##ed her 小 猫 在 门 口 看 雨 狗 去 找 它 的 球 . , 。 ! water ##mel ##on ##s"
)
TEXT = "The cat looked at the watermelons. Lily smiled! 小猫在门口看雨。The old dog ran over the hill to find its ball."
LONG = " ".join([TEXT] * 40)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A BERT of two layers with word pieces that split words, and segments."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = dict.fromkeys([*SPECIALS, *PIECES.split()])
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "tie_word_embeddings": True}
    model: Any = tiny_model(tiny_config("bert", **shape), "masked-lm")
    model.save_pretrained(folder)
    return ftcore.load("bert", "mlm", folder)


class Stopping(Silent):
    """A screen in front of which somebody stops the run after 15 steps."""

    def stepped(self, report: StepReport, logged: bool) -> None:
        if report.step == 15:
            signal.raise_signal(signal.SIGTERM)


def prepared(loaded: Loaded, folder: Path, *texts: str, own: dict[str, Any] | None = None, **keys: Any) -> Data:
    """The task's rows for these documents; `own` are its options."""
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    run = Run(Settings(data=(str(file),), **keys), "train", "masked-lm")
    return Mlm(**(own or {})).prepare_data(run, loaded)


def read(data: Data) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Of each row what the model reads, what it is to predict, and what was written."""
    for row in data.train:
        batch = data.collate([row])
        ids, labels = batch.inputs["input_ids"][0], batch.targets["labels"][0]
        yield ids.tolist(), labels.tolist(), torch.where(labels == -100, ids, labels).tolist()


def words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[list[int]]:
    """The places of each word's tokens, by the marks of word pieces alone."""
    found: list[list[int]] = []
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(list(ids))):
        if token.startswith("##"):
            found[-1].append(place)
        elif token not in ("[CLS]", "[SEP]", "[PAD]"):
            found.append([place])
    return found


@pytest.mark.parametrize("share", [0.15, 0.4])
@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_the_share_of_the_words_is_chosen_and_each_with_all_its_pieces(
    share: float, pairs: float, encoder: Loaded, tmp_path: Path
) -> None:
    data = prepared(encoder, tmp_path, TEXT, LONG, "The cat.", own={"share": share, "pairs": pairs}, max_length=100)
    for _, labels, written in read(data):
        found = words(encoder.tokenizer, written)
        assert all(len({labels[place] == -100 for place in word}) == 1 for word in found)
        chosen = sum(labels[word[0]] != -100 for word in found)
        assert chosen == max(1, round(share * len(found)))
        assert sum(label != -100 for label in labels) == sum(
            len(word) for word in found if labels[word[0]] != -100
        )  # and nothing beside the words


def test_tokens_are_chosen_by_themselves_where_words_are_not_asked_for(encoder: Loaded, tmp_path: Path) -> None:
    data = prepared(encoder, tmp_path, LONG, own={"whole_words": False})
    split = [
        word for _, labels, written in read(data) for word in words(encoder.tokenizer, written)
        if len({labels[place] == -100 for place in word}) == 2
    ]  # fmt: skip
    assert split
    assert all(sum(label != -100 for label in labels) == round(0.15 * (len(ids) - 2)) for ids, labels, _ in read(data))


def test_of_the_chosen_tokens_eight_in_ten_are_hidden_and_one_in_ten_is_another(
    encoder: Loaded, tmp_path: Path
) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    became: Counter[str] = Counter()
    others: Counter[int] = Counter()
    for ids, labels, _ in read(prepared(encoder, tmp_path, LONG, own={"share": 0.3, "duplicates": 40})):
        for token, label in zip(ids, labels, strict=True):
            if label != -100:
                kind = "kept" if token == label else "hidden" if token == tokenizer.mask_token_id else "another"
                became[kind] += 1
                others.update([token] if kind == "another" else [])
    count = sum(became.values())
    assert count > 10_000
    same = 0.1 / (len(tokenizer) - len(SPECIALS))  # of those to be replaced, a few are drawn as they were
    for kind, share in (("hidden", 0.8), ("another", 0.1 - same), ("kept", 0.1 + same)):
        assert abs(became[kind] / count - share) < 4 * math.sqrt(share * (1 - share) / count)
    assert not set(others) & set(tokenizer.all_special_ids)
    assert set(others) == set(range(len(SPECIALS), len(tokenizer)))


def test_rows_hold_each_document_whole_between_the_tokenizers_own_tokens(encoder: Loaded, tmp_path: Path) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    for length in (7, 30, 100, 10_000):
        rows = [written for _, _, written in read(prepared(encoder, tmp_path, LONG, TEXT, max_length=length))]
        assert max(map(len, rows)) <= min(length, encoder.max_positions)
        assert all(row == [tokenizer.cls_token_id, *row[1:-1], tokenizer.sep_token_id] for row in rows)
        wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (LONG, TEXT)]
        assert [token for row in rows for token in row[1:-1]] == [token for ids in wanted for token in ids]
        assert not any(tokenizer.convert_ids_to_tokens(row[1]).startswith("##") for row in rows)


def test_a_pair_is_laid_out_as_the_tokenizer_does_and_its_segments_reach_the_model(
    encoder: Loaded, tmp_path: Path
) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    data = prepared(encoder, tmp_path, LONG, TEXT, own={"pairs": 1.0}, max_length=60)
    for row in data.train:
        batch = data.collate([row])
        labels, ids = batch.targets["labels"][0], batch.inputs["input_ids"][0]
        written = torch.where(labels == -100, ids, labels).tolist()
        middle = written.index(tokenizer.sep_token_id)
        first, second = (tokenizer.decode(part) for part in (written[1:middle], written[middle + 1 : -1]))
        made = tokenizer(first, second)
        assert made["input_ids"] == written
        assert made["token_type_ids"] == batch.inputs["token_type_ids"][0].tolist()
        assert row.size == len(written) <= 60
    half = prepared(encoder, tmp_path, LONG, own={"pairs": 0.5, "duplicates": 20})
    parted = [written.count(tokenizer.sep_token_id) == 2 for _, _, written in read(half)]
    assert 0.35 < np.mean(parted) < 0.65
    assert half.collate(half.train).inputs["token_type_ids"].any()


def test_a_model_without_segments_is_told_none(tmp_path: Path) -> None:
    loaded = ftcore.load("bert", "mlm", tiny_checkpoint("distilbert", "masked-lm", hidden_dim=64))
    data = prepared(loaded, tmp_path, WORDS, own={"pairs": 1.0})
    assert set(data.collate(data.train).inputs) == {"input_ids", "attention_mask"}
    assert float(data.loss(loaded.model, data.collate(data.train)).detach()) > 0


def test_masks_are_the_same_for_one_seed_and_others_for_another_and_for_each_duplicate(
    encoder: Loaded, tmp_path: Path
) -> None:
    def masks(seed: int, duplicates: int) -> list[tuple[int, ...]]:
        own = {"duplicates": duplicates}
        return [tuple(ids) for ids, _, _ in read(prepared(encoder, tmp_path, LONG, own=own, seed=seed, max_length=60))]

    once, rows = masks(1, 1), len(masks(1, 1))
    assert masks(1, 1) == once
    assert masks(1, 3)[:rows] == once
    assert len(set(masks(1, 3))) > 2.8 * rows  # a row of a word or two can be hidden in few ways
    assert len(set(masks(2, 1)) - set(once)) > 0.8 * rows


def test_a_text_is_masked_in_the_same_way_whatever_stands_around_it(encoder: Loaded, tmp_path: Path) -> None:
    alone = list(read(prepared(encoder, tmp_path, TEXT)))
    among = list(read(prepared(encoder, tmp_path, "The cat sat.", TEXT, "The dog.")))
    assert among[1] == alone[0]
    file = str(tmp_path / "text.jsonl")
    twice = Mlm().prepare_data(Run(Settings(data=(file, file)), "train", "masked-lm"), encoder)
    named = [tuple(ids) for ids, _, _ in read(twice)]
    assert named[1] == tuple(alone[0][0])
    assert named[4] != named[1]


def test_a_word_that_the_tokenizer_does_not_know_is_never_chosen(encoder: Loaded, tmp_path: Path) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    data = prepared(encoder, tmp_path, "The cat xyzzy plugh sat. " * 20, own={"share": 0.9})
    unknown = tokenizer.unk_token_id
    assert any(unknown in ids for ids, _, _ in read(data))
    assert not any(unknown in labels for _, labels, _ in read(data))
    with pytest.raises(ftcore.Refused, match=r"text\.jsonl:2: text holds no word that the tokenizer knows"):
        prepared(encoder, tmp_path, TEXT, "xyzzy plugh")


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_chinese_characters_are_words_of_their_own_also_where_tokens_are_bytes(kind: str, tmp_path: Path) -> None:
    loaded = ftcore.load("bert", "mlm", tiny_checkpoint(kind, "masked-lm"))
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    text = "那天下大雪我们没有出门只看见一只鸟站在树上不动也不叫" * 3
    data = prepared(loaded, tmp_path, f"The cat sat by the door. {text}", own={"share": 0.3})
    ids, labels, written = next(iter(read(data)))
    offsets = tokenizer(f"The cat sat by the door. {text}", return_offsets_mapping=True)["offset_mapping"]
    assert len(offsets) == len(ids) == len(written)
    chosen = [label != -100 for label in labels]
    for (start, end), (after, _), one, other in zip(offsets, offsets[1:], chosen, chosen[1:], strict=False):
        if max(start, after) > 30 and after < end:  # two pieces of one character
            assert one == other
    changes = sum(one != other for one, other in pairwise(chosen[-3 * len(text) :]))
    assert changes > 10


def test_the_loss_is_that_of_transformers_on_the_same_batch(encoder: Loaded, tmp_path: Path) -> None:
    data = prepared(encoder, tmp_path, TEXT, "The cat sat.", LONG, own={"pairs": 0.5}, max_length=80)
    batch = data.collate(data.train)
    ours = float(data.loss(encoder.model, batch).detach())
    mean = encoder.model(**batch.inputs, labels=batch.targets["labels"]).loss
    assert ours == pytest.approx(float(mean.detach()) * batch.weight, rel=1e-5)


def test_answers_are_the_likeliest_tokens_and_accuracy_is_the_share_that_is_right(
    encoder: Loaded, tmp_path: Path
) -> None:
    data = prepared(encoder, tmp_path, TEXT, "The cat sat.", LONG, max_length=80)
    scoring, tokenizer = data.scoring, encoder.tokenizer
    assert scoring is not None
    assert tokenizer is not None
    with torch.no_grad():
        answers = scoring.predict(encoder.model, data.train)
    told = scoring.lines(data.train, answers)
    right = asked = 0
    for row, line in zip(data.train, told, strict=True):
        batch = data.collate([row])
        with torch.no_grad():
            best = encoder.model(**batch.inputs).logits[0].argmax(-1)
        labels = batch.targets["labels"][0]
        places = (labels != -100).nonzero()[:, 0].tolist()
        assert line["hidden"] == [tokenizer.convert_ids_to_tokens(int(labels[place])) for place in places]
        assert line["found"] == [tokenizer.convert_ids_to_tokens(int(best[place])) for place in places]
        right += sum(int(best[place]) == int(labels[place]) for place in places)
        asked += len(places)
    assert scoring.score(told) == {"accuracy": right / asked}
    assert told[0]["text"].startswith("the cat looked at the watermelons")


def test_a_batch_is_padded_as_transformers_pads_it(encoder: Loaded, tmp_path: Path) -> None:
    data = prepared(encoder, tmp_path, TEXT, "The cat sat.", "小猫!")
    alone = [data.collate([row]) for row in data.train]
    features = [
        {"input_ids": one.inputs["input_ids"][0].tolist(), "labels": one.targets["labels"][0].tolist()} for one in alone
    ]
    theirs = DataCollatorForTokenClassification(encoder.tokenizer)(features)
    ours = data.collate(data.train)
    assert {**ours.inputs, **ours.targets}.keys() == theirs.keys() - {"token_type_ids"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in {**ours.inputs, **ours.targets}.items())


def test_a_tokenizer_without_a_mask_is_refused(encoder: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ftcore.Refused, match="has no mask token to hide words behind"):
        prepared(replace(encoder, tokenizer=tiny_tokenizer()), tmp_path, TEXT)


def test_a_length_that_leaves_no_room_is_refused(encoder: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ftcore.Refused, match="--max-length 2 leaves no room beside 2 special tokens"):
        prepared(encoder, tmp_path, TEXT, max_length=2)


def test_an_encoder_learns_hidden_words_and_a_resumed_run_goes_on_as_it_would_have(
    encoder: Loaded, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {
        "method": "full", "task": "mlm", "model": "bert", "checkpoint": encoder.checkpoint, "lr": 1e-2, "steps": 40,
        "mlm": {"duplicates": 4}, "max_length": 64, "save_every": 10,
    }  # fmt: skip
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"text": LONG}) + "\n", encoding="utf-8")
    keys |= {"data": str(file), "eval_data": str(file)}
    whole = ftcore.run(**keys, output=tmp_path / "whole")
    assert whole.metrics["loss"] < 0.75 * whole.before["loss"]
    assert whole.metrics["perplexity"] == pytest.approx(math.exp(whole.metrics["loss"]))
    assert whole.metrics["accuracy"] > whole.before["accuracy"]
    with pytest.raises(Interrupted):
        ftcore.run(**keys, output=tmp_path / "parts", screen=Stopping())
    assert ftcore.run(**keys, output=tmp_path / "parts").metrics == whole.metrics


def test_the_built_in_sample_is_used_where_no_data_is_named(encoder: Loaded) -> None:
    said = list[str]()
    data = Mlm().prepare_data(Run(Settings(), "train", "masked-lm", say=said.append), encoder)
    assert "built-in sample is used" in said[0]
    assert (data.counts["documents"], len(data.eval)) == (60, 11)
    assert digest(data.train) != digest(data.eval)


@task_checks(Mlm())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
