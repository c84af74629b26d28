"""Each loss is its paper's formula and TRL's, on exactly the answers' tokens, against the base without its adapter."""

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
from typing import Any, get_args

import ftcore
import pytest
import torch
from ftcore import pipeline
from ftcore.batches import IGNORED
from ftcore.hooks import Data, Intent, Loaded, Run
from ftcore.progress import Silent
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore.testing.stage import rows_file
from ftcore_lora import LoRA
from ftcore_preference import Preference
from ftcore_preference.answers import BETTER, STRANGE, WORSE, Answers, said
from ftcore_preference.figures import figures, lines
from ftcore_preference.losses import Kind, Objective, Said
from safetensors.torch import load_file

KINDS: tuple[Kind, ...] = get_args(Kind)
PAIRS = [
    {"prompt": f"Where is the {thing}?", "chosen": f"The {thing} is {place}.", "rejected": rude}
    for thing, place, rude in (
        ("cat", "by the door", "No."),
        ("dog", "on the hill", "I do not know, and the rain is wet."),
        ("ball", "under the bed, look", "Away."),
        ("小猫", "在门口看雨", "不知道。"),
        ("old man", "at home", "The man, the man, the old man."),
        ("rain", "over the hill now", "Out."),
    )
]
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Where is the cat?"},
]
# Of six made-up answers: log-probability of all tokens, tokens, the reference's log-probability.
BETTERS = [(-4.0, 4, -5.0), (-9.5, 3, -9.0), (-2.0, 8, -7.5)]
WORSES = [(-6.0, 5, -4.0), (-3.0, 2, -3.5), (-12.0, 6, -12.0)]
STRANGES = [(-3.0, 4, -5.0), (-6.0, 3, -5.5), (-8.0, 6, -9.0)]


def prepared(loaded: Loaded, file: Path, task: Preference, intent: Intent = "train", **keys: Any) -> Data:
    """The task's rows for a run on a file."""
    settings = Settings(data=(str(file),), **keys)
    return task.prepare_data(Run(settings, intent, "causal-lm"), loaded)


def made_up(answers: Sequence[tuple[float, int, float]]) -> Said:
    """The answers as tensors."""
    total, tokens, reference = (torch.tensor(column, dtype=torch.float64) for column in zip(*answers, strict=True))
    return Said(total, tokens, reference)


def unlike(loaded: Loaded) -> Any:
    """A model that is not the reference: the same with weights that are a little other ones."""
    model = copy.deepcopy(loaded.model)
    with seeded(7, "unlike"), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def minus_log_sigmoid(x: float) -> float:
    """As it is written in the papers."""
    return math.log(1 + math.exp(-x))


# --- formulas --------------------------------------------------------------------------------------------


def dpo(better: tuple[float, int, float], worse: tuple[float, int, float], beta: float = 0.1) -> float:
    """Equation 7 of Rafailov et al. 2023 for one pair."""
    return minus_log_sigmoid(beta * (better[0] - better[2]) - beta * (worse[0] - worse[2]))


def ipo(better: tuple[float, int, float], worse: tuple[float, int, float], beta: float = 0.1) -> float:
    """Equation 17 of Azar et al. 2023, by token."""
    gap = (better[0] - better[2]) / better[1] - (worse[0] - worse[2]) / worse[1]
    return (gap - 1 / (2 * beta)) ** 2


def simpo(better: tuple[float, int, float], worse: tuple[float, int, float], beta: float = 2.0) -> float:
    """Equation 6 of Meng et al. 2024 with a margin of 1."""
    return minus_log_sigmoid(beta * better[0] / better[1] - beta * worse[0] / worse[1] - 1.0)


def orpo(better: tuple[float, int, float], worse: tuple[float, int, float], beta: float = 0.1) -> float:
    """Equation 6 of Hong et al. 2024."""
    odds = [p / (1 - p) for p in (math.exp(one[0] / one[1]) for one in (better, worse))]
    return -better[0] / better[1] + beta * minus_log_sigmoid(math.log(odds[0] / odds[1]))


@pytest.mark.parametrize("formula", [dpo, ipo, simpo, orpo])
def test_a_pair_costs_what_the_paper_says(formula: Callable[..., float]) -> None:
    objective = Preference(loss=formula.__name__).objective
    found = objective.of_pairs(made_up(BETTERS), made_up(WORSES)).tolist()
    assert found == pytest.approx([formula(*pair) for pair in zip(BETTERS, WORSES, strict=True)])
    other = Preference(loss=formula.__name__, beta=0.7).objective.of_pairs(made_up(BETTERS), made_up(WORSES)).tolist()
    assert other == pytest.approx([formula(*pair, 0.7) for pair in zip(BETTERS, WORSES, strict=True)])


def test_kto_sees_each_answer_from_where_strange_answers_are() -> None:
    """Equation 8 of Ethayarajh et al. 2024, with other weights for good and for bad answers."""
    objective = Preference(loss="kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.7).objective
    common = max(0.0, sum(0.5 * (one[0] - one[2]) for one in STRANGES) / len(STRANGES))
    assert common > 0
    wanted = [1.5 * (1 - 1 / (1 + math.exp(-(0.5 * (a - b) - common)))) for a, _, b in BETTERS]
    wanted += [0.7 * (1 - 1 / (1 + math.exp(-(common - 0.5 * (a - b))))) for a, _, b in WORSES]
    found = objective.of_judged(made_up(BETTERS), made_up(WORSES), made_up(STRANGES))
    assert found.tolist() == pytest.approx(wanted)
    below = made_up([(total - 9, tokens, reference) for total, tokens, reference in STRANGES])
    assert torch.equal(
        objective.of_judged(made_up(BETTERS), made_up(WORSES), below),
        objective.of_judged(made_up(BETTERS), made_up(WORSES), made_up(STRANGES[:1])[:0]),
    )


def test_smoothing_and_the_weight_of_the_better_answer_are_terms_of_the_loss() -> None:
    pairs = made_up(BETTERS), made_up(WORSES)
    turned = [minus_log_sigmoid(-0.1 * ((a[0] - a[2]) - (b[0] - b[2]))) for a, b in zip(BETTERS, WORSES, strict=True)]
    found = Preference(label_smoothing=0.2).objective.of_pairs(*pairs).tolist()
    plain = [dpo(*pair) for pair in zip(BETTERS, WORSES, strict=True)]
    assert found == pytest.approx([0.8 * one + 0.2 * other for one, other in zip(plain, turned, strict=True)])
    weighed = Preference(sft_weight=0.5).objective.of_pairs(*pairs).tolist()
    assert weighed == pytest.approx([one - 0.5 * a[0] / a[1] for one, a in zip(plain, BETTERS, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_certain_costs_a_finite_number_with_a_finite_slope(kind: Kind) -> None:
    sure = torch.zeros(2, requires_grad=True)
    answers = Said(sure, torch.ones(2), torch.zeros(2))
    objective = Objective(kind, 0.1)
    pair = answers[:1], answers[1:]
    cost = objective.of_judged(*pair, answers[:0]) if kind == "kto" else objective.of_pairs(*pair)
    cost.sum().backward()
    assert torch.isfinite(cost).all()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


# --- against TRL -----------------------------------------------------------------------------------------


def trainer(**own: Any) -> Any:
    """What TRL's losses look at of their trainer."""
    alone = {"gather": lambda value: value, "gather_for_metrics": lambda value: value}
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), **alone),
        aux_loss_enabled=False, precompute_ref_logps=True, use_weighting=False, ld_alpha=None, label_smoothing=0.0,
        f_divergence_type="reverse_kl", loss_weights=[1.0], _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, model=SimpleNamespace(training=True), **own,
    )  # fmt: skip


class Fused:
    """A model that answers TRL with what its fused head would: the log-probabilities of the labels."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, True

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **rest: Any) -> Any:
        """Zeros stand for what only its log shows."""
        with torch.no_grad():
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].float()
        taught = labels[:, 1:]
        chances = logits.log_softmax(-1).gather(-1, taught.clamp(min=0)[..., None])[..., 0] * (taught != IGNORED)
        zeros = torch.zeros_like(chances)
        return SimpleNamespace(log_probs=chances, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def padded(documents: Sequence[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """Documents as TRL batches them."""
    width = max(len(ids) for ids, _ in documents)
    ids, mask, completion = (torch.zeros(len(documents), width, dtype=torch.long) for _ in range(3))
    for at, (tokens, labels) in enumerate(documents):
        ids[at, : len(tokens)] = torch.from_numpy(tokens.astype("int64"))
        mask[at, : len(tokens)] = 1
        completion[at, : len(tokens)] = torch.from_numpy((labels != IGNORED).astype("int64"))
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}


@pytest.fixture
def tried(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[[Preference], tuple[Any, Data, Any]]:
    """A model, rows of pairs prepared on its base, and another model to compare with that base."""

    def prepare(task: Preference, **keys: Any) -> tuple[Any, Data, Any]:
        loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
        return loaded, prepared(loaded, rows_file(tmp_path / "rows.jsonl", PAIRS), task, **keys), unlike(loaded)

    return prepare


@pytest.mark.parametrize(("kind", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_trl_says_the_same_of_a_batch(kind: Kind, theirs: str, tried: Callable[..., Any]) -> None:
    from trl import DPOTrainer

    _, data, model = tried(Preference(loss=kind, beta=0.3))
    rows: list[Answers] = list(data.train)
    documents = [next(iter(row.documents)) for row in rows] + [list(row.documents)[1] for row in rows]
    batch = padded(documents)
    for name, side in (("chosen", 0), ("rejected", 1)):
        batch[f"ref_{name}_logps"] = torch.tensor([row.reference[side] for row in rows])
    wanted = DPOTrainer._compute_loss(trainer(loss_types=[theirs], beta=0.3), Fused(model), batch, False)
    with torch.no_grad():
        found = data.loss(model, data.collate(rows)) / len(rows)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_trl_says_the_same_of_the_losses_without_reference(tried: Callable[..., Any]) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    _, data, model = tried(Preference(loss="simpo"))
    batch = data.collate(list(data.train))
    with torch.no_grad():
        answers = said(model, batch)
    better, worse = (answers.mean[batch.targets["worth"] == side] for side in (BETTER, WORSE))
    own = trainer(beta=2.0, alpha=0.0, loss_type="simpo", simpo_gamma=1.0)
    wanted, *_ = CPOTrainer.cpo_loss(own, better, worse)
    with torch.no_grad():
        assert float(data.loss(model, batch)) == pytest.approx(float(wanted.sum()), rel=1e-5)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.1), better, worse)
    objective = Preference(loss="orpo").objective
    found = objective.of_pairs(answers[batch.targets["worth"] == BETTER], answers[batch.targets["worth"] == WORSE])
    assert torch.allclose(found, -better - ratio, rtol=1e-5)


def test_trl_says_the_same_of_kto(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from trl import KTOTrainer

    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    model: Any = loaded.model  # which says every answer likelier than the reference, so that the common reward counts
    task = Preference(loss="kto", beta=0.3, undesirable_weight=0.8)
    data = prepared(replace(loaded, model=unlike(loaded)), rows_file(tmp_path / "rows.jsonl", PAIRS), task)
    rows: list[Answers] = list(data.train)
    own, strange = zip(*(list(row.documents) for row in rows), strict=True)
    batch: dict[str, Any] = padded(own) | {f"KL_{name}": tensor for name, tensor in padded(strange).items()}
    batch["label"] = torch.tensor([row.worth[0] == BETTER for row in rows])
    batch["ref_logps"], batch["ref_KL_logps"] = (torch.tensor([row.reference[at] for row in rows]) for at in (0, 1))
    fake = trainer(loss_type="kto", beta=0.3, desirable_weight=1.0, undesirable_weight=0.8, calculate_KL=True)
    fake._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(fake, model, batch)
    wanted = KTOTrainer._compute_loss(fake, Fused(model), batch, False)
    assert fake._metrics["train"]["kl"][0] > 0
    with torch.no_grad():
        found = data.loss(model, data.collate(rows)) / len(rows)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


# --- rows ------------------------------------------------------------------------------------------------


def test_exactly_the_last_answer_and_its_stop_token_are_scored(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    row = {"messages": TURNS, "chosen": {"role": "assistant", "content": "By the door.\n"}, "rejected": "No. 不"}
    row["rejected"] = {"role": "assistant", "content": row["rejected"]}
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", [row]), Preference())
    read: Answers = data.train[0]
    for (ids, labels), answer in zip(read.documents, ("By the door.", "No. 不"), strict=True):
        taught = ids[labels != IGNORED]
        assert loaded.tokenizer.decode(taught.tolist()).replace("\n", "") == f"{answer}<|im_end|>"
        assert (labels[labels != IGNORED] == taught).all()
        prompt = loaded.tokenizer.decode(ids[labels == IGNORED].tolist())
        assert prompt.count("assistant") == 2
        assert "Hello!" in prompt
    assert read.lengths[0] + read.lengths[1] == read.size == data.counts["tokens"]
    assert data.counts["answers"] == 2


def test_transcripts_ranked_answers_and_judged_answers_are_read(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    rows = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        {"instruction": "Add.", "input": "1 + 1", "output": ["It is 2.", "Maybe 2.", "No."]},
    ]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", rows), Preference())
    assert [row.texts for row in data.train] == [("Hello!", "Go."), ("It is 2.", "No.")]
    judged = [{"messages": [*TURNS, {"role": "assistant", "content": "Here."}], "label": True}]
    judged += [{"prompt": "Hi", "completion": "Go.", "label": False}, PAIRS[0]]
    data = prepared(loaded, rows_file(tmp_path / "rows.jsonl", judged), Preference(loss="kto"))
    assert [(row.texts[0], row.worth[0]) for row in data.train] == [
        ("Here.", BETTER), ("Go.", WORSE), ("The cat is by the door.", BETTER), ("No.", WORSE),
    ]  # fmt: skip
    assert data.collate(list(data.train)).weight == 4


def test_pairs_that_cannot_be_compared_are_refused_by_line(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    long = "The rain. " * 40
    rows = [
        PAIRS[0],
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Hello!"},
        {"prompt": "Hi", "chosen": f"{long} Yes.", "rejected": f"{long} No."},
        {"prompt": long, "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Hi", "chosen": "Hello!"},
        {"prompt": "Hi", "completion": "Hello!", "label": True},
    ]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ftcore.Refused) as refused:
        prepared(loaded, file, Preference(), max_length=100)
    for told in (
        ":2: rejected is the same as chosen",
        ":3: rejected is the same as chosen in the first 100 tokens",
        ":4: row has",
        ":5: rejected is missing",
        ":6: row has the keys",
    ):
        assert f"{file}{told}" in str(refused.value)
    assert len(prepared(loaded, file, Preference(), max_length=100, on_bad_row="skip").train) == 1


def test_a_strange_answer_is_another_rows_answer_to_the_same_prompt(tried: Callable[..., Any]) -> None:
    loaded, data, _ = tried(Preference(loss="kto"))
    strangers = []
    for row in data.train:
        assert row.worth[1:] == (STRANGE,)
        (ids, labels), (others, taught) = row.documents
        begin = int((labels != IGNORED).argmax())
        assert (others[:begin] == ids[:begin]).all()
        assert (taught[:begin] == IGNORED).all()
        strangers.append(loaded.tokenizer.decode(others[taught != IGNORED].tolist()))
    assert sorted(strangers) == sorted(f"{row.texts[0]}<|im_end|>" for row in data.train)
    assert all(row.texts[0] not in text for row, text in zip(data.train, strangers, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_answers_cost_what_padded_ones_do(kind: Kind, tried: Callable[..., Any]) -> None:
    _, data, model = tried(Preference(loss=kind))
    _, other, _ = tried(Preference(loss=kind), packing="off")
    packed, apart = data.collate(list(data.train)), other.collate(list(other.train))
    assert packed.inputs["input_ids"].shape[0] == 1 < apart.inputs["input_ids"].shape[0]
    assert packed.weight == apart.weight == len(data.train)
    with torch.no_grad():
        assert float(data.loss(model, packed)) == pytest.approx(float(other.loss(model, apart)), rel=1e-5)


# --- runs ------------------------------------------------------------------------------------------------


def run(task: Preference, checkpoint: Callable[..., Path], folder: Path, method: Any = "lora", **keys: Any) -> Any:
    """A short run on the pairs, which are held out too."""
    file = str(rows_file(folder / "rows.jsonl", PAIRS))
    given: dict[str, Any] = {"steps": 4, "lr": 1e-2, "batch_size": 3, "warmup_steps": 0, **keys}
    given |= {"data": file, "eval_data": file, "checkpoint": checkpoint("qwen2"), "model": "qwen", "task": task}
    return ftcore.run(method=method, output=folder / "run", **given)


def test_an_adapter_that_does_nothing_yet_costs_log_2(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    done = run(Preference(), checkpoint, tmp_path)
    assert done.before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert done.before["reward_accuracy"] == 0.5
    assert done.before["reward_margin"] == 0
    assert done.metrics["loss"] < 0.68
    assert done.metrics["reward_accuracy"] > 0.6


def test_the_reference_is_the_model_with_its_adapter_off(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    method, task = LoRA(), Preference()
    run(task, checkpoint, tmp_path, method)
    opened = pipeline.opened_base(tmp_path / "run", "infer", lambda line: None, {"method": method, "task": task})
    data = pipeline.prepare_data(opened[2], opened[3], opened[5])
    model: Any = pipeline.attached_to(*opened).injected.model
    rows: list[Answers] = list(data.eval)
    batch, reference = data.collate(rows), torch.tensor([one for row in rows for one in row.reference])
    with torch.no_grad():
        trained = said(model, batch).total
        with model.disable_adapter():
            without = said(model, batch).total
    assert torch.allclose(without, reference, atol=1e-4)
    assert (trained - reference).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    kind: Kind, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    done = run(Preference(loss=kind), checkpoint, tmp_path, save_every=2)
    assert math.isfinite(done.metrics["loss"])
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    for file in (tmp_path / "run").iterdir():
        if file.is_file() and file.name not in ("ftcore.json", "metrics.jsonl"):
            file.unlink()
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    again = run(Preference(loss=kind), checkpoint, tmp_path, save_every=2)
    assert again.metrics == done.metrics
    resumed = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_a_plan_computes_no_reference(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    planned = ftcore.plan(
        method="lora",
        task="preference",
        model="qwen",
        checkpoint=checkpoint("qwen2"),
        data=rows_file(tmp_path / "rows.jsonl", PAIRS),
    )
    assert planned.rows == len(PAIRS)
    assert not planned.refused


def test_a_finished_run_tells_the_reward_of_any_answer(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    run("preference", checkpoint, tmp_path)  # type: ignore[arg-type]
    folder = tmp_path / "more"
    folder.mkdir()
    asked = [PAIRS[0], {"prompt": "Hi", "completion": "Hello!"}, {"prompt": "Hi", "completion": "Go.", "label": False}]
    file = rows_file(folder / "rows.jsonl", asked)
    assert pipeline.predict_run(tmp_path / "run", [str(file)], folder / "out.jsonl", Silent()) == 3
    pair, one, judged = (json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines())
    assert pair["prediction"] == "chosen"
    assert pair["reward_chosen"] > pair["reward_rejected"]
    assert one.keys() == {"answer", "prediction"}
    assert judged["label"] is False


def test_ties_count_half_and_every_good_answer_meets_every_bad_one() -> None:
    def answers(worth: tuple[int, ...], texts: tuple[str, ...], halved: bool = False) -> Answers:
        blank = torch.zeros(0).numpy()
        return Answers(blank, blank, (0,), "rows:1", worth, texts, False, 0, halved)

    pairs = [answers((BETTER, WORSE), ("a", "b"))] * 3
    told = lines(pairs, [[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    assert [line["prediction"] for line in told] == ["chosen", "neither", "rejected"]
    found = figures(told)
    assert found["reward_accuracy"] == 0.5
    assert found["reward_margin"] == pytest.approx((1 + 0 - 2) / 3)
    halves = [answers((side,), ("x",), halved=True) for side in (BETTER, WORSE)]
    alone = [answers((side,), ("y",)) for side in (BETTER, WORSE, WORSE)]
    told = lines([*halves, *alone], [[3.0], [1.0], [2.0], [2.0], [5.0]])
    assert figures(told[:1])["reward_margin"] == 2.0
    assert figures(told[1:])["reward_accuracy"] == 0.25
    assert figures(told[1:2]) == {}


def test_the_built_in_sample_is_announced_and_usable(checkpoint: Callable[..., Path]) -> None:
    loaded, told = ftcore.load("qwen", checkpoint=checkpoint("qwen2")), list[str]()
    task = Preference(loss="orpo", show=("Why?",))
    data = task.prepare_data(Run(Settings(), "train", "causal-lm", say=told.append), loaded)
    assert (len(data.train), len(data.eval), len(data.probes)) == (160, 32, 1)
    assert any("built-in sample is used; pass --data" in line for line in told)
    assert {piece.role for piece in data.sample if piece.learned} == {"chosen", "rejected"}  # type: ignore[union-attr]


@task_checks(Preference())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
