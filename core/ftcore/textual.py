"""How close written texts are to their references, by the libraries that define each figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import zip_longest
from typing import Any, Literal, TypeAlias

from ftcore.errors import Refused

Figure = Literal["exact_match", "bleu", "chrf", "rouge", "nist", "meteor", "cider"]
References: TypeAlias = "Sequence[Sequence[str]]"  # those of each prediction, at least one
HAN = "㐀-䶿一-鿿豈-﫿"
ROUGES = ("rouge1", "rouge2", "rougeL")


def measured(
    figures: Sequence[str], predictions: Sequence[str], references: References, bleu_tokenizer: str = "auto"
) -> dict[str, float]:
    """The figures of the predictions by name; shares are from 0 to 100, NIST and CIDEr as their papers have them."""
    if not predictions:
        return {}
    found: dict[str, float] = {}
    for figure in figures:
        if figure == "bleu":
            found["bleu"] = bleu(predictions, references, bleu_tokenizer)
        else:
            found |= _FIGURES[figure](predictions, references)
    return found


def exact_match(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The share of predictions that equal one of their references, white space at the ends left out."""
    pairs = zip(predictions, references, strict=True)
    right = sum(said.strip() in [text.strip() for text in known] for said, known in pairs)
    return {"exact_match": 100 * right / len(predictions)}


def bleu(predictions: Sequence[str], references: References, tokenizer: str = "auto") -> float:
    """Corpus BLEU, its words cut by that tokenizer of sacrebleu; auto goes by what the references are written in."""
    chosen = words_of(references) if tokenizer == "auto" else tokenizer
    library = _library("sacrebleu", "sacrebleu")
    return float(library.corpus_bleu(list(predictions), columns(references), tokenize=chosen).score)


def chrf(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus chrF: character n-grams up to six, recall weighing twice."""
    library = _library("sacrebleu", "sacrebleu")
    return {"chrf": float(library.corpus_chrf(list(predictions), columns(references)).score)}


def rouge(predictions: Sequence[str], references: References) -> dict[str, float]:
    """ROUGE-1, -2 and -L: the mean over predictions of the best F1 among its references."""
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGES), tokenizer=Words())
    found = [scorer.score_multi(list(known), said) for said, known in zip(predictions, references, strict=True)]
    return {name.lower(): 100 * sum(one[name].fmeasure for one in found) / len(found) for name in ROUGES}


def nist(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus NIST of word n-grams up to five."""
    library = _library("nltk.translate.nist_score", "nltk")
    longest = min(5, max(len(_words(text)) for text in predictions))
    if not longest:
        return {"nist": 0.0}
    known = [[_words(text) for text in texts] for texts in references]
    return {"nist": float(library.corpus_nist(known, [_words(text) for text in predictions], n=longest))}


def meteor(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The mean METEOR, the best among its references of each; it asks for nltk's data of WordNet."""
    library = _library("nltk.translate.meteor_score", "nltk")
    pairs = zip(predictions, references, strict=True)
    try:
        found = [library.meteor_score([_words(text) for text in known], _words(said)) for said, known in pairs]
    except LookupError:
        raise Refused("METEOR needs the data of WordNet; run: python -m nltk.downloader wordnet") from None
    return {"meteor": 100 * sum(found) / len(found)}


def cider(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus CIDEr of word n-grams up to four, which needs several predictions to tell words apart."""
    library = _library("pycocoevalcap.cider.cider", "pycocoevalcap")
    said = {number: [" ".join(_words(text))] for number, text in enumerate(predictions)}
    known = {number: [" ".join(_words(text)) for text in texts] for number, texts in enumerate(references)}
    return {"cider": float(library.Cider().compute_score(known, said)[0])}


_FIGURES: Mapping[str, Callable[[Sequence[str], References], dict[str, float]]] = {
    "exact_match": exact_match,
    "chrf": chrf,
    "rouge": rouge,
    "nist": nist,
    "meteor": meteor,
    "cider": cider,
}


class Words:
    """Words as rouge-score's own tokenizer has them; besides, every Chinese character is one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        return re.findall(rf"[a-z0-9]+|[{HAN}]", text.lower())


def words_of(references: References) -> str:
    """sacrebleu's tokenizer for the references: zh where most of their letters are Chinese, else 13a."""
    letters = [letter for known in references for text in known for letter in text if letter.isalpha()]
    return "zh" if 2 * sum(bool(re.match(f"[{HAN}]", letter)) for letter in letters) > len(letters) else "13a"


def columns(references: References) -> list[list[Any]]:
    """The references as sacrebleu takes them: the first of every prediction, the second, …, filled up with None."""
    return [list(column) for column in zip_longest(*references)]


def _words(text: str) -> list[str]:
    """Words and marks in lower case; every Chinese character is a word."""
    return re.findall(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]", text.lower())


def _library(module: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise Refused(f"this figure is computed by {distribution}; run: pip install {distribution}") from None
