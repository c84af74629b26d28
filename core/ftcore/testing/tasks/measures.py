"""What a task promises of what is shown and measured: plans, samples, probes, metrics, and a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ftcore import api
from ftcore.discovery import declared_datum
from ftcore.hooks import Intent, Loaded, Row, Run
from ftcore.settings import Settings
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.constancy import counts_of, digests, plain
from ftcore.testing.tasks.labels import lesson, shown, special_ids
from ftcore.testing.tasks.listening import even_speech, knowing_speech, listen
from ftcore.testing.tasks.stage import (
    TOKEN_HEADS,
    Tried,
    alone,
    checkpoint,
    crowd,
    everything,
    family,
    file_of,
    head,
    loaded,
    prepare,
    reads_files,
    text_from,
    text_of,
    tokenizer_of,
)

POSITIONS_OF_A_RUN = 512


def check_metrics_are_right(task: object, bench: Bench | None = None) -> None:
    """The metrics of a model that knows every answer, and of one that knows nothing, are what the formulas say."""
    bench = bench_of("task", task, bench)
    tried = everything(bench)
    rows = tried.held or tried.train
    means = {0.0, 1.0, 2.5}
    if head(task) in TOKEN_HEADS and not declared_datum(task, "compares"):
        means |= _known_losses(tried, rows)
    for mean in sorted(means):
        _measured(tried, rows, mean, bench)
    for mean in (50.0, 1e4, 1e30):
        try:
            metrics = tried.data.metrics(mean)
        except ArithmeticError as fault:
            raise Failed(
                f"metrics of a loss of {mean:g} raise {type(fault).__name__}: {fault}; bound it first"
            ) from None
        if not all(math.isfinite(value) for name, value in metrics.items() if name != "loss"):
            raise Failed(f"metrics of a loss of {mean:g} are {dict(metrics)}; bound what grows without end")


def _known_losses(tried: Tried, rows: Sequence[Row]) -> set[float]:
    """The mean losses of a model that knows all and of one that knows nothing; Failed when they are not that."""
    batch = tried.data.collate(rows)
    model, loss = tried.loaded.model, tried.data.loss
    taught = listen(model, loss, batch).taught
    perfect = float(listen(model, loss, batch, knowing_speech(taught)).value) / batch.weight
    even = listen(model, loss, batch, even_speech)
    ignorant, wanted = float(even.value) / batch.weight, math.log(even.logits.shape[-1])
    if abs(perfect) > 1e-3:
        raise Failed(f"a model that knows every answer has a mean loss of {perfect:.4g}; it is 0")
    if abs(ignorant - wanted) > 1e-3:
        raise Failed(f"a model that knows nothing has a mean loss of {ignorant:.4g}; it is ln {even.logits.shape[-1]}")
    return {max(0.0, perfect), ignorant}


def _measured(tried: Tried, rows: Sequence[Row], mean: float, bench: Bench) -> None:
    metrics = tried.data.metrics(mean)
    formulas = {"loss": mean, "perplexity": math.exp(mean), "bits_per_token": mean / math.log(2)}
    held = crowd(bench, 6, 100)
    if tried.held and all(case.learned for case in held) and reads_files(bench):
        texts = [text for case in held for text in case.learned]
        bits = mean * sum(tried.data.collate([row]).weight for row in rows) / math.log(2)
        formulas["bits_per_character"] = bits / sum(len(text) for text in texts)
        formulas["bits_per_byte"] = bits / sum(len(text.encode()) for text in texts)
    if "loss" not in metrics:
        raise Failed(f"its metrics are {', '.join(metrics)}; 'loss' must be among them")
    for name, value in metrics.items():
        wanted = formulas.get(name)
        if wanted is not None and not math.isclose(value, wanted, rel_tol=1e-4, abs_tol=1e-9):
            raise Failed(f"with a mean loss of {mean:.4g} a token, it measures {name} {value:.6g}; it is {wanted:.6g}")


def check_sample_shows_what_is_learned(task: object, bench: Bench | None = None) -> None:
    """The sample that a plan shows marks as learned what is learned, and nothing else."""
    bench = bench_of("task", task, bench)
    for case, tried in alone(bench)[:4] if reads_files(bench) else []:
        pieces = tried.data.sample
        if not pieces or not case.learned:
            continue
        taught = _squeezed(tried, "".join(piece[0] for piece in pieces if piece[1]))
        wanted = _squeezed(tried, text_from(tried, lesson(tried, tried.sides[0])))
        cut = len("".join(piece[0] for piece in pieces)) < len(text_of(tried, tried.train[0]))
        if not taught or (taught != wanted and not (cut and wanted.startswith(taught))):
            raise Failed(f"the sample shows {shown(taught)} as learned, and {shown(wanted)} is")


def _squeezed(tried: Tried, text: str) -> str:
    for special in tokenizer_of(tried).convert_ids_to_tokens(sorted(special_ids(tried))):
        text = text.replace(special, "")
    return "".join(text.split())


def check_probes_ask_as_rows_do(task: object, bench: Bench | None = None) -> None:
    """A probe's tokens are its question, put as in training up to where the answer begins."""
    bench = bench_of("task", task, bench)
    tried = everything(bench)
    for probe in tried.data.probes:
        ids = list(probe.input_ids)
        if not ids or not probe.question.strip() or not all(0 <= token < tried.loaded.vocab_size for token in ids):
            raise Failed(f"the probe {shown(probe.question)} has the tokens {ids[:5]}; give it text and tokens")
        said = text_from(tried, ids)
        if probe.question.strip() not in said:
            raise Failed(f"the probe {shown(probe.question)} asks the model {shown(said)}; ask what it says")
        openings = list(_openings(tried, probe.question.strip())) if head(task) == "causal-lm" else []
        after = said.rpartition(probe.question.strip())[2]
        if openings and after not in openings:
            raise Failed(
                f"after its question, a probe goes on with {shown(after)}, and rows with {shown(openings[0])} before "
                "their answer begins; ask as rows do (add_generation_prompt)"
            )


def _openings(tried: Tried, question: str) -> Iterator[str]:
    """What stands in rows between a question and what is learned after it."""
    for row, heard in tried.readings:
        ids = tried.tokens(row)
        first = min((one.position for one in heard.taught), default=-1)
        opening = str(tokenizer_of(tried).decode(ids[: first + 1]))
        if heard.placed and question in opening:
            yield opening.rpartition(question)[2]


def check_plan_needs_no_weights(task: object, bench: Bench | None = None) -> None:
    """With the intent 'plan', of a model without weights, the rows are those that a run would train on."""
    bench = bench_of("task", task, bench)
    usual = everything(bench)
    settings = Settings(checkpoint=str(checkpoint(bench)))
    skeleton = family(bench).load_model(Run(settings, "plan", head(task)), {})
    tried = _with_intent(bench, "plan", replace(skeleton, tokenizer=loaded(bench).tokenizer))
    if digests(tried) != digests(usual) or counts_of(tried) != counts_of(usual):
        raise Failed("the intent 'plan' gives other rows or counts than 'train'; a plan must say what the run would do")


def _with_intent(bench: Bench, intent: Intent, base: Loaded | None = None) -> Tried:
    held = (str(file_of(bench, crowd(bench, 6, 100))),)
    file = file_of(bench, crowd(bench)) if intent != "infer" else None
    try:
        return prepare(bench, file, base=base, intent=intent, eval_data=held)
    except Exception as fault:
        what = "a model without weights" if intent == "plan" else "held-out rows alone"
        raise Failed(
            f"with the intent '{intent}' and {what} it raises {type(fault).__name__}: {str(fault)[:200]}"
        ) from None


def check_evaluation_needs_no_training_rows(task: object, bench: Bench | None = None) -> None:
    """With the intent 'infer' and held-out rows alone, they are prepared and measured as in the run."""
    bench = bench_of("task", task, bench)
    usual, tried = everything(bench), _with_intent(bench, "infer")
    if digests(tried)[1] != digests(usual)[1]:
        raise Failed(
            f"{len(tried.held)} held-out rows without training rows, and {len(usual.held)} others beside them; "
            "evaluating a finished run must measure what the run measured"
        )
    if dict(tried.data.metrics(1.5)) != dict(usual.data.metrics(1.5)):
        raise Failed("the metrics of the same held-out rows differ when there are no training rows")
    if plain(tried.data.collate(tried.held)) != plain(usual.data.collate(usual.held)):
        raise Failed("the same held-out rows make another batch when there are no training rows")


def check_a_run_trains_and_is_evaluated(task: object, bench: Bench | None = None) -> None:
    """A whole run on its rows ends well, and the finished run, opened again, measures what the run measured last."""
    from ftcore import pipeline
    from ftcore.testing.stage import Companion

    bench = bench_of("task", task, bench)
    norm = loaded(bench).parts["norm"][-1]
    files: dict[str, Any] = {
        "data": str(file_of(bench, crowd(bench))),
        "eval_data": str(file_of(bench, crowd(bench, 6, 100))),
    }
    plugins: dict[str, Any] = {"method": Companion(module=norm), "task": bench.plugin, "model": family(bench)}
    output = bench.place("run")
    done = api.run(
        **plugins,
        **files,
        checkpoint=checkpoint(bench),
        output=output,
        steps=2,
        batch_size=4,
        max_length=POSITIONS_OF_A_RUN,
    )
    if not done.metrics:
        raise Failed("a run with held-out rows measured nothing; return them as Data.eval")
    again = {**plugins, "task": bench.fresh(), "data": [], "eval_data": [files["eval_data"]]}
    opened = pipeline.opened_base(output, "infer", lambda said: None, again)
    _, _, hooks, run, _, base = opened
    prepared = pipeline.prepare_data(hooks, run, base)
    found = _evaluated(pipeline.attached_to(*opened), prepared)
    for name, value in found.items():
        if not math.isclose(value, done.metrics.get(name, math.nan), rel_tol=1e-5):
            raise Failed(f"the run ended with {name} {done.metrics.get(name)}, and opened again it measures {value}")


def _evaluated(attached: Any, data: Any) -> dict[str, float]:
    from ftcore import pipeline
    from ftcore.training import evaluate, evaluation_order

    accelerator = pipeline.accelerator_for(attached.recipe)
    order = evaluation_order(attached.recipe.settings, data)
    return evaluate(attached.run, data, accelerator.prepare(attached.injected.model), order, accelerator, data.loss)
