"""Reading rows from files, knowing the line of each, and saying what is wrong with them."""

from __future__ import annotations

import codecs
import difflib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeAlias

from ftcore.errors import Refused
from ftcore.problems import BadRow, Problem, Problems, abridged, filled, refuse, settle, shown


@dataclass(frozen=True)
class Record:
    """One row and the line it begins on (of the Hub: its number), with a column where rows share a line."""

    fields: Mapping[str, object]
    source: str
    line: int
    column: int = 0

    @property
    def place(self) -> str:
        """The row's file and line, as an editor takes them."""
        return f"{self.source}:{self.line}:{self.column}" if self.column else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Document:
    """Running text, and the line it begins on."""

    text: str
    source: str
    line: int

    @property
    def place(self) -> str:
        """The document's file and line, as an editor takes them."""
        return f"{self.source}:{self.line}"


def read_records(sources: Sequence[str], problems: Problems) -> list[Record]:
    """Sound rows are returned in order, the others are problems; a file that cannot be read is refused."""
    return [record for source in sources for record in _records(source, problems)]


def iter_records(sources: Sequence[str], problems: Problems) -> Iterator[Record]:
    """Sound rows in order, read as they are asked for."""
    for source in sources:
        yield from _records(source, problems)


def weighted(spec: str) -> tuple[str, float | None]:
    """A source and the weight behind its colon, if there is one."""
    source, colon, weight = spec.rpartition(":")
    try:
        return (source, float(weight)) if colon and not Path(spec).exists() else (spec, None)
    except ValueError:
        return spec, None


def fingerprint(sources: Sequence[str]) -> str:
    """A digest of the contents of the sources."""
    import hashlib

    files = [Path(source) for source in sources]
    return hashlib.sha256(
        b"".join(file.read_bytes() if file.exists() else str(file).encode() for file in files)
    ).hexdigest()


def read_documents(sources: Sequence[str], separator: str | None, problems: Problems | None = None) -> list[Document]:
    """Texts are returned in order, with LF newlines; unsound ones are problems, or refused without them."""
    noted = Problems() if problems is None else problems
    documents = [document for source in sources for document in _documents(source, separator, noted)]
    if problems is None and len(noted):
        settle(noted, "error", len(documents))
    return documents


# --- sources ---------------------------------------------------------------------------------------------

_ROWS, _TEXT = (".json", ".jsonl"), (".txt",)
_UNREAD = (".csv", ".tsv", ".xls", ".xlsx", ".parquet", ".arrow", ".ndjson", ".yaml", ".md", ".gz", ".zip")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)

Row: TypeAlias = "tuple[int, int, object]"  # line, column or 0, the value or Problem that stands there


def _records(source: str, problems: Problems) -> Iterator[Record]:
    path = _local(source, _ROWS)
    place = source if path else f"hub:{source}"
    for line, column, value in _rows(source, _read(source, path)) if path else _hub_rows(source):
        record = Record(value if isinstance(value, dict) else {}, place, line, column)
        if isinstance(value, dict):
            yield record
        else:
            problems.add(replace(_unusable(value), place=record.place))


def _unusable(value: object) -> Problem:
    if isinstance(value, Problem):
        return value
    key = '"messages": ' if isinstance(value, list) else '"text": '
    return Problem("", "row", f"is {shown(value)}", f"put it in an object: {{{key}…}}")


def _documents(source: str, separator: str | None, problems: Problems) -> Iterator[Document]:
    path = _local(source, _ROWS + _TEXT)
    records: Iterable[Record] = _records(source, problems)
    if path and path.suffix.lower() in _TEXT:
        text = _read(source, path).replace("\r\n", "\n")
        records = (Record({"text": part}, source, line) for line, part in _parts(text, separator or ""))
    for record in records:
        try:
            yield Document(filled(record.fields, "text"), record.source, record.line)
        except BadRow as error:
            problems.add(replace(error.problem, place=record.place))


def _parts(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Lines that equal the separator part documents; without such lines it parts them wherever it stands."""
    alone = re.compile(rf"^[ \t]*{re.escape(separator)}[ \t]*$", re.MULTILINE)
    cuts = alone if "\n" not in separator and alone.search(text) else re.compile(re.escape(separator))
    spans = [match.span() for match in cuts.finditer(text)] if separator else []
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
    line, counted = 1, 0
    for start, end in zip(starts, ends, strict=True):
        part = text[start:end]
        if not part.strip():
            continue
        first = start + len(part) - len(part.lstrip("\n"))
        line, counted = line + text.count("\n", counted, first), first
        yield line, part.strip("\n")


def _local(source: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file a source names, or None for what can only be a dataset of the Hub."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        raise Refused(f"{source} is a directory; pass a file of it: {abridged(names) or 'it holds none'}.")
    if path.exists():
        if path.suffix.lower() in suffixes:
            return path
        task = "; running text is for a task that reads it" if path.suffix.lower() in _TEXT else ""
        kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
        raise Refused(f"{source} is {kind}, which is not read here; pass {' or '.join(suffixes)}{task}.")
    inside = len(path.parts) > 1 and path.parent.is_dir()
    if inside or path.suffix.lower() in _ROWS + _TEXT + _UNREAD or not _HUB_ID.fullmatch(source):
        raise Refused(f"{source} does not exist; {_nearest(path)}.")
    return None


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    names = sorted(child.name for child in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=1)
    where = "here" if path.parent == Path() else f"in {path.parent}"
    return f"the nearest name {where} is {close[0]}" if close else f"no name {where} is near it"


def _hub_rows(source: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset

        rows = load_dataset(source, split="train")
    except Exception as error:  # whatever the network, the Hub or the dataset's own files raise
        cause = " ".join(str(error).split())[:200]
        raise Refused(
            f"{source} is no file here ({_nearest(Path(source))}) and the Hugging Face Hub did not give it "
            f"({type(error).__name__}: {cause}); check the name, or pass a file."
        ) from error
    yield from ((number, 0, row) for number, row in enumerate(rows, start=1))


# --- bytes to text ---------------------------------------------------------------------------------------


def _read(source: str, path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refused(f"{source} cannot be read: {error.strerror}; check its permissions.") from error
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in data[:2]:
        _refuse_bytes(source, data, max(data[:2].find(b"\0"), 0), _remedy_for_utf16(source, data[:2]))
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        cut = error.end == len(data) and error.reason == "unexpected end of data"
        short = "the file ends inside a character: it was cut short, so copy it again whole"
        _refuse_bytes(source, data, error.start, short if cut else _remedy_for_bytes(source, data))
    if not text.strip():
        raise Refused(f"{source} is empty; pass a file with rows or text.")
    return text


def _refuse_bytes(source: str, data: bytes, at: int, remedy: str) -> NoReturn:
    line = data.count(b"\n", 0, at) + 1
    raise Refused(f"{source}:{line}: byte 0x{data[at]:02x} at offset {at} is not UTF-8 text; {remedy}.")


def _remedy_for_utf16(source: str, opening: bytes) -> str:
    if b"\0" not in opening:
        return _convert(source, "UTF-16")
    return _convert(source, "UTF-16LE" if opening.endswith(b"\0") else "UTF-16BE")


def _remedy_for_bytes(source: str, data: bytes) -> str:
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    foreign = [line for line in lines if not _decodes(line, "utf-8")]
    if not _paired(b"\n".join(foreign)) or not all(_decodes(line, "gb18030") for line in foreign):
        return "save it as UTF-8"
    if len(foreign) < 0.9 * len(lines):
        return f"{len(foreign)} of its lines are GB18030 and the others UTF-8: convert only those lines"
    return _convert(source, "GB18030")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        return bool(line.decode(encoding))
    except UnicodeDecodeError:
        return False


def _paired(text: bytes) -> bool:
    """Chinese text has its high bytes in pairs; a lone one is an accent or a quote of a Western code page."""
    high = len(re.findall(rb"[\x80-\xff]", text))
    return 2 * sum(len(pair) for pair in re.findall(rb"[\x81-\xfe][\x80-\xfe]", text)) > high


def _convert(source: str, encoding: str) -> str:
    path = Path(source)
    old, new = shlex.quote(source), shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))
    return f"the file is {encoding}: run `iconv -f {encoding} -t UTF-8 {old} > {new}` and pass the new file"


# --- text to rows ----------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        refuse("row", f"has the key {key[:60]!r} twice", "keep one of the two")
    return fields


def _finite(constant: str) -> NoReturn:
    refuse("row", f"holds {constant}, which is not JSON", "write a number, or null")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_finite)
_LENIENT = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_CONFLICT = re.compile(r"^(<<<<<<<|>>>>>>>)", re.MULTILINE)
_ROW_KEYS = {"instruction", "output", "messages", "conversations", "text", "role", "from"}


def _rows(source: str, text: str) -> Iterator[Row]:
    """A syntax error ends a list, whose later rows cannot be told apart, but of JSON lines only its line."""
    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        marker = f"{source}:{line}: a merge conflict marker ({conflict[0]}) stands where a row should"
        raise Refused(f"{marker}; keep one of the two sides and remove the markers.")
    empty = True
    try:
        for row in _line_rows(text) if _is_lines(text) else _value_rows(text):
            empty = False
            yield row
    except json.JSONDecodeError as error:
        place = f"{source}:{error.lineno}:{error.colno}"
        raise Refused(f"{Problem(place, 'JSON', *_guess(error, 'file'))}.") from None
    if empty:
        raise Refused(f"{source} holds an empty list; pass a file with rows.")


def _is_lines(text: str) -> bool:
    lines = (line for line in text.split("\n") if line.strip())
    first = next(lines)
    following = next(lines, None)
    if following is None:
        return False
    if _is_value(first):
        return True
    if first.lstrip().startswith("[") or _is_value(text):
        return False
    return any(line.startswith("{") and _is_value(line) for line in (following, *lines))


def _is_value(text: str) -> bool:
    try:
        return isinstance(_whole(_LENIENT, text), dict | list)
    except json.JSONDecodeError:
        return False


def _line_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, 0, _whole(_STRICT, line)
        except BadRow as error:
            yield number, 0, error.problem
        except json.JSONDecodeError as error:
            yield number, error.colno, Problem("", "JSON", *_guess(error, "line"))


def _value_rows(text: str) -> Iterator[Row]:
    line, newline, counted = 1, -1, 0
    for at, value in _values(text, _skip(text, 0)):
        passed = text.count("\n", counted, at)
        newline = text.rfind("\n", counted, at) if passed else newline
        yield line + passed, 0 if passed or not counted else at - newline, value
        line, counted = line + passed, at + 1


def _values(text: str, start: int) -> Iterator[tuple[int, object]]:
    if text.startswith("[", start):
        return _items(text, start, outermost=True)
    inner = _list_inside(text, start, _whole(_LENIENT, text))
    return iter([(start, _item(text, start)[0])]) if inner is None else _items(text, inner)


def _list_inside(text: str, at: int, value: object) -> int | None:
    """Where the rows of {"version": …, "data": [rows]} begin; None if the object is itself a row."""
    if not isinstance(value, dict) or _ROW_KEYS & value.keys():
        return None
    lists = [key for key, held in value.items() if isinstance(held, list)]
    rows = value[lists[0]] if len(lists) == 1 else []
    if not rows or not all(isinstance(row, dict) and not {"role", "from"} & row.keys() for row in rows):
        return None
    while True:
        key, at = _decode(_LENIENT, text, _skip(text, at + 1))
        at = _skip(text, _skip(text, at) + 1)
        if key == lists[0] and text.startswith("[", at):
            return at
        at = _skip(text, _decode(_LENIENT, text, at)[1])


def _items(text: str, at: int, *, outermost: bool = False) -> Iterator[tuple[int, object]]:
    at = _skip(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        value, end = _item(text, at)
        yield at, value
        at = _skip(text, end)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1) if more else at
    if outermost and _skip(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, at + 1))


def _item(text: str, at: int) -> tuple[object, int]:
    try:
        return _decode(_STRICT, text, at)
    except BadRow as error:
        return error.problem, _decode(_LENIENT, text, at)[1]


def _whole(decoder: json.JSONDecoder, text: str) -> object:
    value, end = _decode(decoder, text, _skip(text, 0))
    if _skip(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, end))
    return value


def _decode(decoder: json.JSONDecoder, text: str, at: int) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        raise json.JSONDecodeError(str(error), text, at) from None


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _guess(error: json.JSONDecodeError, whole: str) -> tuple[str, str]:
    text, at, kind = error.doc, _skip(error.doc, error.pos), error.msg
    behind, ahead = text[:at].rstrip()[-1:], text[at : at + 24].rstrip()
    found = f"breaks off at {ahead!r}"
    if not ahead or kind.startswith("Unterminated string"):
        short = {"file": "it was cut short, so copy it again whole", "line": "close its quotes and brackets"}
        return f"breaks off because the {whole} ends in the middle of a row", short[whole]
    if not behind and ahead[0] not in "{[":
        text_file = "the file is no JSON; running text goes in a .txt file, for a task that reads it"
        return found, text_file if whole == "file" else "make the line a row, or remove it"
    if ahead[0] == "'" or re.match("(None|True|False)\\b", ahead):
        return found, "this is a Python value; write it with json.dump, which uses double quotes"
    if (behind == "," and ahead[0] in "]}") or "trailing comma" in kind:
        return found, "remove the comma just before it"
    if kind.startswith("Invalid control character"):
        return found, r"write newlines and tabs inside a text as \n and \t"
    if kind.startswith("Invalid \\"):
        return found, r"write a backslash inside a text as \\"
    if kind == "Extra data":
        return found, "put each row on a line of its own without a comma, or all rows in one list [...]"
    if "delimiter" in kind:
        return found, "a comma, colon, bracket or escaped quote is missing just before it"
    return found, "mend the JSON there" if kind.startswith("Expecting") else f"mend it ({kind})"
