"""The rows decide the labels, which are learned as transformers learns them and scored as scikit-learn scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Run
from ftcore.pipeline import predict_run
from ftcore.progress import Silent
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file
from ftcore_bert import Bert
from ftcore_classify import Classify
from ftcore_classify.scores import scored
from wordpieces import encoder, labelled

Row = dict[str, Any]
ONE: list[Row] = [
    {"text": "The cat sat by the door.", "label": "cat"},
    {"text": "A small dog ran over the hill.", "label": "dog"},
    {"text": "Lily said hello to the old man.", "label": "man"},
    {"sentence1": "The dog ran.", "sentence2": "It ran to find its ball.", "label": "dog"},
    {"text": "小猫在门口看雨。", "label": "cat"},
]
MANY: list[Row] = [
    {"text": "The cat sat by the door.", "labels": ["cat", "door"]},
    {"text": "The dog ran over the hill.", "labels": ["hill", "dog"]},
    {"text": "He smiled at her.", "labels": []},
    {"text": "The rain and the hill.", "labels": ["hill"]},
]
prepared = partial(labelled, Classify, "sequence-classification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that reads pieces of words and was published with another head."""
    return encoder(tmp_path_factory.mktemp("bert"), "bert", "masked-lm")


# --- labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "labels", "several"),
    [
        (ONE, ("cat", "dog", "man"), "no"),
        (MANY, ("cat", "dog", "door", "hill"), "yes"),
        ([{"text": "x", "label": n} for n in (10, 2, 0, True)], ("0", "2", "10", "true"), "no"),
        ([{"text": "x", "labels": ["b"]}, {"text": "y", "labels": ["a"]}], ("a", "b"), "no"),
    ],
)
def test_the_training_rows_decide_the_labels(
    rows: list[Row], labels: tuple[str, ...], several: str, tmp_path: Path
) -> None:
    run = Run(Settings(data=(str(rows_file(tmp_path / "rows.jsonl", rows)),)), "plan", "sequence-classification")
    assert Classify().fill_options(run) == {"labels": labels, "multi_label": several}
    told = Classify(labels=labels, multi_label=several).load_kwargs()  # type: ignore[arg-type]
    assert told is not None
    assert told["id2label"] == dict(enumerate(labels))
    assert told["problem_type"].startswith("multi" if several == "yes" else "single")


def test_given_labels_keep_their_order_and_name_the_numbers_of_the_rows(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "The cat sat.", "label": 1}, {"text": "The dog ran.", "label": 0}]
    own = {"labels": ("finance", "animals", "sport")}
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", rows), own)
    assert [row.labels for row in data.train] == [(1,), (0,)]
    assert loaded.model.config.id2label == {0: "finance", 1: "animals", 2: "sport"}  # type: ignore[union-attr]
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1: label is '3', which is none of finance, animals, sport"):
        prepared(folder, rows_file(tmp_path / "rows.jsonl", [{"text": "x y", "label": 3}]), own)


def test_a_label_that_no_training_row_has_is_refused_by_its_line(folder: Path, tmp_path: Path) -> None:
    held = rows_file(tmp_path / "held.jsonl", [ONE[0], {"text": "The rain.", "label": "rain"}])
    with pytest.raises(ftcore.Refused, match=r"held\.jsonl:2: label is 'rain', which is none of cat, dog, man"):
        prepared(folder, rows_file(tmp_path / "rows.jsonl", ONE), eval_data=(str(held),))


def test_several_labels_where_one_is_asked_for_are_refused_by_their_line(folder: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", MANY)
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1: label has 2 entries"):
        prepared(folder, file, {"multi_label": "no"})


def test_columns_of_a_table_are_read(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "titles.tsv"
    file.write_text("The cat sat\t1\nThe dog ran\t0\n", encoding="utf-8")
    _, data = prepared(folder, file, header_row=0)
    assert [(row.text, row.labels) for row in data.train] == [("The cat sat", (1,)), ("The dog ran", (0,))]


# --- tokens ----------------------------------------------------------------------------------------------


def test_a_row_reads_as_the_tokenizer_lays_out_its_texts(folder: Path, tmp_path: Path) -> None:
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", ONE))
    tokenizer: Any = loaded.tokenizer
    for row in data.train:
        wanted = tokenizer(*filter(None, (row.text, row.second)), return_token_type_ids=True)
        assert row.input_ids.tolist() == wanted["input_ids"]
        assert row.segments.tolist() == wanted["token_type_ids"]


@pytest.mark.parametrize("length", [8, 9, 13, 20])
def test_long_texts_are_cut_as_transformers_cuts_them_and_counted(length: int, folder: Path, tmp_path: Path) -> None:
    short, long = "The cat sat.", "The dog ran over the hill to find its ball and the old man."
    pairs = [(long, ""), (short, long), (long, short), (long, long)]
    rows = [{"text": a, "label": 0} if not b else {"text1": a, "text2": b, "label": 0} for a, b in pairs]
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", rows), max_length=length)
    tokenizer: Any = loaded.tokenizer
    assert data.counts["rows_cut"] == sum(row.size == length for row in data.train)
    for row, (a, b) in zip(data.train, pairs, strict=True):
        wanted = tokenizer(*filter(None, (a, b)), truncation="longest_first", max_length=length)["input_ids"]
        assert row.input_ids.tolist() == wanted


# --- the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ONE, MANY], ids=["one", "many"])
def test_the_loss_is_transformers_own(rows: list[Row], folder: Path, tmp_path: Path) -> None:
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", rows))
    for batch in (data.collate(list(data.train)), data.collate([data.train[0]])):
        labels = batch.targets["labels"]
        with torch.no_grad():
            wanted = loaded.model(**batch.inputs, labels=labels.float() if labels.ndim == 2 else labels).loss
            assert float(data.loss(loaded.model, batch)) == pytest.approx(float(wanted) * batch.weight, rel=1e-5)


def test_a_batch_of_several_labels_without_targets_costs_nothing(folder: Path, tmp_path: Path) -> None:
    loaded, data = prepared(folder, rows_file(tmp_path / "rows.jsonl", MANY))
    made = data.collate(list(data.train))
    idle = ftcore.Batch(made.inputs, {"labels": made.targets["labels"].clone().fill_(-100)}, 0.0, 0)
    with torch.no_grad():
        assert float(data.loss(loaded.model, idle)) == 0


# --- answers and scores ----------------------------------------------------------------------------------


def test_figures_of_one_label_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    right = list("aabbbccddd")
    given = list("abbbcccaax")
    found = scored([{"label": r, "prediction": g} for r, g in zip(right, given, strict=True)])
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(right, given),
            "macro_f1": f1_score(right, given, average="macro", zero_division=0),
            "micro_f1": f1_score(right, given, average="micro", zero_division=0),
        }
    )


def test_figures_of_several_labels_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    right = [["a", "b"], ["b"], [], ["c", "a"], [], ["d"]]
    given = [["a"], ["b", "c"], [], ["a", "c"], ["b"], []]
    found = scored([{"labels": r, "prediction": g} for r, g in zip(right, given, strict=True)])
    table = MultiLabelBinarizer().fit(right + given)
    one, other = table.transform(right), table.transform(given)
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(one, other),
            "macro_f1": f1_score(one, other, average="macro", zero_division=0),
            "micro_f1": f1_score(one, other, average="micro", zero_division=0),
        }
    )
    assert scored([{"text": "x", "prediction": ["a"]}]) == {}


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("rows", [ONE, MANY], ids=["one", "many"])
def test_a_run_learns_is_evaluated_and_predicts(kind: str, rows: list[Row], tmp_path: Path) -> None:
    base, output = encoder(tmp_path / "base", kind, "masked-lm"), tmp_path / "run"
    file = rows_file(tmp_path / "rows.jsonl", rows)
    done = ftcore.run(
        method="lora", task="classify", model="bert", checkpoint=base, data=file, eval_data=file, steps=40, lr=1e-2,
        output=output,
    )  # fmt: skip
    assert done.metrics["loss"] < done.before["loss"]
    bare = [{name: value for name, value in row.items() if not name.startswith("label")} for row in rows]
    asked = rows_file(tmp_path / "bare.jsonl", bare)
    assert predict_run(output, [str(asked)], tmp_path / "answers.jsonl", Silent()) == len(rows)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [row.get("label", sorted(row.get("labels", []))) for row in rows]
    hits = sum(line["prediction"] == one for line, one in zip(lines, right, strict=True))
    assert hits / len(rows) == pytest.approx(done.metrics["accuracy"])


def test_the_built_in_sample_is_sound(folder: Path) -> None:
    run = Run(Settings(checkpoint=str(folder)), "train", "sequence-classification")
    filled = Classify().fill_options(run)
    assert filled == {"labels": ("animals", "food", "travel", "weather"), "multi_label": "no"}
    data = Classify(**filled).prepare_data(run, Bert().load_model(run, Classify(**filled).load_kwargs() or {}))
    assert (len(data.train), len(data.eval)) == (200, 40)
    assert data.counts["held_out_rows_trained_on"] == data.counts["duplicates"] == 0


@task_checks(Classify())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
