"""Figures of written texts are those of the libraries that define them, and say what they need where it is missing."""

from __future__ import annotations

import importlib
import re
from typing import Any

import ftcore
import pytest
import sacrebleu
from ftcore import textual
from ftcore.textual import Words, bleu, chrf, measured, rouge, words_of
from rouge_score.rouge_scorer import RougeScorer

SAID = ["The cat sat by the door.", "a dog", "小狗在跑。", ""]
KNOWN = [["The cat sat by a door.", "A cat sat by the door."], ["a dog"], ["小狗在门口跑。"], ["Nothing was said."]]


def test_an_answer_matches_when_it_equals_one_of_its_references() -> None:
    assert measured(["exact_match"], SAID, KNOWN) == {"exact_match": 25}
    assert measured(["exact_match"], [" Two.\n"], [["One.", "Two."]]) == {"exact_match": 100}


def test_figures_are_those_of_the_libraries() -> None:
    sacrebleu, nist = importlib.import_module("sacrebleu"), importlib.import_module("nltk.translate.nist_score")
    found = measured(["bleu", "chrf", "nist", "rouge"], SAID[:2], KNOWN[:2])
    columns = [[KNOWN[0][0], "a dog"], [KNOWN[0][1], None]]
    assert found["bleu"] == sacrebleu.corpus_bleu(SAID[:2], columns, tokenize="13a").score
    assert found["chrf"] == sacrebleu.corpus_chrf(SAID[:2], columns).score
    words = [[text.lower().replace(".", " .").split() for text in texts] for texts in KNOWN[:2]]
    said = [text.lower().replace(".", " .").split() for text in SAID[:2]]
    assert found["nist"] == nist.corpus_nist(words, said, n=5)
    # Five of six words, in order, beside either reference; then all of two.
    assert found["rouge1"] == pytest.approx(100 * (5 / 6 + 1) / 2)
    assert found["rougel"] == pytest.approx(100 * (5 / 6 + 1) / 2)


def test_chinese_is_compared_by_characters() -> None:
    found = measured(["bleu", "rouge", "nist"], SAID[2:3], KNOWN[2:3])
    precision, recall = 4 / 4, 4 / 6
    assert found["rouge1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    sacrebleu = importlib.import_module("sacrebleu")
    assert found["bleu"] == sacrebleu.corpus_bleu(SAID[2:3], [KNOWN[2]], tokenize="zh").score
    assert found["nist"] > 0


def test_nothing_has_no_figures_and_an_empty_answer_has_low_ones() -> None:
    assert measured(["exact_match", "bleu"], [], []) == {}
    found = measured(["bleu", "chrf", "rouge", "nist"], [""], [["Something."]])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("figure", "remedy"),
    [("bleu", "sacrebleu"), ("rouge", "rouge-score"), ("nist", "nltk"), ("cider", "pycocoevalcap")],
)
def test_a_figure_whose_library_is_missing_names_it(figure: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr("ftcore.textual.import_module", absent)
    with pytest.raises(ftcore.Refused, match=f"pip install {remedy}"):
        measured([figure], SAID, KNOWN)


def test_meteor_and_cider_are_their_libraries_where_these_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(module: str, distribution: str) -> Any:
        return Stub(distribution)

    monkeypatch.setattr(textual, "_library", library)
    assert measured(["cider"], SAID[:1], KNOWN[:1]) == {"cider": 2.5}
    with pytest.raises(ftcore.Refused, match=r"nltk\.downloader wordnet"):
        measured(["meteor"], SAID[:1], KNOWN[:1])


class Stub:
    """The libraries as they answer: CIDEr a number and those it is made of, METEOR that WordNet is missing."""

    def __init__(self, distribution: str) -> None:
        assert distribution in ("nltk", "pycocoevalcap")

    def Cider(self) -> Stub:  # noqa: N802
        """The scorer."""
        return self

    def compute_score(self, known: Any, said: Any) -> tuple[float, list[float]]:
        """What two dictionaries of word lists give."""
        assert said == {0: ["the cat sat by the door ."]}
        assert known == {0: ["the cat sat by a door .", "a cat sat by the door ."]}
        return 2.5, [2.5]

    def meteor_score(self, known: Any, said: Any) -> float:
        """Where its data is missing."""
        raise LookupError


# Each figure by itself

RIGHT = ["The cat sat by the door.", "Tim is a dog; he's 3 years old!", "Good-bye, Lily.", "It rains."]
WRITTEN = ["A cat sat by the door.", "Tim is a dog, and he is 3 years old.", "Good-bye Lily.", ""]
CHINESE = (["小猫在门口看雨。", "她有3只狗。"], ["小猫坐在门口看雪。", "他有3只小狗。"])


def test_bleu_and_chrf_are_sacrebleus() -> None:
    references = [[text] for text in RIGHT]
    assert bleu(WRITTEN, references) == sacrebleu.corpus_bleu(WRITTEN, [RIGHT]).score
    assert bleu(WRITTEN, references, "intl") == sacrebleu.corpus_bleu(WRITTEN, [RIGHT], tokenize="intl").score
    assert chrf(WRITTEN, references)["chrf"] == sacrebleu.corpus_chrf(WRITTEN, [RIGHT]).score
    assert bleu(RIGHT, references) == pytest.approx(100) == chrf(RIGHT, references)["chrf"]


def test_chinese_is_scored_by_character() -> None:
    said, known = CHINESE
    references = [[text] for text in known]
    assert words_of(references) == "zh"
    assert words_of([*references, *([text] for text in RIGHT)]) == "13a"
    assert bleu(said, references) == sacrebleu.corpus_bleu(said, [known], tokenize="zh").score > 0
    # rouge-score sees no Chinese: each character is spelled as a word of its number, which it does see
    spelled = [[re.sub("[一-鿿]", lambda found: f" u{ord(found[0])} ", text) for text in texts] for texts in CHINESE]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score(target, text) for text, target in zip(*spelled, strict=True)]
    wanted = {name.lower(): 100 * sum(one[name].fmeasure for one in each) / 2 for name in each[0]}
    assert rouge(said, references) == pytest.approx(wanted)
    assert wanted["rouge1"] > 50


def test_rouge_is_rouge_scores_best_of_several_references() -> None:
    references = [[text, other] for text, other in zip(RIGHT, [*RIGHT[1:], "A cat."], strict=True)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score_multi(known, said) for said, known in zip(WRITTEN, references, strict=True)]
    assert rouge(WRITTEN, references) == pytest.approx(
        {name.lower(): 100 * sum(one[name].fmeasure for one in each) / 4 for name in each[0]}
    )


def test_english_words_are_those_of_rouge_score() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    for text in [*RIGHT, *WRITTEN, "naïve café — 3.5%, İstanbul", "kind: mouse | home: castle", "past: He brings it."]:
        assert Words().tokenize(text) == DefaultTokenizer().tokenize(text)
