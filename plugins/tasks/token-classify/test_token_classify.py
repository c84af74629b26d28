"""Every word's label stands at its first token, in one row only, and entities are found and scored as seqeval does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.batches import IGNORED
from ftcore.hooks import Run
from ftcore.pipeline import predict_run
from ftcore.progress import Silent
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file, tiny_checkpoint
from ftcore_bert import Bert
from ftcore_token_classify import TokenClassify
from ftcore_token_classify.entities import completed, entities
from ftcore_token_classify.scores import scored
from wordpieces import encoder, labelled

Row = dict[str, Any]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
ROWS: list[Row] = [
    {"tokens": ["Lily", "Green", "sat", "by", "the", "old", "door", "."], "tags": ["B-PER", "I-PER", *"OOOOOO"]},
    {"tokens": ["The", "dog", "ran", "to", "London"], "tags": ["O", "O", "O", "O", "B-LOC"]},
    {"tokens": [*"小猫在门口看雨"], "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "O"]},
]
MARKED: Row = {
    "text": "Lily said hello to  the old man, 小猫在门口。",
    "entities": [{"start": 0, "end": 4, "label": "PER"}, {"start": 36, "end": 38, "label": "LOC"}],
}
LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
prepared = partial(labelled, TokenClassify, "token-classification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that reads pieces of words and was published with another head."""
    return encoder(tmp_path_factory.mktemp("bert"), "bert", "masked-lm")


# --- words and tokens ------------------------------------------------------------------------------------


def test_a_label_stands_at_the_first_token_of_its_word_as_transformers_numbers_words(
    folder: Path, tmp_path: Path
) -> None:
    for everywhere in (False, True):
        loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", ROWS), {"label_all_subwords": everywhere})
        tokenizer: Any = loaded.tokenizer
        for row, given in zip(data.train, ROWS, strict=True):
            read = tokenizer(given["tokens"], is_split_into_words=True)
            wanted, before = [], None
            for word in read.word_ids():
                first = word is not None and (everywhere or word != before)
                wanted.append(LABELS.index(given["tags"][word]) if first else IGNORED)
                before = word
            assert row.input_ids.tolist() == read["input_ids"]
            assert row.labels.tolist() == wanted


def test_words_for_a_tokenizer_of_bytes_are_read_as_in_running_text(tmp_path: Path) -> None:
    base = tiny_checkpoint("roberta", "token-classification", max_position_embeddings=512, type_vocab_size=1)
    loaded, data = prepared(base, rows_file(tmp_path / "rows.jsonl", [*ROWS, MARKED]))
    tokenizer: Any = loaded.tokenizer
    for row in data.train:
        assert tokenizer.decode(row.input_ids.tolist()).split() == row.text.split()
        assert row.supervised == len(row.words)
    assert data.train[1].text == "The dog ran to London"
    assert data.train[2].text == "小猫在门口看雨"


@pytest.mark.parametrize("length", [6, 9, 16, 200])
@pytest.mark.parametrize("stride", [0, 4, 32])
def test_each_word_of_a_long_sentence_is_learned_once_and_in_order(
    length: int, stride: int, folder: Path, tmp_path: Path
) -> None:
    words = ["Lily", "sat", "by", "the", "door", "and", "looked", "."] * 9
    tags = ["B-PER", "O", "O", "O", "B-LOC", "O", "O", "O"] * 9
    file = rows_file(tmp_path / "rows.jsonl", [{"tokens": words, "tags": tags}, ROWS[1]])
    loaded, data = prepared(folder, file, {"stride": stride}, max_length=length, eval_data=(str(file),))
    rows = [row for row in data.train if row.place.endswith(":1")]
    assert [place for row in rows for place in row.places.tolist() if place >= 0] == list(range(len(words)))
    assert data.counts["supervised_tokens"] == len(words) + len(ROWS[1]["tokens"])
    assert data.counts["sentences"] == 2
    assert max(row.size for row in rows) <= length
    names = list(loaded.model.config.id2label.values())  # type: ignore[union-attr]
    answers = [
        [[place, number] for place, number in zip(row.places.tolist(), row.labels.tolist(), strict=True) if place >= 0]
        for row in data.eval
    ]
    assert data.scoring is not None
    lines = data.scoring.lines(list(data.eval), answers)
    assert [line["predicted_tags"] for line in lines] == [tags, ROWS[1]["tags"]]
    assert names == [*LABELS]
    assert set(data.scoring.score(lines).values()) == {1.0}


def test_marked_texts_come_back_as_the_pieces_that_are_marked(folder: Path, tmp_path: Path) -> None:
    _, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", [MARKED, *ROWS]), eval_share=0.0)
    row = data.train[0]
    assert row.text == MARKED["text"]
    assert data.scoring is not None
    (line,) = data.scoring.lines([row], [[[place, number] for place, number in enumerate(row.right)]])
    found = [{name: one[name] for name in ("start", "end", "label")} for one in line["prediction"]]
    assert found == MARKED["entities"]
    assert [one["text"] for one in line["prediction"]] == ["Lily", "门口"]
    assert line["entities"] == line["prediction"]


def test_numbers_are_named_by_the_labels_that_are_given(folder: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [{"tokens": ["Lily", "ran"], "ner_tags": [1, 0]}])
    _, data = prepared(folder, file, {"labels": ("O", "B-PER", "I-PER")})
    assert data.train[0].right == (1, 0)


def test_a_label_that_no_training_row_has_is_refused_by_its_line(folder: Path, tmp_path: Path) -> None:
    held = rows_file(tmp_path / "held.jsonl", [ROWS[0], {"tokens": ["x"], "tags": ["B-ORG"]}])
    with pytest.raises(ftcore.Refused, match=r"held\.jsonl:2: tags is 'B-ORG', which is none of B-LOC, B-PER"):
        prepared(folder, rows_file(tmp_path / "rows.jsonl", ROWS), eval_data=(str(held),))


def test_labels_that_their_scheme_lacks_are_there_for_held_out_rows() -> None:
    assert completed(["O", "B-PER"]) == ("B-PER", "I-PER", "O")
    assert completed(["O", "S-PER", "I-PER"]) == ("E-PER", "I-PER", "O", "S-PER")
    assert completed(["O", "I-PER"]) == ("I-PER", "O")
    assert completed(["NOUN", "VERB"]) == ("NOUN", "VERB")


# --- the loss --------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own(folder: Path, tmp_path: Path) -> None:
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", ROWS))
    batch = data.collate(list(data.train))
    with torch.no_grad():
        wanted = loaded.model(**batch.inputs, labels=batch.targets["labels"]).loss
        assert float(data.loss(loaded.model, batch)) == pytest.approx(float(wanted) * batch.weight, rel=1e-5)
    assert batch.weight == sum(len(row["tokens"]) for row in ROWS)


# --- entities --------------------------------------------------------------------------------------------

# What seqeval's get_entities makes of them, its last word turned into the one after it.
FOUND = [
    (["B-PER", "I-PER", "O", "B-LOC"], [("PER", 0, 2), ("LOC", 3, 4)]),
    (["B-PER", "B-PER", "I-LOC"], [("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)]),
    (["I-PER", "I-PER", "O", "I-PER"], [("PER", 0, 2), ("PER", 3, 4)]),
    (["B-PER", "I-PER", "E-PER", "S-PER", "E-PER"], [("PER", 0, 3), ("PER", 3, 4), ("PER", 4, 5)]),
    (["E-PER", "I-PER", "S-LOC", "I-LOC"], [("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3), ("LOC", 3, 4)]),
    (["B-creative-work", "I-creative-work"], [("creative-work", 0, 2)]),
    (["PER", "PER", "O", "LOC"], [("PER", 0, 2), ("LOC", 3, 4)]),
    (["O", "O"], []),
]


@pytest.mark.parametrize(("labels", "wanted"), FOUND)
def test_entities_are_those_that_seqeval_finds(labels: list[str], wanted: list[tuple[str, int, int]]) -> None:
    assert entities(labels) == wanted


def test_figures_of_entities_are_seqevals_published_example() -> None:
    lines = [
        {"tags": ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"],
         "predicted_tags": ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"]},
        {"tags": ["B-PER", "I-PER", "O"], "predicted_tags": ["B-PER", "I-PER", "O"]},
        {"predicted_tags": ["B-PER"]},
    ]  # fmt: skip
    assert scored(lines) == {"accuracy": 0.8, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert scored(lines[2:]) == {}
    assert scored([{"tags": ["NOUN", "VERB"], "predicted_tags": ["NOUN", "NOUN"]}]) == {"accuracy": 0.5}


def test_figures_of_entities_are_seqevals() -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    drawn = random.Random(1)
    choices = ["O", "O", *(f"{letter}-{name}" for letter in "BIES" for name in ("PER", "LOC"))]
    both = [[[drawn.choice(choices) for _ in range(9)] for _ in range(80)] for _ in range(2)]
    lines = [{"tags": one, "predicted_tags": other} for one, other in zip(*both, strict=True)]
    figures = {"accuracy": accuracy_score, "precision": precision_score, "recall": recall_score, "f1": f1_score}
    assert scored(lines) == pytest.approx({name: figure(*both) for name, figure in figures.items()})


# --- runs and real files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_run_learns_is_evaluated_and_predicts(kind: str, tmp_path: Path) -> None:
    base, output = encoder(tmp_path / "base", kind, "masked-lm"), tmp_path / "run"
    file = rows_file(tmp_path / "rows.jsonl", [*ROWS, MARKED])
    done = ftcore.run(
        method="lora", task="token-classify", model="bert", checkpoint=base, data=file, eval_data=file, steps=40,
        lr=1e-2, output=output,
    )  # fmt: skip
    assert done.metrics["loss"] < done.before["loss"]
    assert done.metrics["accuracy"] > done.before["accuracy"]
    bare = [{key: value for key, value in row.items() if key in ("tokens", "text")} for row in (*ROWS, MARKED)]
    asked = rows_file(tmp_path / "bare.jsonl", bare)
    assert predict_run(output, [str(asked)], tmp_path / "answers.jsonl", Silent()) == len(bare)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["words"] for line in lines[:3]] == [row["tokens"] for row in ROWS]
    assert all(line["text"][one["start"] : one["end"]] == one["text"] for line in lines for one in line["prediction"])
    assert "entities" not in lines[0]


def test_the_built_in_sample_is_sound(folder: Path) -> None:
    run = Run(Settings(checkpoint=str(folder)), "train", "token-classification")
    filled = TokenClassify().fill_options(run)
    assert filled == {"labels": LABELS}
    task = TokenClassify(**filled)
    data = task.prepare_data(run, Bert().load_model(run, task.load_kwargs() or {}))
    assert (len(data.train), len(data.eval)) == (200, 40)
    assert data.counts["held_out_rows_trained_on"] == data.counts["duplicates"] == 0


def test_files_of_conll_are_read_whole(folder: Path) -> None:
    for name, sentences in (("weibo_ner/weiboNER_2nd_conll.dev", 270), ("wnut17_ner/emerging.dev.conll", 1009)):
        if (SHARED / name).exists():
            _, data = prepared(folder, SHARED / name, max_length=32, cache="off", on_bad_row="skip")
            assert data.counts["sentences"] + data.counts["rows_left_out"] == sentences


@task_checks(TokenClassify())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
