"""Vocabularies of other libraries become tokenizers that cut texts as these libraries do, or are refused."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import ftcore
import pytest
from ftcore.vocabularies import Specials, from_sentencepiece, from_tiktoken, read_pieces

WORDS = r"\p{L}+|\s+|[^\s\p{L}]+"
SPECIALS = Specials(begin=("<s>",), bos="<s>", eos="</s>", pad="</s>", unk="<unk>")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokenizer.model"


def test_pieces_are_merged_best_first_and_unknown_letters_are_bytes(file: Path, pieces: Callable[..., bytes]) -> None:
    file.write_bytes(pieces(("abc", "▁abd", "bc")))
    tokenizer = from_sentencepiece(file, SPECIALS)
    assert tokenizer.tokenize("abc abd") == ["abc", "▁abd"]
    assert tokenizer.tokenize("xbc") == ["<0x78>", "bc"]
    assert tokenizer.tokenize("é") == ["<0xC3>", "<0xA9>"]
    assert tokenizer("abc")["input_ids"][0] == 1
    for text in ("abc abd", "  two  blanks ", "小猫\n\t🐱", "\0"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_vocabulary_may_open_every_text_with_a_blank(file: Path, pieces: Callable[..., bytes]) -> None:
    file.write_bytes(pieces(("▁abc",), prefix=True))
    tokenizer = from_sentencepiece(file, SPECIALS)
    assert tokenizer.tokenize("abc abc") == ["▁abc", "▁abc"]
    assert tokenizer.decode(tokenizer("abc")["input_ids"], skip_special_tokens=True) == "abc"


def test_pieces_of_the_user_are_never_cut_and_can_be_renamed(file: Path, pieces: Callable[..., bytes]) -> None:
    file.write_bytes(pieces(("abc",), user=("[UNUSED]", "b——")))
    count = len(read_pieces(file).pieces)
    tokenizer = from_sentencepiece(file, Specials(names={count - 2: "<|end|>"}, unk="<unk>"))
    assert tokenizer.tokenize("ab——c<|end|>") == ["a", "b——", "c", "<|end|>"]
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "b——"]) == [count - 2, count - 1]
    assert tokenizer.decode([count - 2, count - 1], skip_special_tokens=True) == "b——"


def test_saved_and_loaded_it_cuts_the_same(file: Path, pieces: Callable[..., bytes], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file.write_bytes(pieces(("▁abc", "bc"), user=("<x>",), prefix=True))
    tokenizer = from_sentencepiece(file, SPECIALS)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("abc abc<x>bc", " ", "", "é</s>x"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-9], "cannot be read"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1", "cannot be read|is not of byte pairs"),
        (lambda data: data.replace(b"\x12\x02\x18\x02", b"\x12\x02\x18\x01"), "is not of byte pairs"),
        (lambda data: data[:-1] + b"\x01", "is not of byte pairs"),
    ],
    ids=["cut", "pointer", "unigram", "blanks taken away"],
)
def test_what_would_not_be_exact_is_refused(
    spoil: Callable[[bytes], bytes], said: str, file: Path, pieces: Callable[..., bytes]
) -> None:
    file.write_bytes(spoil(pieces(("abc",))))
    with pytest.raises(ftcore.Refused, match=said):
        from_sentencepiece(file, SPECIALS)


def ranked(tokens: list[bytes]) -> bytes:
    """A tiktoken file of all bytes and these tokens."""
    every = [bytes([byte]) for byte in range(256)] + tokens
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(every))


def test_ranks_are_merged_lowest_first_in_every_way(file: Path) -> None:
    file.write_bytes(ranked([b"bc", b"abc", b"ab", b"xyz", "é".encode()]))
    tokenizer = from_tiktoken(file, WORDS, Specials(names={261: "<end>"}, eos="<end>"))
    assert tokenizer("abc")["input_ids"] == [257]
    assert tokenizer("ab")["input_ids"] == [258]
    assert tokenizer("xyz")["input_ids"] == [259]  # a whole word that no merge makes
    assert tokenizer("xyzé<end>")["input_ids"] == [*b"xyz", 260, 261]
    for text in ("abc é", "小猫 🐱\n", "e\u0301"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("content", [b"YQ== 1\n", b"YQ==\n", b"!! 0\n", b"YQ== 0 0\n"])
def test_a_file_that_is_no_list_of_ranks_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ftcore.Refused, match="cannot be read"):
        from_tiktoken(file, WORDS, Specials())


def test_special_tokens_that_do_not_follow_the_ranks_are_refused(file: Path) -> None:
    file.write_bytes(ranked([]))
    with pytest.raises(ftcore.Refused, match="has 256 ranks, and its special tokens do not follow"):
        from_tiktoken(file, WORDS, Specials(names={300: "<end>"}))
