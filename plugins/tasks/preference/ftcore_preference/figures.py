"""What is written of each record, and how often the better answer has the higher reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftcore_preference.answers import BETTER, UNJUDGED, Answers

Line = Mapping[str, Any]


def lines(rows: Sequence[Answers], answers: Sequence[Sequence[float]]) -> list[Line]:
    """An object for each record: both answers with their rewards and the preferred one, or one answer with its own."""
    found: list[Line] = []
    waiting: tuple[str, float] | None = None
    for row, rewards in zip(rows, answers, strict=True):
        if len(row.texts) == 2:
            found.append(_pair(row.texts, rewards))
        elif not row.halved:
            found.append(_one(row, rewards[0]))
        elif waiting is None:
            waiting = row.texts[0], rewards[0]
        else:
            found.append(_pair((waiting[0], row.texts[0]), (waiting[1], rewards[0])))
            waiting = None
    return found


def _pair(texts: Sequence[str], rewards: Sequence[float]) -> Line:
    better, worse = rewards
    preferred = "neither" if better == worse else "chosen" if better > worse else "rejected"
    told = {"chosen": texts[0], "rejected": texts[1], "reward_chosen": better, "reward_rejected": worse}
    return {**told, "prediction": preferred}


def _one(row: Answers, reward: float) -> Line:
    known = {} if row.worth[0] == UNJUDGED else {"label": row.worth[0] == BETTER}
    return {"answer": row.texts[0], **known, "prediction": reward}


def figures(lines: Sequence[Line]) -> dict[str, float]:
    """How often the better answer has the higher reward, by how much on average, and both mean rewards.

    A tie counts half. Of answers that are judged one by one, every good one is compared with every bad one.
    """
    pairs = [(line["reward_chosen"], line["reward_rejected"]) for line in lines if "reward_chosen" in line]
    judged = [(line["label"], line["prediction"]) for line in lines if "label" in line]
    better = np.array([one for one, _ in pairs] or [reward for good, reward in judged if good])
    worse = np.array([one for _, one in pairs] or [reward for good, reward in judged if not good])
    if not len(better) or not len(worse):
        return {}
    return {
        "reward_accuracy": _won(better - worse) if pairs else _won_of_all(better, worse),
        "reward_margin": float(better.mean() - worse.mean()),
        "reward_chosen": float(better.mean()),
        "reward_rejected": float(worse.mean()),
    }


def _won(differences: np.ndarray[Any, Any]) -> float:
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def _won_of_all(better: np.ndarray[Any, Any], worse: np.ndarray[Any, Any]) -> float:
    """As `_won`, of each of the better with each of the worse."""
    ordered = np.sort(worse)
    below = [np.searchsorted(ordered, better, side).sum() for side in ("left", "right")]
    return float(sum(below) / 2 / len(better) / len(worse))
