"""Tokenizers made from the vocabulary files of other libraries, without these libraries: byte pairs of two kinds."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Refused

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # the kinds of a piece


@dataclass(frozen=True)
class Piece:
    """An entry of a sentencepiece vocabulary; those of a higher score are merged first."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece vocabulary of byte pairs; where it `opens_blank`, every text begins with a blank."""

    pieces: tuple[Piece, ...]
    opens_blank: bool


@dataclass(frozen=True)
class Specials:
    """The tokens of a tokenizer that mean something: their names by number, which of them do what, and how it chats.

    `names` are laid over the vocabulary's own. `marks` are those of the vocabulary's own tokens that are no text.
    Every text begins with `begin`.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    begin: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    template: str | None = None
    padding_side: str = "right"


def from_sentencepiece(file: Path, specials: Specials) -> PreTrainedTokenizerBase:
    """The tokenizer of a sentencepiece file of byte pairs; Refused when the file asks for more than is exact here."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = read_pieces(file)
    pieces = {number: _text(number, piece) for number, piece in enumerate(vocabulary.pieces)} | dict(specials.names)
    mergeable = [p for n, p in enumerate(vocabulary.pieces) if p.kind == NORMAL and n not in specials.names]
    numbers = {text: number for number, text in pieces.items()}
    ranked = [piece.text for piece in sorted(mergeable, key=lambda piece: -piece.score)]
    unknown = next(piece.text for piece in vocabulary.pieces if piece.kind == UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(numbers, _merges(ranked, numbers), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    opening = [normalizers.Prepend(SPACE)] if vocabulary.opens_blank else []
    tokenizer.normalizer = normalizers.Sequence([*opening, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.opens_blank else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    whole = [n for n, piece in enumerate(vocabulary.pieces) if piece.kind in (UNKNOWN, CONTROL, USER)]
    for number in sorted({*whole, *specials.names}):
        text = number not in specials.names and vocabulary.pieces[number].kind == USER
        token = AddedToken(pieces[number], normalized=False, special=not text or pieces[number] in specials.marks)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return _wrapped(tokenizer, specials)


def from_tiktoken(file: Path, pattern: str, specials: Specials, *, nfc: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a file of ranked byte strings, which cuts texts by `pattern` before it merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = _letters()
    ranked = [("".join(letters[byte] for byte in token), len(token)) for token in read_ranks(file)]
    numbers = {text: number for number, (text, _) in enumerate(ranked)}
    tokenizer = Tokenizer(models.BPE(numbers, _merges([text for text, _ in ranked], numbers), ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = sorted(specials.names.items())
    if [number for number, _ in named] != list(range(len(numbers), len(numbers) + len(named))):
        raise Refused(
            f"the vocabulary '{file}' has {len(numbers)} ranks, and its special tokens do not follow from there; "
            "complete the checkpoint's tokenizer files"
        )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for _, name in named])
    return _wrapped(tokenizer, specials)


def added_tokens(folder: Path) -> dict[int, str]:
    """The tokens that a checkpoint's tokenizer_config.json adds or renames, by number; none where it says nothing."""
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {int(number): str(token["content"]) for number, token in fields.get("added_tokens_decoder", {}).items()}


def read_pieces(file: Path) -> Pieces:
    """The vocabulary in a sentencepiece file; Refused when it is none, or of another kind."""
    try:
        pieces, trainer, rules = _sections(file.read_bytes())
    except (OSError, ValueError, IndexError, KeyError, struct.error) as unreadable:
        raise Refused(f"the vocabulary '{file}' cannot be read: {unreadable}; download it again") from None
    kinds = {piece.kind for piece in pieces}
    if trainer.get(3, 1) != 2 or not {UNKNOWN, BYTE} <= kinds or UNUSED in kinds or rules.get(2) or rules.get(4, 1):
        raise Refused(
            f"the vocabulary '{file}' is not of byte pairs that fall back to bytes and leave texts as they are; "
            "put a tokenizer.json of the checkpoint's makers beside plain weights instead"
        )
    return Pieces(pieces, bool(rules.get(3, 1)))


def read_ranks(file: Path) -> list[bytes]:
    """The byte strings of a tiktoken file in the order of their ranks; Refused when a line is none or out of order."""
    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line]
        if [int(rank) for _, rank in lines] != list(range(len(lines))):
            raise ValueError("its ranks are not 0, 1, 2 …")
        return [base64.b64decode(token, validate=True) for token, _ in lines]
    except (OSError, ValueError) as unreadable:
        raise Refused(f"the vocabulary '{file}' cannot be read: {unreadable}; download it again") from None


def _sections(data: bytes) -> tuple[tuple[Piece, ...], dict[int, Any], dict[int, Any]]:
    """The pieces, what is said of their training and how texts are prepared."""
    pieces: list[Piece] = []
    said: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _fields(data):
        if number == 1:
            one = dict(_fields(value))
            score = struct.unpack("<f", one[2])[0] if 2 in one else 0.0
            pieces.append(Piece(one.get(1, b"").decode(), score, one.get(3, NORMAL)))
        elif number in said:
            said[number] = dict(_fields(value))
    return tuple(pieces), said[2], said[3]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message as protocol buffers encode it, by number."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _text(number: int, piece: Piece) -> str:
    """What a piece is called here: one of the user's has real blanks, and one that stands for NUL can never be met."""
    if piece.text == "\0":
        return f"<unreachable {number}>"
    return piece.text.replace(SPACE, " ") if piece.kind == USER else piece.text


def _merges(ranked: Sequence[str], numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair that makes an entry, in the order in which entries are made."""
    known = set(ranked)
    merges: list[tuple[str, str]] = []
    for text in ranked:
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [(left, right) for left, right in halves if left in known and right in known]
        merges += sorted(pairs, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
    return merges


def _letters() -> list[str]:
    """The letter that stands for each byte where byte pairs are written as text: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]


def _wrapped(tokenizer: Tokenizer, specials: Specials) -> PreTrainedTokenizerBase:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if specials.begin:
        numbers = [(name, tokenizer.token_to_id(name)) for name in specials.begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*specials.begin, "$A"], pair=[*specials.begin, "$A", "$B"], special_tokens=numbers
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=specials.bos,
        eos_token=specials.eos,
        pad_token=specials.pad,
        unk_token=specials.unk,
        padding_side=specials.padding_side,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = specials.template
    return wrapped
