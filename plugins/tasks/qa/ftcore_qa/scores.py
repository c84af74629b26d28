"""Exact match and F1 as the official scripts of SQuAD and of CMRC 2018 compute them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Metric = Literal["auto", "squad", "cmrc"]
Measure = Callable[[str, str], float]

CHINESE = re.compile("[\u4e00-\u9fa5]")
ARTICLES = re.compile(r"\b(a|an|the)\b")
UNMARKED = str.maketrans("", "", string.punctuation)
# What CMRC's script leaves out; other marks, a Chinese comma's relatives among them, it keeps.
MARKS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
UNSEPARATED = str.maketrans("", "", MARKS)


def scored(lines: Sequence[Mapping[str, Any]], metric: Metric = "auto") -> dict[str, float]:
    """Percentages over the lines whose answers are known; by themselves also those with and without an answer."""
    known = [line for line in lines if "answers" in line]
    chosen = _suited(known) if metric == "auto" else metric
    found = _means(known, chosen)
    parts = {"has_answer": [line for line in known if line["answers"]]}
    parts["no_answer"] = [line for line in known if not line["answers"]]
    for part, lines in parts.items() if all(parts.values()) else ():
        found |= {f"{part}_{name}": value for name, value in _means(lines, chosen).items()}
    return found


def _suited(lines: Sequence[Mapping[str, Any]]) -> Metric:
    chinese = sum(bool(CHINESE.search(f"{line['question']}")) for line in lines)
    return "cmrc" if 2 * chinese > len(lines) else "squad"


def _right(answers: Sequence[str], metric: Metric) -> list[str]:
    """The answers that say something; where none does, to say nothing is right."""
    return [text for text in answers if metric == "cmrc" or normalised(text)] or [""]


def _means(lines: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, float]:
    pairs = [(str(line["prediction"]), _right(line["answers"], metric)) for line in lines]
    measures: dict[str, Measure] = {
        "exact_match": exact_match if metric == "squad" else cmrc_exact_match,
        "f1": f1 if metric == "squad" else cmrc_f1,
    }
    return {name: _mean(pairs, measure) for name, measure in measures.items() if pairs}


def _mean(pairs: Sequence[tuple[str, Sequence[str]]], measure: Measure) -> float:
    return 100 * sum(max(measure(answer, prediction) for answer in right) for prediction, right in pairs) / len(pairs)


# --- SQuAD (Rajpurkar et al. 2016, 2018) -----------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower case without punctuation and articles, words parted by one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(UNMARKED)).split())


def exact_match(answer: str, prediction: str) -> float:
    """Whether the two are the same when normalised."""
    return float(normalised(answer) == normalised(prediction))


def f1(answer: str, prediction: str) -> float:
    """The harmonic mean of the shares of words that the two have in common."""
    wanted, said = normalised(answer).split(), normalised(prediction).split()
    if not wanted or not said:
        return float(wanted == said)
    return _harmonic(sum((Counter(wanted) & Counter(said)).values()), len(said), len(wanted))


def _harmonic(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0


# --- CMRC 2018 (Cui et al. 2019) -------------------------------------------------------------------------


def cmrc_exact_match(answer: str, prediction: str) -> float:
    """Whether the two are the same without case and marks."""
    one, other = (text.lower().strip().translate(UNSEPARATED) for text in (answer, prediction))
    return float(one == other)


def cmrc_f1(answer: str, prediction: str) -> float:
    """The harmonic mean of the shares of the longest run of characters and words that the two have in common."""
    if not answer or not prediction:
        return float(answer == prediction)
    wanted, said = pieces(answer), pieces(prediction)
    return _harmonic(_longest_run(wanted, said), len(said), len(wanted))


def pieces(text: str) -> list[str]:
    """Chinese characters one by one, and the words between them; marks part words no more than if they were absent."""
    from nltk.tokenize import word_tokenize

    found: list[str] = []
    for run in re.split("([\u4e00-\u9fa5])", text.lower().strip().translate(UNSEPARATED)):
        found += [run] if CHINESE.fullmatch(run) else word_tokenize(run, preserve_line=True)
    return found


def _longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    longest, before = 0, [0] * (len(other) + 1)
    for piece in one:
        ending = [0, *(before[at] + 1 if piece == mate else 0 for at, mate in enumerate(other))]
        longest, before = max(longest, *ending), ending
    return longest
