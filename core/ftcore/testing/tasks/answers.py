"""What a task promises of its answers: each is its row's alone, lines are plain JSON, and no row goes without."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftcore.hooks import Row, Scoring
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.stage import Tried, crowd, everything, file_of, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

SAME = 1e-4  # of numbers in an answer: float32 sums that were made in another order
FEW = 3  # rows that are answered: writing token by token takes its time


def check_answers_are_their_rows_own(task: object, bench: Bench | None = None) -> None:
    """A row is answered alike alone and in a batch, whatever else is in it, with one plain value for each row."""
    bench = bench_of("task", task, bench)
    tried = everything(bench)
    rows = (tried.held or tried.train)[:FEW]
    for scoring in _scorings(tried):
        alone = {id(row): answer for row in rows for answer in _answers(scoring, tried, [row])}
        for order in (rows, rows[::-1]):
            together = _answers(scoring, tried, order)
            for row, answer in zip(order, together, strict=True):
                wanted = alone[id(row)]
                if not alike(wanted, answer):
                    raise Failed(
                        f"a row is answered {_shown(answer)} among {len(rows)}, and {_shown(wanted)} when it is alone; "
                        "let it see nothing of the others and nothing of its padding"
                    )


def check_answers_are_told(task: object, bench: Bench | None = None) -> None:
    """The lines of answers are objects of JSON, at most one for each row, and give the same figures each time."""
    bench = bench_of("task", task, bench)
    tried = everything(bench)
    rows = (tried.held or tried.train)[:FEW]
    for scoring in _scorings(tried):
        lines = _lines(scoring, tried, rows)
        figures = _figures(scoring, lines)
        written = [json.loads(json.dumps(line)) for line in lines]
        if _figures(scoring, written) != figures:
            raise Failed("lines that were written and read again give other figures; score plain values")
        if "loss" in figures:
            raise Failed("its score names a figure 'loss', which the core measures; name it otherwise")
        if not isinstance(scoring.score([]), Mapping):
            raise Failed("the score of no lines is no mapping; return {} where there is nothing to compare")


def check_rows_are_answered_as_they_are_evaluated(task: object, bench: Bench | None = None) -> None:
    """With the intent 'predict' the same rows are there, and answered as with the intent 'infer'."""
    bench = bench_of("task", task, bench)
    if everything(bench).data.scoring is None:
        return
    held = (str(file_of(bench, crowd(bench, FEW, 100))),)
    told = [_told(prepare(bench, None, intent=intent, eval_data=held)) for intent in ("infer", "predict")]
    if len(told[0]) != len(told[1]) or not all(map(alike, *told)):
        raise Failed(
            f"{len(told[1])} answers with the intent 'predict' and {len(told[0])} others with 'infer'; rows to "
            "be answered are read as those that are measured"
        )


def _told(tried: Tried) -> list[Any]:
    return [answer for scoring in _scorings(tried) for answer in _answers(scoring, tried, tried.held)]


def _scorings(tried: Tried) -> list[Scoring]:
    """The task's scoring, where it has one."""
    return [tried.data.scoring] if tried.data.scoring is not None else []


def _answers(scoring: Scoring, tried: Tried, rows: Sequence[Row]) -> list[Any]:
    """What the model answers to the rows; Failed unless that is one plain value for each."""
    import torch

    tried.loaded.model.eval()
    with torch.no_grad():
        found = list(_of("predict", lambda: scoring.predict(tried.loaded.model, rows)))
    if len(found) != len(rows):
        raise Failed(f"predict gives {len(found)} answers to {len(rows)} rows; give one for each")
    try:
        json.dumps(found)
    except (TypeError, ValueError) as unfit:
        raise Failed(
            f"an answer is no plain value ({unfit}); processes exchange them, so give numbers and text"
        ) from None
    return found


def _lines(scoring: Scoring, tried: Tried, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    lines = list(_of("lines", lambda: scoring.lines(rows, _answers(scoring, tried, rows))))
    if not 0 < len(lines) <= len(rows) or not all(isinstance(line, Mapping) for line in lines):
        raise Failed(f"{len(rows)} rows give {len(lines)} lines; give an object for each record that they came from")
    try:
        json.dumps(lines)
    except (TypeError, ValueError) as unfit:
        raise Failed(f"a line is no JSON ({unfit}); 'ftcore predict' writes them") from None
    return lines


def _figures(scoring: Scoring, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures = dict(_of("score", lambda: scoring.score(lines)))
    odd = next((name for name, value in figures.items() if not math.isfinite(value)), None)
    if odd is not None:
        raise Failed(f"its figure '{odd}' of {len(lines)} lines is {figures[odd]}; leave out what cannot be measured")
    return figures


def _of(what: str, made: Callable[[], Any]) -> Any:
    try:
        return made()
    except Failed:
        raise
    except Exception as fault:
        raise Failed(f"its {what} raises {type(fault).__name__}: {str(fault)[:200]}") from fault


def alike(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, numbers up to rounding."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
