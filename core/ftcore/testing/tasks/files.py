"""What a task promises of files: rows are read, refused by line or counted, and never lost, mistaken or fatal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcore.errors import Refused
from ftcore.hooks import Data, Row
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.labels import shown
from ftcore.testing.tasks.stage import (
    ODD_TEXTS,
    Case,
    Sheet,
    Tried,
    alone,
    cases,
    crowd,
    everything,
    file_of,
    leaves,
    line,
    loaded,
    prepare,
    present,
    reads_files,
    sheet_of,
    text_of,
    tokenizer_of,
    with_leaf,
    written,
)  # fmt: skip

BAD_TEXTS: Mapping[str, str] = {
    "nothing": "",
    "white space": " \t\n ",
    "a NUL character": "a\0b",
    "control characters": "a\x01\x1b[31mb\x7f",
    "a lone surrogate": "a\ud800b",
    "zero-width characters": "\u200b\ufeff",
    "20,000 characters": "rain " * 4000,
    "a word of 5,000 letters": "a" * 5000,
}
BAD_VALUES: Mapping[str, Any] = {
    "null": None, "true": True, "7": 7, "1e300": 1e300, "[]": [], "{}": {}, '["a", null]': ["a", None],
    '{"a": [{"b": []}]}': {"a": [{"b": []}]},
}  # fmt: skip
# What no text is; a task that takes it for one teaches "None" or "[]".
NO_TEXTS = ("null", "true", "[]", "{}", '["a", null]', '{"a": [{"b": []}]}')
BAD_LINES: Mapping[str, str] = {
    "an object that breaks off": '{"a": "b',
    "a list": "[1, 2]",
    "a text": '"x"',
    "a number": "3",
    "null": "null",
    "an empty object": "{}",
    "no JSON": "hello",
    "a Python value": "{'a': 'b'}",
    "strange keys": '{"zq": 1, "": null}',
    "brackets nested too deep": "[" * 50_000,
    "objects nested too deep": '{"a":' * 50_000 + "1" + "}" * 50_000,
}
# What is laid into a sound row, which may then be taken or refused.
ADDITIONS: Mapping[str, str] = {
    "a number of 5,000 digits": '"n": ' + "1" * 5000,
    "1e400": '"n": 1e400',
    "NaN": '"n": NaN',
    "an unknown key": '"unknown": {"deep": [[[]]]}',
    "a key that is empty": '"": ""',
}


@dataclass(frozen=True)
class Hostile:
    """A line that stands between two sound ones: `empty` where the text to learn is not there, `none` for a null."""

    what: str
    line: str | bytes
    empty: bool = False
    none: bool = False


def hostile_lines(bench: Bench) -> Iterator[Hostile]:
    """Every line that is tried."""
    yield from (Hostile(what, text) for what, text in BAD_LINES.items())
    for number, case in enumerate(cases(bench)):
        yield from _without_keys(case)
        yield from _laid_in(case)
        if not number:
            yield from _with_bad_texts(case)


def _without_keys(case: Case) -> Iterator[Hostile]:
    for key, held in case.row.items():
        texts = [leaf for _, leaf in leaves(held)]
        inside = bool(case.learned) and all(any(text in leaf for leaf in texts) for text in case.learned)
        rest = {name: value for name, value in case.row.items() if name != key}
        yield Hostile(f"a row without '{key}'", line(rest), inside)
        for name, value in BAD_VALUES.items():
            row = line({**case.row, key: value})
            yield Hostile(f"a row whose '{key}' is {name}", row, inside and name in NO_TEXTS, value is None)


def _laid_in(case: Case) -> Iterator[Hostile]:
    sound = line(case.row)
    yield from (Hostile(f"a row with {what}", f"{sound[:-1]}, {text}}}") for what, text in ADDITIONS.items())
    first = json.dumps(next(iter(case.row)))
    yield Hostile("a row with a key twice", f"{sound[:-1]}, {first}: null}}")
    yield Hostile("two rows on a line", f"{sound} {sound}")
    yield Hostile("a row that breaks off", sound[: len(sound) // 2])
    yield Hostile("a row with a raw control character", sound.replace(" ", "\x02", 1))


def _with_bad_texts(case: Case) -> Iterator[Hostile]:
    for place, leaf in leaves(case.row):
        where = ".".join(map(str, place))
        for what, text in BAD_TEXTS.items():
            row = with_leaf(case.row, place, text)
            yield Hostile(f"a row whose '{where}' is {what}", json.dumps(row))
        for key, value in (("null", None), ("7", 7), ("[]", [])):
            taught = (leaf,) == case.learned and key in NO_TEXTS
            row = json.dumps(with_leaf(case.row, place, value))
            yield Hostile(f"a row whose '{where}' is {key}", row, taught, value is None)


def named(file: Path, number: int, said: str) -> bool:
    """Whether a refusal names that line of that file."""
    return bool(re.search(rf"{re.escape(file.name)}:{number}\b", said))


def attempted(bench: Bench, file: Path | None, what: str, **settings: Any) -> Tried | str:
    """What the task makes of a file, or why it refuses it; Failed when it raises anything else."""
    try:
        return prepare(bench, file, **settings)
    except Refused as refused:
        return str(refused)
    except Exception as fault:
        raise Failed(
            f"{what} raises {type(fault).__name__}: {str(fault)[:120]}; refuse it with ftcore.Refused"
        ) from None


def check_hostile_rows_are_refused_by_line(task: object, bench: Bench | None = None) -> None:
    """A row that cannot be used is refused with its file and line, whatever is wrong with it; others are learned."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    sound, apart = _two(bench)
    usual = _weight(prepare(bench, file_of(bench, (sound, apart))))
    for hostile in hostile_lines(bench):
        file = written(bench, [line(sound.row), hostile.line, line(apart.row)])
        tried = attempted(bench, file, hostile.what)
        if isinstance(tried, str):
            _refused_by_line(file, hostile.what, tried)
        else:
            _became_a_row(bench, hostile, tried, usual)


def _two(bench: Bench) -> tuple[Case, Case]:
    """Two sound rows."""
    made = crowd(bench)
    return made[0], made[len(cases(bench)) % len(made)]


def _refused_by_line(file: Path, what: str, said: str) -> None:
    if not named(file, 2, said):
        raise Failed(f"{what} on line 2 is refused without the line: {shown(said)}; begin with FILE:LINE")
    if named(file, 1, said) or named(file, 3, said):
        raise Failed(f"{what} on line 2 is refused, and a sound line beside it too: {shown(said)}")


def _weight(tried: Tried) -> float:
    return sum(tried.data.collate([row]).weight for row in (*tried.train, *tried.held))


def _became_a_row(bench: Bench, hostile: Hostile, tried: Tried, usual: float) -> None:
    """What was not refused teaches something, within the vocabulary, and nothing that is no text."""
    what = hostile.what
    if hostile.empty:
        raise Failed(f"{what} has nothing to learn and is taken all the same; refuse it by its line")
    if _weight(tried) <= usual:
        raise Failed(f"{what} is neither refused nor learned from: it vanished; refuse it by its line")
    for row in tried.train:
        batch, ids = tried.data.collate([row]), tried.tokens(row)
        if hostile.none and "None" in text_of(tried, row):
            raise Failed(f"{what} is read as the text 'None'; refuse it by its line, or leave it out of the text")
        if not batch.weight > 0:
            raise Failed(f"{what} becomes a row without anything supervised; refuse it by its line")
        if max(ids, default=0) >= tried.loaded.vocab_size:
            raise Failed(f"{what} becomes a row with token {max(ids)}, and the model has {tried.loaded.vocab_size}")


def check_hostile_files_are_refused_by_name(task: object, bench: Bench | None = None) -> None:
    """A file that is missing, empty, blank or no text is refused by its name; blank lines and line ends do no harm."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    sound = line(_two(bench)[0].row).encode()
    for what, content in {
        "an empty file": b"",
        "a file of blank lines": b"\n  \n\n",
        "a file that is no UTF-8": sound + b"\n\xff\xfe\x00",
        "a file of zeros": b"\0" * 64,
        "a file that ends inside a character": sound + b"\n" + "雨".encode()[:2],
    }.items():
        file = bench.place("rows.jsonl")
        file.write_bytes(content)
        _refused_by_name(file, what, attempted(bench, file, what))
    missing = bench.place("missing.jsonl")
    _refused_by_name(missing, "a file that is not there", attempted(bench, missing, "a file that is not there"))
    usual = _weight(prepare(bench, written(bench, [sound, sound])))
    for what, lines in {
        "a blank line": [sound, b"", sound],
        "a line of spaces": [sound, b"   ", sound],
        "line ends of Windows": [sound + b"\r", sound + b"\r"],
        "a byte order mark": [b"\xef\xbb\xbf" + sound, sound],
        "a last line without an end": [sound, sound],
    }.items():
        file = written(bench, lines)
        if what.startswith("a last line"):
            file.write_bytes(file.read_bytes().rstrip())
        tried = attempted(bench, file, what)
        if isinstance(tried, str) and file.name not in tried:
            raise Failed(f"{what} is refused without the name of the file: {shown(tried)}")
        if isinstance(tried, Tried) and _weight(tried) != usual:
            raise Failed(f"{what} changes what is learned from the sound rows around it")


def _refused_by_name(file: Path, what: str, tried: Tried | str) -> None:
    if isinstance(tried, Tried):
        if tried.train:
            raise Failed(f"{what} is taken for rows; refuse it by its name")
    elif file.name not in tried:
        raise Failed(f"{what} is refused without its name: {shown(tried)}")


def check_held_out_rows_are_read_as_strictly(task: object, bench: Bench | None = None) -> None:
    """A bad row among those held out is refused by its line too, in training and when a finished run is evaluated."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    sound, apart = _two(bench)
    data = file_of(bench, (sound, apart))
    for what, text in list(BAD_LINES.items())[:3]:
        held = written(bench, [line(sound.row), text, line(apart.row)])
        for file, intent in ((data, "train"), (None, "infer")):
            tried = attempted(bench, file, f"{what} held out", eval_data=(str(held),), intent=intent)
            if isinstance(tried, Tried):
                raise Failed(f"{what} among the rows held out is left out in silence (intent '{intent}'); refuse it")
            _refused_by_line(held, f"{what} among the rows held out", tried)


def check_bad_rows_can_be_left_out(task: object, bench: Bench | None = None) -> None:
    """With --on-bad-row skip every sound row stays, every bad one is left out, and how many is counted or said."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    made = crowd(bench)
    bad = _refused_lines(bench)
    mixed: list[Case | str | bytes] = [*made]
    for place, text in enumerate(bad):
        mixed.insert((3 * place) % (len(mixed) + 1), text)
    mixed += bad[:1]
    file = written(bench, [line(one.row) if isinstance(one, Case) else one for one in mixed])
    sheet = Sheet(file, {number: one for number, one in enumerate(mixed, start=1) if isinstance(one, Case)})
    bad = [*bad, *bad[:1]]
    what = f"{len(bad)} bad rows among {len(made)} sound ones, with on_bad_row 'skip',"
    tried = attempted(bench, file, what, on_bad_row="skip")
    if isinstance(tried, str):
        raise Failed(f"{what} are refused: {shown(tried)}; leave the bad ones out")
    _all_there(tried, sheet, what)
    _told(tried, len(bad), what)
    tried = prepare(bench, None, eval_data=(str(file),), intent="infer", on_bad_row="skip")
    _all_there(tried, sheet, f"held out, {what}")
    _told(tried, len(bad), f"held out, {what}")


def _refused_lines(bench: Bench) -> list[str | bytes]:
    """Some lines that the task refuses."""
    sound, apart = _two(bench)
    found: list[str | bytes] = []
    for hostile in list(hostile_lines(bench))[:40]:
        if len(found) == 7:
            break
        file = written(bench, [line(sound.row), hostile.line, line(apart.row)])
        if isinstance(attempted(bench, file, hostile.what), str):
            found.append(hostile.line)
    return found


def _told(tried: Tried, number: int, what: str) -> None:
    """How many rows are left out is in the counts, or in a notice where the counts do not say."""
    if tried.left_out is None and not tried.mentions(number):
        raise Failed(f"{what} are left out in silence; count them as 'rows_left_out' and say so with run.say")
    if tried.left_out not in (None, number):
        raise Failed(f"{what} are counted as {tried.left_out} in 'rows_left_out'")


def _all_there(tried: Tried, sheet: Sheet, what: str) -> None:
    found = present(tried, [*tried.train, *tried.held], sheet)
    lost = {case.name: number for number, case in sheet.lines.items() if case.name not in found}
    if lost:
        raise Failed(f"{what}: {len(lost)} sound rows are lost, such as line {min(lost.values())}")


def check_every_row_is_accounted_for(task: object, bench: Bench | None = None) -> None:
    """Every row of a file is trained on, held out, or told to be left out, also one that comes twice."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    made = crowd(bench)
    alone, twice = sheet_of(bench, made), sheet_of(bench, (*made, made[0], made[1]))
    once = prepare(bench, alone.file)
    usual = present(once, once.train, alone)
    for policy in ("error", "skip"):
        tried = prepare(bench, twice.file, on_bad_row=policy)
        what = f"{len(made) + 2} sound rows, with on_bad_row '{policy}'"
        _all_there(tried, twice, what)
        found = present(tried, [*tried.train, *tried.held], twice)
        missing = sum(found[case.name] < 2 * usual[case.name] for case in made[:2])
        if missing and not tried.left_out and not tried.said:
            raise Failed(f"{what}: a row that comes twice is there once, and nothing says so; count what is left out")
        if tried.left_out and not missing:
            raise Failed(f"{what}: {tried.left_out} are counted as left out, and none is")
    share = prepare(bench, alone.file, eval_share=0.3)
    _all_there(share, alone, f"{len(made)} sound rows, with eval_share 0.3")
    _all_files(bench)


def _all_files(bench: Bench) -> None:
    """Every file that is named is read, and each to its end, however many rows it has."""
    one, two, many = (sheet_of(bench, crowd(bench, count, first)) for count, first in ((3, 200), (3, 210), (300, 300)))
    data = tuple(str(sheet.file) for sheet in (one, two, many))
    endless = replace(loaded(bench), max_positions=2**20)  # so that no window ends inside a name
    tried = prepare(bench, one.file, base=endless, data=data, eval_data=data[:2], max_length=2**20)
    for sheet in (one, two, many):
        found = present(tried, tried.train, sheet)
        lost = [case.name for case in sheet.lines.values() if case.name not in found]
        if lost:
            raise Failed(f"of three files, the rows of {sheet.file.name} are not all trained on: {len(lost)} are lost")
    if not all(present(tried, tried.held, sheet) for sheet in (one, two)):
        raise Failed("of two files of held-out rows, one is not held out")


def check_text_reaches_the_model_as_written(task: object, bench: Bench | None = None) -> None:
    """Whatever language, signs or braces a text has, the model reads and learns it as it is written."""
    bench = bench_of("task", task, bench)
    odd: list[tuple[str, str, Mapping[str, Any]]] = []
    for case in cases(bench)[:2]:
        plain = prepare(bench, file_of(bench, [case]))
        read = text_of(plain, plain.train[0])
        for place, leaf in leaves(case.row):
            if leaf.strip() and leaf.strip() in read:
                where = ".".join(map(str, place))
                texts = ((what, f"I say {text} now") for what, text in ODD_TEXTS.items())
                odd += [(f"{what} in '{where}'", text, with_leaf(case.row, place, text)) for what, text in texts]
    try:
        _as_written(bench, odd)
    except Failed:  # which of them it is shows when each is alone
        for one in odd:
            _as_written(bench, [one])


def _as_written(bench: Bench, odd: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    endless = replace(loaded(bench), max_positions=2**20)
    file, what = written(bench, [line(row) for _, _, row in odd]), odd[0][0] if odd else ""
    tried = attempted(bench, file, what, base=endless, max_length=2**20)
    if isinstance(tried, str):
        if len(odd) > 1:
            raise Failed(f"some of these are refused: {shown(tried)}")
        return
    read = " ".join(text_of(tried, row) for row in tried.train)
    for what, text, _ in odd:
        if text not in read:
            raise Failed(f"{what}: {shown(text)} is to be read, and the model reads {shown(read)}; keep it as it is")


def check_special_tokens_in_text_stay_text(task: object, bench: Bench | None = None) -> None:
    """A special token that is written out in a text is refused by its line, or read as the letters it is made of."""
    bench = bench_of("task", task, bench)
    for case in cases(bench)[:2]:
        plain = prepare(bench, file_of(bench, [case, case]))
        specials = tokenizer_of(plain).all_special_tokens
        for place, leaf in leaves(case.row):
            for special in specials:
                row = with_leaf(case.row, place, f"{leaf[:3]} {special} {leaf[3:]}")
                file = written(bench, [line(case.row), line(row)])
                tried = attempted(bench, file, f"a text with {special}")
                if isinstance(tried, str):
                    if not named(file, 2, tried):
                        raise Failed(f"a text with {special} is refused without its line: {shown(tried)}")
                elif _many(tried, special) > _many(plain, special):
                    where = ".".join(map(str, place))
                    raise Failed(
                        f"{special} written in '{where}' becomes the special token itself: who writes a row could end "
                        "an answer or speak as another; refuse such a row"
                    )


def _many(tried: Tried, special: str) -> int:
    token: Any = tokenizer_of(tried).convert_tokens_to_ids(special)
    return sum(tried.tokens(row).count(token) for row in tried.train)


def check_no_row_is_too_long(task: object, bench: Bench | None = None) -> None:
    """No row is longer than --max-length or than the model has positions, whether it is trained on or held out."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    base, usual = loaded(bench), everything(bench)
    widths = sorted({_width(usual, row) for row in usual.train})
    file, held = file_of(bench, crowd(bench)), (str(file_of(bench, crowd(bench, 6, 100))),)
    for most in {8, 24, widths[0] - 1, widths[len(widths) // 2] - 1, widths[-1] - 1}:
        for asked, positions in ((most, base.max_positions), (100_000, most)):
            given: dict[str, Any] = {"max_length": asked, "eval_data": held, "on_bad_row": "skip"}
            limited = replace(base, max_positions=positions)
            tried = attempted(bench, file, f"--max-length {asked}", base=limited, **given) if most > 1 else ""
            if not isinstance(tried, Tried):
                continue
            for row in (*tried.train, *tried.held):
                width = _width(tried, row)
                if width > most:
                    told = f"--max-length {asked}" if asked == most else f"a model of {most} positions"
                    raise Failed(f"{row.place} has {width} tokens with {told}; cut it or refuse it")


def _width(tried: Tried, row: Any) -> int:
    inputs = tried.data.collate([row]).inputs
    if tried.compares and "cu_seq_lens_q" in inputs:  # answers that are compared are each a text of their own
        return int(inputs["cu_seq_lens_q"].diff().max())
    widths = [inputs[name].shape[-1] for name in inputs if name.endswith("input_ids") or name == "labels"]
    return max(widths, default=row.size)


def check_truncation_is_told(task: object, bench: Bench | None = None) -> None:
    """A row that loses its answer to --max-length is refused or left out, and one that loses a part is counted."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    _what_fits_is_whole(bench)
    sound, apart = _two(bench)
    both = prepare(bench, file_of(bench, [sound, apart]))
    length = 4 + max(_width(both, row) for row in both.train[:2])
    for what, row in _long_rows(bench, sound):
        file = written(bench, [line(sound.row), line(row), line(apart.row)])
        tried = attempted(bench, file, what, max_length=length)
        if isinstance(tried, str):
            tried = attempted(bench, file, what, max_length=length, on_bad_row="skip")
            if isinstance(tried, str):
                raise Failed(f"{what} is refused with on_bad_row 'skip' too: {shown(tried)}; leave it out and count it")
            _nothing_empty(tried.data, tried.train, what, length)
        else:
            _nothing_lost_unnoticed(tried, prepare(bench, file), what, length)
        tried = attempted(bench, both.file, what, max_length=length, eval_data=(str(file),))
        if isinstance(tried, Tried):
            _nothing_empty(tried.data, tried.held, f"held out, {what}", length)


def _what_fits_is_whole(bench: Bench) -> None:
    """A row that is as long as may be is cut by nothing."""
    for case, whole in alone(bench)[:2]:
        (row, heard), *more = whole.readings
        if more or not heard.placed or whole.head != "causal-lm":
            continue
        beyond = max(one.position for one in heard.taught) == _width(whole, row) - 1
        length = _width(whole, row) + beyond  # where the last token is asked for and not read, it is one more
        tried = attempted(bench, file_of(bench, [case]), "a row", max_length=length)
        if isinstance(tried, str) or [one.size for one in tried.train] != [row.size]:
            raise Failed(f"a row of {length} tokens is cut or refused with --max-length {length}; it fits")


def _long_rows(bench: Bench, case: Case) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with one text grown far beyond the others: each text in turn."""
    for place, leaf in leaves(case.row):
        where = ".".join(map(str, place))
        row = with_leaf(case.row, place, f"{leaf} {'It rains. ' * 60}")
        if not isinstance(attempted(bench, written(bench, [line(row)]), "a long row"), str):
            yield f"a row whose '{where}' is longer than --max-length", row


def _nothing_empty(data: Data, rows: Sequence[Row], what: str, length: int) -> None:
    for row in rows:
        if not data.collate([row]).weight > 0:
            raise Failed(
                f"{what} {length} keeps nothing of its answer and is a row all the same; refuse it by its line"
            )


def _nothing_lost_unnoticed(tried: Tried, whole: Tried, what: str, length: int) -> None:
    _nothing_empty(tried.data, tried.train, what, length)
    lost = sum(row.size for row in whole.train) - sum(row.size for row in tried.train)
    told = tried.data.counts.get("rows_cut", 0) + tried.data.counts.get("rows_left_out", 0)
    if lost > 1 and not told and not tried.said:
        raise Failed(
            f"{what} {length} loses {lost} tokens and nothing tells; count it as 'rows_cut' or 'rows_left_out'"
        )
    cut = tried.data.counts.get("rows_cut")
    fewer = [one.size < other.size for one, other in zip(tried.train, whole.train, strict=False)]
    if cut is not None and len(tried.train) == len(whole.train) and cut != sum(fewer):
        raise Failed(f"{what} {length}: {sum(fewer)} rows are shorter than they were, and 'rows_cut' is {cut}")
    if not lost and told:
        raise Failed(f"{what} {length} loses nothing, and {told} rows are counted as cut or left out")
