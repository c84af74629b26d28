"""A score is read at the end of each answer, pairs cost what Bradley and Terry say, and the head goes with the run."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ftcore
import pytest
import torch
from ftcore import chat, pipeline
from ftcore.hooks import Data, Intent, Loaded, Run
from ftcore.progress import Silent
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file, tiny_tokenizer
from ftcore_qwen import Qwen
from ftcore_reward import Reward, figures, lines
from ftcore_reward.answers import Answers
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PAIRS = [
    {"prompt": f"Where is the {thing}?", "chosen": f"The {thing} is {place}.", "rejected": rude, "margin": margin}
    for thing, place, rude, margin in (
        ("cat", "by the door", "No.", 1),
        ("dog", "on the hill", "I do not know, and the rain is wet.", 0.5),
        ("ball", "under the bed, look", "Away.", 0),
        ("小猫", "在门口看雨", "不知道。", 2.5),
        ("old man", "at home", "The man, the man, the old man.", 0),
        ("rain", "over the hill now", "Out.", 0),
    )
]


@pytest.fixture
def base(checkpoint: Callable[..., Path]) -> Loaded:
    """A decoder with a head of one number."""
    run = Run(Settings(checkpoint=str(checkpoint("qwen2"))), "train", Reward.head)
    return Qwen().load_model(run, Reward().load_kwargs())


def prepared(loaded: Loaded, file: Path, task: Reward, intent: Intent = "train", **keys: Any) -> Data:
    """The task's rows for a run on a file."""
    return task.prepare_data(Run(Settings(data=(str(file),), **keys), intent, Reward.head), loaded)


def alone(model: Any, rows: Sequence[Answers]) -> list[list[float]]:
    """The score of each answer, read by hand: the head at its last token, with nothing after it."""
    found = []
    for row in rows:
        found.append([])
        for ids, _ in row.documents:
            with torch.no_grad():
                last = model.model(input_ids=torch.from_numpy(ids.astype("int64"))[None]).last_hidden_state[0, -1]
                found[-1].append(float(model.score(last)))
    return found


def test_a_pair_costs_what_the_scores_at_the_last_tokens_say(base: Loaded, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", PAIRS)
    for task in (Reward(), Reward(margin="margin"), Reward(center=0.2)):
        data = prepared(base, file, task)
        read: Sequence[Any] = list(data.train)
        margins = [row["margin"] if task.margin else 0 for row in PAIRS]
        wanted = sum(
            math.log(1 + math.exp(-(better - worse - margin))) + task.center * (better + worse) ** 2
            for (better, worse), margin in zip(alone(base.model, read), margins, strict=True)
        )
        batch = data.collate(read)
        with torch.no_grad():
            assert float(data.loss(base.model, batch)) == pytest.approx(wanted, rel=1e-5)
            one_by_one = sum(float(data.loss(base.model, data.collate([row]))) for row in read)
        assert one_by_one == pytest.approx(wanted, rel=1e-5)
        assert batch.weight == len(PAIRS)


def test_trl_says_the_same_of_a_batch(base: Loaded, tmp_path: Path) -> None:
    from trl import RewardTrainer

    data = prepared(base, rows_file(tmp_path / "rows.jsonl", PAIRS), Reward(margin="margin", center=0.1))
    batch = data.collate(list(data.train))
    # TRL has the better answers first, then the worse ones.
    inputs = {name: torch.cat([tensor[0::2], tensor[1::2]]) for name, tensor in batch.inputs.items()}
    own = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.1),
        accelerator=SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )

    def model(margin: torch.Tensor, **given: Any) -> Any:
        return base.model(**given)

    with torch.no_grad():
        wanted = RewardTrainer.compute_loss(own, model, {**inputs, "margin": batch.targets["margin"]})
        found = data.loss(base.model, batch) / batch.weight
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_rows_that_cannot_be_compared_are_refused_by_line(base: Loaded, tmp_path: Path) -> None:
    long = "The rain. " * 40
    rows = [
        PAIRS[0],
        {**PAIRS[0], "rejected": PAIRS[0]["chosen"]},
        {**PAIRS[0], "chosen": f"{long} Yes.", "rejected": f"{long} No."},
        {**PAIRS[0], "prompt": long},
        {"prompt": "Hi", "completion": "Hello!"},
        {**PAIRS[0], "margin": -1},
        {**PAIRS[0], "margin": "much"},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go."},
    ]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ftcore.Refused) as refused:
        prepared(base, file, Reward(margin="margin"), max_length=100)
    for told in (
        ":2: rejected is the same as chosen", ":3: rejected is the same as chosen as far as it is read",
        ":4: row has", ":5: row has the keys", ":6: margin is", ":7: margin is", ":8: margin is",
    ):  # fmt: skip
        assert f"{file}{told}" in str(refused.value)


def test_a_tokenizer_that_knows_pairs_of_texts_reads_question_and_answer_as_one(base: Loaded, tmp_path: Path) -> None:
    tokenizer: Any = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template, tokenizer.sep_token = None, "<|im_end|>"
    tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    marks = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    both = "<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A <|im_end|>", both, marks)
    loaded = replace(base, tokenizer=tokenizer)
    row = {"prompt": "Hi", "chosen": "Hello! " * 20, "rejected": "Go."}
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]), Reward(), max_length=30)
    read: Any = data.train[0]
    (better, first), (worse, second) = read.documents
    assert tokenizer.decode(worse.tolist()) == "<|im_start|>Hi<|im_end|>Go.<|im_end|>"
    assert tokenizer.decode(worse[second == 1].tolist()) == "Go.<|im_end|>"
    assert len(better) == 30
    assert better[-1] == tokenizer.sep_token_id
    assert data.counts["rows_cut"] == 1
    assert data.collate([read]).inputs["token_type_ids"].tolist() == [
        first.tolist(),
        second.tolist() + [0] * (30 - len(second)),
    ]
    with pytest.raises(ftcore.Refused, match=r"its first 30 hold no answer"):
        prepared(loaded, rows_file(tmp_path / "rows.jsonl", [{**row, "prompt": "Hi " * 40}]), Reward(), max_length=30)
    with pytest.raises(ftcore.Refused, match=r"holds the special token '<\|im_end\|>' as text"):
        prepared(loaded, rows_file(tmp_path / "rows.jsonl", [{**row, "prompt": "<|im_end|>"}]), Reward())


def run(checkpoint: Callable[..., Path], folder: Path, **keys: Any) -> Any:
    """A short run on the pairs, which are held out too."""
    file = str(rows_file(folder / "rows.jsonl", PAIRS))
    given: dict[str, Any] = {"steps": 6, "lr": 2e-2, "batch_size": 3, "warmup_steps": 0, "save_every": 2, **keys}
    given |= {"data": file, "eval_data": file, "checkpoint": checkpoint("qwen2"), "model": "qwen", "task": "reward"}
    return ftcore.run(method="lora", output=folder / "run", **given)


def test_a_run_learns_resumes_merges_and_scores_single_answers(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    done = run(checkpoint, tmp_path)
    assert done.metrics["accuracy"] == 1.0 > done.before["accuracy"]
    assert done.metrics["margin"] > 0.5
    output = tmp_path / "run"
    whole = load_file(output / "adapter_model.safetensors")
    assert any(name.endswith("score.weight") for name in whole)
    for file in output.iterdir():
        if file.is_file() and file.name not in ("ftcore.json", "metrics.jsonl"):
            file.unlink()
    shutil.rmtree(max((output / "checkpoints").glob("step-*")))
    assert run(checkpoint, tmp_path).metrics == done.metrics
    again = load_file(output / "adapter_model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())
    _scores_agree(output, tmp_path)


def _scores_agree(output: Path, folder: Path) -> None:
    """What the run predicts is what plain transformers makes of the merged model."""
    (folder / "more").mkdir()
    file = rows_file(folder / "more" / "rows.jsonl", [PAIRS[0], {"prompt": "Hi", "completion": "Hello!"}])
    assert pipeline.predict_run(output, [str(file)], folder / "out.jsonl", Silent()) == 2
    pair, one = (json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines())
    assert pair["prediction"] == "chosen"
    assert one.keys() == {"answer", "prediction"}
    with pytest.raises(ftcore.Refused, match="answers with numbers and says no texts; ask it with 'ftcore predict'"):
        chat.opened(str(output), None)
    merged = ftcore.merge(output, output=folder / "merged")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    ids = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        assert float(model(ids).logits) == pytest.approx(one["prediction"], abs=1e-4)


def test_the_built_in_sample_is_announced_and_ties_count_half(base: Loaded) -> None:
    told: list[str] = []
    data = Reward().prepare_data(Run(Settings(), "train", Reward.head, say=told.append), base)
    assert (len(data.train), len(data.eval)) == (160, 32)
    assert any("built-in sample is used; pass --data" in line for line in told)
    assert [piece.learned for piece in data.sample if piece.learned] == ["better", "worse"]  # type: ignore[union-attr]
    rows: list[Any] = list(data.eval[:3])
    found = lines(rows, [[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]])
    assert [line["prediction"] for line in found] == ["chosen", "neither", "rejected"]
    assert figures(found) == {
        "accuracy": 0.5, "margin": pytest.approx(-2 / 3), "score_chosen": 1.0, "score_rejected": pytest.approx(5 / 3),
    }  # fmt: skip
    assert figures(found[:0]) == {}


@task_checks(Reward())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
