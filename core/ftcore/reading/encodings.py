"""Bytes to text: the encoding is found over the whole file, and text that has more than one is refused."""

from __future__ import annotations

import codecs
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

from ftcore.errors import Refused
from ftcore.reading.unpacking import File, bytes_of

_CHUNK = 2**20
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF8: "UTF-8 with BOM",
    codecs.BOM_UTF16_LE: "UTF-16 LE",
    codecs.BOM_UTF16_BE: "UTF-16 BE",
}
_CODECS = {
    "UTF-8": "utf-8",
    "UTF-8 with BOM": "utf-8",
    "UTF-16 LE": "utf-16-le",
    "UTF-16 BE": "utf-16-be",
    "GB18030": "gb18030",
}


@dataclass(frozen=True)
class Text:
    """A file that is text throughout, with the encoding and the newlines it has."""

    file: File
    encoding: str
    newlines: str

    @property
    def source(self) -> str:
        """The file as it was named."""
        return self.file.source

    def lines(self) -> Iterator[str]:
        """The lines one after the other, each ending with LF (the last perhaps with nothing)."""
        end = "\r" if self.newlines == "CR" else "\r\n"
        with self._stream() as stream:
            for line in chain([stream.readline().removeprefix("\ufeff")], stream):
                yield line[: -len(end)] + "\n" if line.endswith(end) else line

    def whole(self) -> str:
        """All of it, with lines that end with LF or CRLF."""
        with self._stream() as stream:
            text = stream.read().removeprefix("\ufeff")
        return text.replace("\r", "\n") if self.newlines == "CR" else text

    @contextmanager
    def _stream(self) -> Iterator[io.TextIOWrapper]:
        with bytes_of(self.file) as stream:
            yield io.TextIOWrapper(stream, _CODECS[self.encoding], newline="\r" if self.newlines == "CR" else "\n")


def text_of(file: File) -> Text:
    """The whole file has been read once and is text in this encoding; Refused with the place where it is not."""
    encoding = _told(file)
    try:
        return _measured(file, encoding)
    except _Undecodable as error:
        cut = "the file ends inside a character: it was cut short, so copy it again whole"
        if encoding != "UTF-8":
            error.refuse(file, encoding, cut if error.cut else f"it is no {encoding}; save it as UTF-8")
        remedy = cut if error.cut else _remedy_unless_chinese(file)
        if remedy:
            error.refuse(file, encoding, remedy)
    return _measured(file, "GB18030")


def _told(file: File) -> str:
    """The encoding that the first bytes name; Refused for one that is not read."""
    with bytes_of(file) as stream:
        head = stream.read(4)
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "UTF-8")
    if marked.startswith("UTF-32"):
        _Undecodable(0, 1, head[0], cut=False).refuse(file, "UTF-8", _convert(file, marked))
    if marked == "UTF-8" and b"\0" in head[:2]:
        at = head.find(b"\0")
        remedy = _convert(file, "UTF-16BE" if at == 0 else "UTF-16LE")
        _Undecodable(at, 1, 0, cut=False).refuse(file, "UTF-8", remedy)
    return marked


class _Undecodable(Exception):
    """A byte that is no text in the encoding that was tried."""

    def __init__(self, at: int, line: int, byte: int, *, cut: bool) -> None:
        super().__init__(at, line, byte)
        self.at, self.line, self.byte, self.cut = at, line, byte, cut

    def refuse(self, file: File, encoding: str, remedy: str) -> NoReturn:
        what = f"byte 0x{self.byte:02x} at offset {self.at} is not {encoding.removesuffix(' with BOM')} text"
        raise Refused(f"{file.source}:{self.line}: {what}; {remedy}.") from None


def _measured(file: File, encoding: str) -> Text:
    """The text with its newlines counted; _Undecodable where it is not in `encoding`."""
    lines = pairs = returns = 0
    blank, last = True, ""
    for text in _decoded(file, encoding):
        lines += text.count("\n")
        returns += text.count("\r")
        pairs += (last + text).count("\r\n")
        blank, last = blank and not text.strip("\ufeff \t\r\n"), text[-1:]
    if blank:
        raise Refused(f"{file.source} is empty; pass a file with rows or text.")
    return Text(file, encoding, _newlines(lines, pairs, returns))


def _newlines(lines: int, pairs: int, returns: int) -> str:
    if not lines and returns:
        return "CR"
    return "LF and CRLF" if 0 < pairs < lines else "CRLF" if pairs else "LF"


def _decoded(file: File, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(_CODECS[encoding])()
    before, line = 0, 1
    with bytes_of(file) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                start = before + len(chunk) - len(error.object)
                line += error.object[: error.start].decode(_CODECS[encoding]).count("\n")
                cut = not chunk and error.end == len(error.object)
                raise _Undecodable(start + error.start, line, error.object[error.start], cut=cut) from None
            yield text
            if not chunk:
                return
            before, line = before + len(chunk), line + text.count("\n")


# --- GB18030, or what else ---------------------------------------------------------------------------------

_CHARACTERS = re.compile(rb"[\x81-\xfe](?:[\x40-\x7e\x80-\xfe]|[0-9][\x81-\xfe][0-9])")
_HIGH = re.compile(rb"[\x80-\xff]")


@dataclass
class _Tally:
    """What the lines of a file that is not UTF-8 are."""

    lines: int = 0
    foreign: int = 0
    surely_utf8: int = 0
    chinese: bool = True
    cut: bool = False
    high: int = 0
    paired: int = 0
    characters: int = 0
    late: int = 0
    kana: int = 0

    def add(self, line: bytes) -> None:
        """A line with other bytes than ASCII is counted."""
        self.lines += 1
        if _decodes(line, "utf-8"):
            self.surely_utf8 += len(_HIGH.findall(line)) >= 18  # so many bytes are UTF-8 by no accident
            return
        self.foreign += 1
        if not _decodes(line, "gb18030"):
            self.cut = self.chinese and not line.endswith(b"\n") and _decodes(line[:-1], "gb18030")
            self.chinese = False
            return
        found = _CHARACTERS.findall(line)
        self.high += len(_HIGH.findall(line))
        self.paired += sum(len(character) for character in found if character[1] >= 0x80 or len(character) == 4)
        self.characters += len(found)
        self.late += sum(0xC9 <= character[0] <= 0xD7 and character[1] >= 0xA1 for character in found)
        self.kana += sum(character[0] in (0xA4, 0xA5) and character[1] >= 0xA1 for character in found)

    @property
    def likely(self) -> bool:
        """Chinese has its high bytes in pairs, where a Western page has lone ones; of its characters a good part are
        the common ones whose sounds come late in the alphabet, where Korean and Big5 have few; and it has no kana."""
        if not self.chinese or 2 * self.paired <= self.high:
            return False
        return self.characters < 20 or (self.late >= 0.1 * self.characters and self.kana < 0.1 * self.characters)


def _remedy_unless_chinese(file: File) -> str | None:
    """What to do with a file that is not UTF-8, or None when it is GB18030."""
    tally = _Tally()
    with bytes_of(file) as stream:
        for line in stream:
            if not line.isascii():
                tally.add(line)
    if tally.cut:
        return "the file ends inside a character of GB18030: it was cut short, so copy it again whole"
    if not tally.likely:
        return "save it as UTF-8"
    if tally.surely_utf8 or tally.foreign < 0.9 * tally.lines:
        return f"{tally.foreign} of its lines are GB18030 and the others UTF-8: convert only those lines"
    return None


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        return bool(line.decode(encoding))
    except UnicodeDecodeError:
        return False


def _convert(file: File, encoding: str) -> str:
    if file.packing:
        return f"the file is {encoding}: unpack it and save it as UTF-8"
    path = Path(file.source)
    old, new = shlex.quote(file.source), shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))
    return f"the file is {encoding}: run `iconv -f {encoding} -t UTF-8 {old} > {new}` and pass the new file"
