"""The rows of a task: every record of its files encoded once, kept for the next run, and parted by what it is for."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ftcore import tables
from ftcore.batches import TokenRow
from ftcore.declaring import declared, dump
from ftcore.discovery import code_of
from ftcore.errors import Refused
from ftcore.hooks import Loaded, Row, Run
from ftcore.problems import BadRow, Problem, Problems, settle
from ftcore.records import Layout, Record, fingerprint, iter_records, weighted
from ftcore.seeds import permuted
from ftcore.settings import form_of, layout_of
from ftcore.shapes import Form, mended, reshaped
from ftcore.tables import Array, View

R = TypeVar("R", bound=Row)
S = TypeVar("S")  # what a file is read as: records, or documents
WORTH_KEEPING = 2**20  # bytes of files whose encoded rows are kept without being asked to
UNKNOWN = 0.2  # share of unknown tokens above which a row is not of the tokenizer's language
READING = ("max_length", "on_bad_row", "sheet", "header_row", "columns", "row_template", "data_format")


def counted(row: TokenRow) -> Mapping[str, int]:
    """What is counted of a row of tokens."""
    return {"tokens": row.size, "supervised_tokens": row.supervised}


@dataclass(frozen=True)
class Reading(Generic[S, R]):
    """How a task reads: `encode` makes the rows of one record, or raises BadRow; `kind` is their class.

    `records` reads a source; `sample` are the task's own files of rows to train on and to hold out, used when none are
    named; `facts` is what is counted of a row.
    """

    task: object
    encode: Callable[[S], Iterable[R]]
    kind: type[R]
    sample: tuple[Path, Path] | None = None
    facts: Callable[[R], Mapping[str, int]] = field(default=counted)  # type: ignore[assignment]
    records: Callable[[Sequence[str], Problems, Layout], Iterator[S]] = field(default=iter_records)  # type: ignore[assignment]


@dataclass(frozen=True)
class Rows(Generic[R]):
    """The rows to train on and those held out, what was counted of the former, and the share of each source."""

    train: View[R]
    eval: View[R]
    counts: Mapping[str, int]
    shares: tuple[tuple[int, int], ...] = ()
    built_in: bool = False


def read(run: Run, loaded: Loaded, reading: Reading[S, R]) -> Rows[R]:
    """Every sound row of the run's files; the others stop the run, or are counted and left out when asked for."""
    settings, problems = run.settings, Problems()
    built_in = not settings.data and not (run.intent in ("infer", "predict") and settings.eval_data)
    if built_in and reading.sample is None:
        raise Refused("this task has no rows of its own; name a file with --data")
    if built_in:
        run.say("no --data given: the task's built-in sample is used; pass --data FILE for your own rows")
    sample = tuple(str(file) for file in reading.sample or ())
    trained = _sources(run, loaded, reading, sample[:1] if built_in else settings.data, problems)
    held = sample[1:] if built_in and not settings.eval_share else ()
    named = _sources(run, loaded, reading, settings.eval_data or held, problems)
    training, apart = tables.all_of([table for table, _ in trained]), tables.all_of([table for table, _ in named])
    if not len(apart):
        training, apart = _parted(training, settings.eval_share, settings.seed)
    if built_in or settings.data or settings.eval_data:
        notice = settle(problems, settings.on_bad_row, len(training) + len(apart))
        if notice:
            run.say(notice)
    counts = {"rows": len(training), "rows_left_out": len(problems), "duplicates": _twins(run, training)}
    counts |= {"held_out_rows_trained_on": _trained_too(run, training, apart)}
    counts |= {name: training.total(name) for name in training.facts}
    of_source = [int((training.table == number).sum()) for number in range(len(trained))]
    return Rows(training, apart, counts, shares_of([weight for _, weight in trained], of_source), built_in)


def records_of(run: Run, sample: Path) -> Iterator[Record]:
    """The training files' records in the form that is asked for, or those of the `sample`, for `fill_options` to see.

    Rows that cannot be read are left out; they are refused when the run reads them.
    """
    sources, form = [weighted(spec)[0] for spec in run.settings.data] or [str(sample)], form_of(run.settings)
    for record in iter_records(sources, Problems(), layout_of(run.settings)):
        with suppress(BadRow):
            yield reshaped(record, form)


# --- one source ------------------------------------------------------------------------------------------


def _sources(
    run: Run, loaded: Loaded, reading: Reading[S, R], specs: Sequence[str], problems: Problems
) -> list[tuple[tables.Table[R], float | None]]:
    named = [weighted(spec) for spec in specs]
    weights = [weight for _, weight in named]
    if None in weights and any(weight is not None for weight in weights):
        bare = next(source for source, weight in named if weight is None)
        raise Refused(f"some of the data have weights, and {bare} has none; give each one, as in --data {bare}:0.5")
    return [(_table(run, loaded, reading, source, problems), weight) for source, weight in named]


def _table(run: Run, loaded: Loaded, reading: Reading[S, R], source: str, problems: Problems) -> tables.Table[R]:
    """The encoded rows of one source: those that a former run kept, or new ones."""
    large = _bytes_of(source) >= WORTH_KEEPING
    root = _root(run, large=large)
    if root is None:
        encoded = _encoded(run, loaded, reading, source, problems)
        return tables.passing(encoded, reading.kind, reading.facts) if large else _held(encoded, reading)
    folder = root / _key(run, loaded, reading, source)
    if not (folder / tables.META).exists():
        _keep(folder, run, loaded, reading, source)
        run.say(f"the tokens of {source} are kept in {folder} for the next run; --cache off keeps none")
    told = json.loads((folder / tables.META).read_text(encoding="utf-8"))
    for entry in told["problems"]:
        problems.add(Problem(**entry))
    for notice in told["notices"]:
        problems.note(notice)
    return tables.opened(folder, reading.kind)


def _held(encoded: Iterator[tables.Encoded], reading: Reading[S, R]) -> tables.Table[R]:
    return tables.in_memory(encoded, reading.facts)


def _keep(folder: Path, run: Run, loaded: Loaded, reading: Reading[S, R], source: str) -> None:
    """`folder` appears whole or not at all; of two runs that make it at once the first wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as made:
        staged, problems = Path(made) / "rows", Problems()
        staged.mkdir()
        tables.write(staged, _encoded(run, loaded, reading, source, problems), reading.facts)
        found = [
            {"place": p.place, "field": p.field, "found": p.found, "remedy": p.remedy} for p in problems.everything
        ]
        told = {"source": source, "problems": found, "notices": problems.notices()}
        (staged / tables.META).write_text(json.dumps(told), encoding="utf-8")
        try:
            staged.rename(folder)
        except OSError:
            if not (folder / tables.META).exists():
                raise


def _encoded(
    run: Run, loaded: Loaded, reading: Reading[S, R], source: str, problems: Problems
) -> Iterator[tables.Encoded]:
    """Each sound row with the number of its record."""
    form = form_of(run.settings)
    for number, record in enumerate(reading.records([source], problems, layout_of(run.settings))):
        try:
            made = list(reading.encode(_as_asked(record, form, problems)))
            for row in made:
                check(row, loaded, answered=run.intent != "predict")
        except BadRow as bad:
            place = bad.problem.place or getattr(record, "place", source)
            problems.add(replace(bad.problem, place=place))
            continue
        for row in made:
            yield number, row


def _as_asked(record: Any, form: Form, problems: Problems) -> Any:
    """The record in the form that the settings ask for; what is read otherwise than it is written is noted."""
    if not isinstance(record, Record):
        return record
    asked = reshaped(record, form)
    if note := mended(asked.fields)[1]:
        problems.note(f"{record.source}: {note}")
    return asked


def check(row: Row, loaded: Loaded, *, answered: bool = True) -> None:
    """BadRow when the row holds a token that the model lacks, too many unknown ones, or, of an answer, nothing."""
    for name, ids in _tokens_of(row):
        if len(ids) and int(ids.max()) >= loaded.vocab_size:
            found = f"has the token {int(ids.max())}, and the model has {loaded.vocab_size}"
            raise BadRow(Problem("", name, found, "the tokenizer does not belong to this checkpoint"))
        unknown = getattr(loaded.tokenizer, "unk_token_id", None)
        strange = int((ids == unknown).sum()) if unknown is not None else 0
        if strange > UNKNOWN * len(ids):
            found = f"has {strange} of {len(ids)} tokens that the tokenizer does not know"
            raise BadRow(Problem("", "text", found, "use a checkpoint of its language, or take the row out"))
    if answered and isinstance(row, TokenRow) and not row.supervised:
        found = f"gives the model nothing to predict: {row.size} tokens, none of them supervised"
        raise BadRow(Problem("", "row", found, "give it an answer that --max-length holds"))


def _tokens_of(row: Row) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for one in fields(row):  # type: ignore[arg-type]
        if one.name.endswith("input_ids"):
            yield one.name, getattr(row, one.name)


# --- what is kept ----------------------------------------------------------------------------------------


def _root(run: Run, *, large: bool) -> Path | None:
    """The directory of encoded rows, or None where none are kept."""
    asked = run.settings.cache
    if asked == "off" or (asked == "auto" and not large):
        return None
    if asked != "auto":
        return Path(asked).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ftcore" / "rows"


def _bytes_of(source: str) -> int:
    """Bytes of a file, of all files of a directory or that a pattern names."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.stat().st_size
    files = path.rglob("*") if path.is_dir() else (Path(name) for name in glob(str(path), recursive=True))
    return sum(file.stat().st_size for file in files if file.is_file())


def _key(run: Run, loaded: Loaded, reading: Reading[S, R], source: str) -> str:
    """What the encoded rows of a source depend on: its contents, the tokenizer, the task and the options."""
    settings = dump(run.settings)
    made_of = [
        source,
        fingerprint([source]),
        *(_contents(settings.get(name)) for name in READING),
        [loaded.max_positions, loaded.vocab_size, loaded.stop_ids, run.head, run.intent == "predict"],
        _tokenizer_digest(loaded.tokenizer),
        [type(reading.task).__qualname__, reading.kind.__qualname__],
        code_of(reading.task) or "",
        dump(reading.task) if declared(type(reading.task)) else {},
        _own_code(),
    ]
    return hashlib.sha256(json.dumps(made_of, default=str, sort_keys=True).encode()).hexdigest()[:32]


def _contents(value: object) -> object:
    """The text of the file that an option names, or the option itself."""
    path = Path(value) if isinstance(value, str) and value else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else value


def _tokenizer_digest(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    described = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode()).hexdigest()


@cache
def _own_code() -> str:
    """A digest of the core's modules, and the library of tokenizers: others may read and encode otherwise."""
    hashed = hashlib.sha256(version("tokenizers").encode())
    for folder in ("", "reading", "shapes"):
        for file in sorted((Path(__file__).parent / folder).glob("*.py")):
            hashed.update(file.read_bytes())
    return hashed.hexdigest()


# --- parted by what they are for -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Records:
    """For each row the record that it came from, counted from 0, and for each record what equals it."""

    of: Array
    alike: Array

    @property
    def distinct(self) -> bool:
        """Each row is a record, and none equals another."""
        return self.alike is self.of


def _records(rows: View[R]) -> _Records:
    """Records are alike when their rows have the same keys in the same order."""
    number = rows.column(tables.RECORDS)
    begins = np.r_[True, (number[1:] != number[:-1]) | (rows.table[1:] != rows.table[:-1])]
    of, keys = np.cumsum(begins, dtype=np.int32) - 1, rows.briefs()
    starts = np.flatnonzero(begins)
    if len(starts) < len(keys):
        keys = np.add.reduceat(keys * (2 * (np.arange(len(keys)) - starts[of]) + 1).astype(np.uint64), starts)
    if len(keys) == len(of) and _differ(keys):
        return _Records(of, of)
    return _Records(of, np.unique(keys, return_inverse=True)[1].reshape(-1))


def _differ(keys: Array) -> bool:
    """No two of them are equal."""
    in_order = np.sort(keys)
    return bool((in_order[1:] != in_order[:-1]).all())


def _parted(rows: View[R], share: float, seed: int) -> tuple[View[R], View[R]]:
    """A share of the rows held out, drawn by the seed; rows of one record, and copies, are never parted."""
    count = round(share * len(rows))
    if not count:
        return rows, rows[:0]
    shuffled, records = permuted(len(rows), seed, "held out"), _records(rows)
    if records.distinct:
        apart = np.zeros(len(rows), dtype=np.bool_)
        apart[shuffled[:count]] = True
    else:
        group = records.alike[records.of]
        drawn = group[shuffled]
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        enough = int(np.searchsorted(np.cumsum(np.bincount(group)[drawn]), count)) + 1
        apart = np.isin(group, drawn[:enough])
    return rows.where(~apart), rows.where(apart)


def _trained_too(run: Run, training: View[R], apart: View[R]) -> int:
    """How many held-out rows are trained on too, which flatters what is measured on them; the first is named."""
    held, alike = apart.keys(), np.flatnonzero(_among(np.sort(apart.briefs()), training.briefs()))[::-1]
    first = {key: int(index) for key, index in zip(training.where(alike).keys(), alike, strict=True)}
    shared = [index for index, key in enumerate(held) if key in first]
    if shared:
        one, other = apart[shared[0]].place, training[first[held[shared[0]]]].place
        run.say(
            f"{len(shared)} of {len(apart)} held-out rows are trained on too, the first {one} as {other}: what is "
            "measured on them is no proof; hold out others"
        )
    return len(shared)


def _among(known: Array, keys: Array) -> Array:
    """Whether each key is one of those known, which are in order."""
    if not len(known):
        return np.zeros(len(keys), dtype=np.bool_)
    found: Array = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found


def _twins(run: Run, rows: View[R]) -> int:
    """How many records are copies of one before them; the first is named."""
    if not len(rows):
        return 0
    records = _records(rows)
    if records.distinct:
        return 0
    first = np.unique(records.alike, return_index=True)[1]
    copies = np.flatnonzero(first[records.alike] != np.arange(len(records.alike)))
    if len(copies):
        pair = [int(np.flatnonzero(records.of == one)[0]) for one in (copies[0], first[records.alike[copies[0]]])]
        one, other = (rows[index].place for index in pair)
        run.say(f"{len(copies)} rows are copies of others, the first {one} of {other}; they are trained on as they are")
    return len(copies)


def shares_of(weights: Sequence[float | None], counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """For each source its rows and how many of them an epoch takes, which is as long as it is without weights."""
    if not any(weight is not None for weight in weights):
        return ()
    whole = sum(weight or 0 for weight in weights)
    return tuple(
        (count, round((weight or 0) / whole * sum(counts)) if count else 0)
        for count, weight in zip(counts, weights, strict=True)
    )
