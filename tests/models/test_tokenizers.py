"""Tokenizers of converted families cut any text as the published algorithms do, number by number, and give it back."""

from __future__ import annotations

import base64
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from ftcore.discovery import find
from ftcore.vocabularies import BYTE, NORMAL, SPACE, USER, read_pieces

REAL = Path(__file__).resolve().parents[3] / "shared" / "tokenizers"
SECOND_MODEL = {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}
THIRD_MODEL = {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"}
FOURTH_MODEL = {"model_type": "chatglm", "_name_or_path": "THUDM/glm-4-9b"}
SEVEN = {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}


# What texts are made of


CODE = (
    "def f(x):\n    return {'a': x ** 2}\n", "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n\t}\n",
    "<p class=\"x\">&amp;</p>",
    "SELECT * FROM t WHERE a != 'b' -- c\n", "#!/bin/sh\r\nset -e\r\n", "\\frac{1}{2} $x_1^2$", "https://a.b/c?d=e&f#g",
    "x = '''\n  ...\n'''  # ====\n", "0x1F + 1e-9 == 3.14159", "{{ 7 * 7 }} {% if a %}",
)  # fmt: skip
PROSE = (
    "The cat sat by the door", " it's", " don't", " WE'LL", "they'RE ", "I'd", "'S", " and, so: the rain!",
    "naïve café", "Straße", "HELLO", "aaaaaaaa", "----====----", "hahahahaha", "——", "……", "ＥＦＧ ａｂ", "Привет, мир",
    "שלום", "مرحبا", "नमस्ते",
)  # fmt: skip
CJK = (
    "小猫在门口看雨。",
    "中文，标点！？",
    "《书名》",
    "你好世界",
    "東京は夜です",
    "カタカナ",
    "안녕하세요",
    "一二三四五",
    "𠮷野家",
    "ㄅㄆㄇ",
)
EMOJI = ("🐱", "👩‍👩‍👧‍👦", "🇨🇳", "👍🏽", "❤️", "☕", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣")
MARKS = ("e\u0301", "a\u0308\u0323", "ệ", "ệ", "q\u0307\u0323", "각", "\u0301", "n\u0303o", "Å", "ﬁ", "ſ", "İ")
BLANKS = (
    " ",
    "  ",
    "    ",
    "        ",
    "\t",
    "\t\t",
    "\n",
    "\n\n\n",
    "\r\n",
    " \n ",
    "\u3000",
    "\u00a0",
    "\u2003",
    "\u200b",
)
CONTROLS = ("\0", "\0\0", "\x01", "\x07", "\x1b[0m", "\x7f", "\ufeff", "\u2028", "\ufffd", "\ufffe")
DIGITS = ("0", "7", "42", "365", "1234", "1234567890", "3.14", "1,000,000", "２０２４", "٣٤٥", "½", "Ⅷ", "①")


def letter(chance: random.Random) -> str:
    """Any letter, sign or mark of which Unicode has said the same since its version 3.2."""
    while True:
        one = chr(chance.randrange(0x20, 0x30000))
        kind = unicodedata.category(one)
        if kind not in ("Cn", "Cs", "Co") and kind == unicodedata.ucd_3_2_0.category(one) and one != SPACE:
            return one


def texts(count: int = 260, seed: int = 0) -> Iterator[str]:
    """Texts of a few pieces each, always the same."""
    chance = random.Random(seed)
    sources = (CODE, PROSE, CJK, EMOJI, MARKS, BLANKS, CONTROLS, DIGITS)
    yield from ("", " ", "\n", "a", "  a", "a  ")
    for _ in range(count):
        made = ""
        for _ in range(chance.randrange(1, 7)):
            anything = chance.random() < 0.2
            made += "".join(letter(chance) for _ in range(4)) if anything else chance.choice(chance.choice(sources))
            made += chance.choice(("", "", " ", "\n"))
        yield made


# The published algorithms, in the plainest words


@dataclass(frozen=True)
class PieceCutter:
    """Byte pairs as sentencepiece merges them: of all neighbours that make a piece the best first, of equals the left.

    A piece of the user is never cut and never merged; a letter that is no piece is its bytes.
    """

    scores: Mapping[str, float]
    numbers: Mapping[str, int]
    whole: tuple[str, ...]
    opens_blank: bool

    def __call__(self, text: str) -> list[int]:
        """The numbers of the pieces of a text."""
        if not text:
            return []
        parts = self._begun((SPACE if self.opens_blank else "") + text.replace(" ", SPACE))
        while True:
            joined = ((self._score(*pair), -at) for at, pair in enumerate(pairwise(parts)))
            score, place = max(joined, default=(float("-inf"), 0))
            if score == float("-inf"):
                return [number for part in parts for number in self._numbers(part)]
            parts[-place : 2 - place] = [(parts[-place][0] + parts[1 - place][0], False)]

    def _begun(self, text: str) -> list[tuple[str, bool]]:
        """The letters, and the user's pieces, which are frozen."""
        held = "|".join(re.escape(one) for one in sorted(self.whole, key=len, reverse=True)) or r"(?!)"
        return [(found[0], found[1] is not None) for found in re.finditer(rf"({held})|.", text, re.DOTALL)]

    def _score(self, left: tuple[str, bool], right: tuple[str, bool]) -> float:
        return float("-inf") if left[1] or right[1] else self.scores.get(left[0] + right[0], float("-inf"))

    def _numbers(self, part: tuple[str, bool]) -> list[int]:
        if part[0] in self.numbers:
            return [self.numbers[part[0]]]
        return [self.numbers[f"<0x{byte:02X}>"] for byte in part[0].encode()]


@dataclass(frozen=True)
class RankCutter:
    """Byte pairs as tiktoken merges them: words by a pattern, and in each the pair that makes the lowest rank first."""

    ranks: Mapping[bytes, int]
    words: str
    nfc: bool = False

    def __call__(self, text: str) -> list[int]:
        """The ranks of the byte strings of a text."""
        normal = unicodedata.normalize("NFC", text) if self.nfc else text
        return [rank for word in regex.findall(self.words, normal) for rank in self._cut(word.encode())]

    def _cut(self, word: bytes) -> list[int]:
        if word in self.ranks:
            return [self.ranks[word]]
        parts = [word[at : at + 1] for at in range(len(word))]
        while True:
            pairs = enumerate(pairwise(parts))
            rank, at = min(((self.ranks.get(one + two, 1 << 30), at) for at, (one, two) in pairs), default=(1 << 30, 0))
            if rank == 1 << 30:
                return [self.ranks[part] for part in parts]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]


def of_pieces(file: Path) -> PieceCutter:
    """The algorithm with the vocabulary of a file; a piece that is NUL can never be met."""
    held = read_pieces(file)
    known = {one.text: (number, one) for number, one in enumerate(held.pieces) if one.text != "\0"}
    return PieceCutter(
        {text: one.score for text, (_, one) in known.items() if one.kind == NORMAL},
        {text: number for text, (number, one) in known.items() if one.kind in (NORMAL, USER, BYTE)},
        tuple(text for text, (_, one) in known.items() if one.kind == USER),
        held.opens_blank,
    )


def of_ranks(file: Path, digits: str, *, nfc: bool) -> RankCutter:
    """The algorithm with the vocabulary of a file, and words whose numbers have so many `digits`."""
    ranks = {
        base64.b64decode(word): int(rank) for word, rank in (line.split() for line in file.read_bytes().splitlines())
    }
    words = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return RankCutter(ranks, words, nfc)


# The families, each on a vocabulary made here and on its own where that is at hand


@dataclass(frozen=True, eq=False)
class Subject:
    """A family's member: its config, its vocabulary, its special tokens, and how it shows a conversation."""

    name: str
    family: str
    fields: Mapping[str, Any]
    real: str
    begin: tuple[str, ...] = ()
    specials: Mapping[str, int] = field(default_factory=dict)
    shown: str = ""
    user: tuple[str, ...] = ()
    prefix: bool = False
    digits: str = ""
    nfc: bool = False

    @property
    def ranked(self) -> bool:
        """Whether its vocabulary is of ranks and not of pieces."""
        return self.real in ("qwen", "glm4")

    @property
    def file(self) -> str:
        """What the file of its vocabulary is called."""
        return "qwen.tiktoken" if self.real == "qwen" else "tokenizer.model"


def numbered(start: int, *names: str) -> dict[str, int]:
    """Tokens that follow one another from a number."""
    return {name: number for number, name in enumerate(names, start)}


EXTRA = tuple(f"<|extra_{number}|>" for number in range(205))
UNUSED = tuple(f"[UNUSED_TOKEN_{number}]" for number in range(141, 147))
AFTER = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PLAIN = {"<unk>": 0, "<s>": 1, "</s>": 2}
SUBJECTS = (
    Subject(
        "qwen", "qwen", {"model_type": "qwen"}, "qwen", nfc=True,
        specials=numbered(151643, "<|endoftext|>", "<|im_start|>", "<|im_end|>", *EXTRA),
        shown="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好 cat<|im_end|>\n"
        "<|im_start|>assistant\nA cat!<|im_end|>\n<|im_start|>user\n 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    Subject(
        "internlm", "internlm", {"model_type": "internlm"}, "internlm", begin=("<s>",), user=("<eoh>", "<eoa>"),
        specials={**PLAIN, "<eoh>": 103027, "<eoa>": 103028},
        shown="<s><|System|>:Be brief.\n<|User|>:你好 cat<eoh>\n<|Bot|>:A cat!<eoa>\n<|User|>: 2 + 2?<eoh>\n<|Bot|>:",
    ),
    Subject(
        "internlm2", "internlm", {"model_type": "internlm2"}, "internlm2", begin=("<s>",), user=("——", "Ｅ", *UNUSED),
        specials={
            **PLAIN,
            **numbered(92538, "<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>",
                       "<|im_start|>"),
        },
        shown="<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好 cat<|im_end|>\n"
        "<|im_start|>assistant\nA cat!<|im_end|>\n<|im_start|>user\n 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    Subject(
        "chatglm2", "chatglm", SECOND_MODEL, "chatglm2", begin=("[gMASK]", "<sop>"), prefix=True,
        specials={"<unk>": 0, "</s>": 2, **numbered(64789, *AFTER)},
        shown="[gMASK]<sop>[Round 1]\n\n问：你好 cat\n\n答：A cat!\n\n[Round 2]\n\n问： 2 + 2?\n\n答：",
    ),
    Subject(
        "chatglm3", "chatglm", THIRD_MODEL, "chatglm2", begin=("[gMASK]", "<sop>"), prefix=True,
        specials={"<unk>": 0, "</s>": 2, **numbered(64789, *AFTER, *ROLES)},
        shown="[gMASK]<sop><|system|>\n Be brief.<|user|>\n 你好 cat<|assistant|>\n A cat!<|user|>\n  2 + 2?"
        "<|assistant|>",
    ),
    Subject(
        "glm-4", "chatglm", FOURTH_MODEL, "glm4", begin=("[gMASK]", "<sop>"), digits="{1,3}",
        specials=numbered(151329, "<|endoftext|>", *AFTER, *ROLES),
        shown="[gMASK]<sop><|system|>\nBe brief.<|user|>\n你好 cat<|assistant|>\nA cat!<|user|>\n 2 + 2?<|assistant|>",
    ),
    Subject(
        "baichuan", "baichuan", {"model_type": "baichuan", "vocab_size": 64000}, "",
        user=tuple(f"<reserved_{number}>" for number in range(102, 104)),
        shown="Be brief.<reserved_102>你好 cat<reserved_103>A cat!<reserved_102> 2 + 2?<reserved_103>",
    ),
    Subject(
        "baichuan2", "baichuan", {"model_type": "baichuan", "vocab_size": 125696}, "",
        user=tuple(f"<reserved_{number}>" for number in range(106, 108)),
        shown="Be brief.<reserved_106>你好 cat<reserved_107>A cat!<reserved_106> 2 + 2?<reserved_107>",
    ),
    Subject("baichuan-7b", "baichuan", SEVEN, ""),
)  # fmt: skip
HERE = [one for one in SUBJECTS if one.real and (REAL / one.real / one.file).is_file()]
WORDS = (
    "▁the▁cat", "▁▁▁▁▁▁▁▁", "aaaaaa", "haha", "----", "====", "ing", "▁don", "▁it", "return", "小猫在", "中文", "你好",
    "。", "\n\n", "🐱", "é", "12", "34", "'s", "▁=", "▁A", "é́", "▁brief", "user", "assistant", "system",
)  # fmt: skip


def ranks() -> bytes:
    """A file of ranks: all bytes, and what grows into some words."""
    words = [word.replace("▁", " ").encode() for word in WORDS]
    grown = [word[:end] for word in words for end in range(2, len(word) + 1)]
    every = [*(bytes([byte]) for byte in range(256)), *dict.fromkeys([*grown, b"xyz", b"hahahahaha"])]
    return b"".join(base64.b64encode(word) + f" {rank}\n".encode() for rank, word in enumerate(every))


@dataclass(frozen=True)
class Made:
    """A tokenizer as its family makes it, and the algorithm that it should follow."""

    subject: Subject
    tokenizer: Any
    cut: Callable[[str], list[int]]

    def whole(self, text: str) -> list[int]:
        """The numbers of a text with special tokens in it: these whole, and what lies between them by the algorithm."""
        names = sorted({*self.subject.specials, *PLAIN}, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        known = self.tokenizer.get_vocab()
        return [n for part in parts for n in ([known[part]] if part in names else self.cut(part))]


@cache
def made(subject: Subject, folder: Path) -> Made:
    """The tokenizer of a family's member from the vocabulary in a folder."""
    family = find("model", f"ftcore-{subject.family}:{subject.family}").load()()
    original = family.original(subject.fields)
    file = folder / subject.file
    cut = of_ranks(file, subject.digits, nfc=subject.nfc) if subject.ranked else of_pieces(file)
    return Made(subject, original.tokenizer(folder, subject.fields), cut)


@pytest.fixture(
    params=[*((one, False) for one in SUBJECTS), *((one, True) for one in HERE)],
    ids=lambda p: f"{p[0].name}{'-as-published' * p[1]}",
)
def tokens(
    request: pytest.FixtureRequest, pieces: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """Every member on a vocabulary made here, and on the published one where that is at hand."""
    subject, real = request.param
    if real:
        return made(subject, REAL / subject.real)
    folder = tmp_path_factory.mktemp(subject.name)
    (folder / subject.file).write_bytes(
        ranks() if subject.ranked else pieces(WORDS, subject.user, prefix=subject.prefix)
    )
    return made(subject, folder)


def differing(found: Sequence[object], wanted: Sequence[object]) -> list[str]:
    """The texts for which two answers differ."""
    return [repr(text) for text, one, other in zip(texts(), found, wanted, strict=True) if one != other]


def test_any_text_has_the_numbers_that_the_published_algorithm_gives_it(tokens: Made) -> None:
    found = [tokens.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()]
    assert differing(found, [tokens.cut(text) for text in texts()]) == []


def test_any_text_comes_back_from_its_numbers(tokens: Made) -> None:
    back = [tokens.tokenizer.decode(tokens.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts()]
    kept = [unicodedata.normalize("NFC", text) if tokens.subject.nfc else text for text in texts()]
    assert differing(back, kept) == []


def test_a_text_begins_as_its_makers_begin_it(tokens: Made) -> None:
    begun = tokens.tokenizer.convert_tokens_to_ids(list(tokens.subject.begin))
    assert [tokens.tokenizer(text)["input_ids"] for text in ("a cat", "小猫")] == [
        [*begun, *tokens.cut(text)] for text in ("a cat", "小猫")
    ]


def test_special_tokens_have_their_published_numbers() -> None:
    for subject in HERE:
        tokenizer = made(subject, REAL / subject.real).tokenizer
        assert {name: tokenizer.convert_tokens_to_ids(name) for name in subject.specials} == subject.specials
        whole = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in subject.specials]
        assert whole == [[number] for number in subject.specials.values()]


def test_conversations_are_shown_as_their_makers_show_them(tokens: Made) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 cat"},
        {"role": "assistant", "content": "A cat!"},
        {"role": "user", "content": " 2 + 2?"},
    ]
    asked = talk[1:] if tokens.subject.name == "chatglm2" else talk
    if not tokens.subject.shown:
        assert tokens.tokenizer.chat_template is None
        return
    assert (
        tokens.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) == tokens.subject.shown
    )
    given = tokens.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert given == tokens.whole(tokens.subject.shown)


def test_the_texts_are_many_of_every_kind_and_always_the_same() -> None:
    every = list(texts())
    assert every == list(texts())
    assert len(set(every)) > 200
    for kind in (CODE, PROSE, CJK, EMOJI, MARKS, BLANKS, CONTROLS, DIGITS):
        assert sum(any(one in text for one in kind) for text in every) > 20
