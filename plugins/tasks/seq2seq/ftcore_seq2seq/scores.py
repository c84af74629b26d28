"""How close texts are to their references: BLEU and chrF by sacrebleu, ROUGE by rouge-score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

HAN = "㐀-䶿一-鿿豈-﫿"
ROUGES = ("rouge1", "rouge2", "rougeL")


def scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], bleu_tokenizer: str = "auto"
) -> dict[str, float]:
    """Every score of the predictions, from 0 to 100; `references` are those of each prediction, at least one."""
    if not predictions:
        return {}
    return {
        "bleu": bleu(predictions, references, bleu_tokenizer),
        "chrf": chrf(predictions, references),
        **rouge(predictions, references),
    }


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "auto") -> float:
    """Corpus BLEU, its words cut by that tokenizer of sacrebleu; auto goes by what the references are written in."""
    from sacrebleu import corpus_bleu

    chosen = words_of(references) if tokenizer == "auto" else tokenizer
    return float(corpus_bleu(list(predictions), columns(references), tokenize=chosen).score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus chrF: character n-grams up to six, recall weighing twice."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(predictions), columns(references)).score)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, -2 and -L: the mean over predictions of the best F1 among its references."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(list(ROUGES), tokenizer=Words())
    found = [scorer.score_multi(list(known), said) for said, known in zip(predictions, references, strict=True)]
    return {name.lower(): 100 * sum(one[name].fmeasure for one in found) / len(found) for name in ROUGES}


class Words:
    """Words as rouge-score's own tokenizer has them; besides, every Chinese character is one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        return re.findall(rf"[a-z0-9]+|[{HAN}]", text.lower())


def words_of(references: Sequence[Sequence[str]]) -> str:
    """sacrebleu's tokenizer for the references: zh where most of their letters are Chinese, else 13a."""
    letters = [letter for known in references for text in known for letter in text if letter.isalpha()]
    return "zh" if 2 * sum(bool(re.match(f"[{HAN}]", letter)) for letter in letters) > len(letters) else "13a"


def columns(references: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The references as sacrebleu takes them: the first of every prediction, the second, …, filled up with None."""
    return [list(column) for column in zip_longest(*references)]
