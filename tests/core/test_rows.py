"""Rows are the same whether they are encoded, kept or found kept; what is kept is never stale, half or too large."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ftcore
import numpy as np
import pytest
from ftcore import tables
from ftcore.batches import Order, TokenRow, digest, row_key, sizes_of, token_row
from ftcore.families import read_tokenizer
from ftcore.hooks import Intent, Loaded, Run
from ftcore.problems import filled
from ftcore.records import Record
from ftcore.rows import Reading, Rows, read
from ftcore.settings import Settings
from torch import nn

TEXTS = (
    "The cat sat by the door.",
    "小狗去找它的球。",
    "A small dog ran.",
    "Lily said hello.",
    "It rains.",
    "He smiled.",
)
WORDS = """
    from ftcore import options
    from ftcore.batches import token_row

    @options
    class Words:
        shift: int = 0

        def encode(self, record):
            ids = [ord(letter) % 200 + {extra} + self.shift for letter in record.fields["text"]]
            yield token_row(ids, ids, record.place)
"""


@dataclass(frozen=True)
class Halves:
    """A task that makes a row of each half of a text."""

    tokenizer: Any

    def encode(self, record: Record) -> Iterator[TokenRow]:
        """Both halves; BadRow for a row without a text."""
        text = filled(record.fields, "text")
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            ids = self.tokenizer(part, add_special_tokens=False)["input_ids"]
            yield token_row(ids, ids, record.place)


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    """A tokenizer beside no model."""
    tokenizer = read_tokenizer(str(checkpoint("qwen2")))
    assert tokenizer is not None
    return Loaded(nn.Identity(), tokenizer, {}, str(checkpoint("qwen2")), 256, len(tokenizer))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where rows are kept."""
    return tmp_path / "cache"


def written(file: Path, texts: Sequence[object]) -> Path:
    """A JSONL file of these texts."""
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def halves(loaded: Loaded, said: list[str] | None = None, intent: Intent = "train", **keys: Any) -> Rows[TokenRow]:
    """The rows of a run."""
    run = Run(Settings(**keys), intent, "causal-lm", say=(said if said is not None else []).append)
    task = Halves(loaded.tokenizer)
    return read(run, loaded, Reading(task, task.encode, TokenRow))


def kept(cache: Path) -> set[str]:
    """The names of what is kept."""
    return {path.name for path in cache.iterdir()} if cache.is_dir() else set()


def plain(rows: Sequence[TokenRow]) -> list[tuple[bytes, str]]:
    """What rows are, and where they came from."""
    return [(row.identity(), row.place) for row in rows]


# --- kept rows -------------------------------------------------------------------------------------------


def test_rows_are_the_same_from_memory_from_a_new_cache_and_from_a_kept_one(
    loaded: Loaded, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(written(tmp_path / "rows.jsonl", [*TEXTS, 3, TEXTS[0]]))
    keys: dict[str, Any] = {"data": (file,), "eval_data": (file,), "on_bad_row": "skip"}
    said: list[list[str]] = [[], [], [], []]
    found = [
        halves(loaded, said[0], cache="off", **keys),
        halves(loaded, said[1], cache=str(cache), **keys),
        halves(loaded, said[2], cache=str(cache), **keys),
    ]
    monkeypatch.setattr("ftcore.rows.WORTH_KEEPING", 1)  # a large file of which nothing is to be kept
    found.append(halves(loaded, said[3], cache="off", **keys))
    for rows in found[1:]:
        assert plain(rows.train) == plain(found[0].train)
        assert plain(rows.eval) == plain(found[0].eval)
        assert rows.counts == found[0].counts
        assert digest(rows.train) == digest(found[0].train)
        assert list(sizes_of(rows.train)) == [row.size for row in found[0].train]
    assert len(kept(cache)) == 1
    assert any("are kept in" in line for line in said[1])
    told = [[line for line in lines if "are kept in" not in line] for lines in said]
    assert told[0] == told[1] == told[2] == told[3]
    assert found[0].counts["rows"] == 14
    assert found[0].counts["rows_left_out"] == 2  # the bad row, to train on and held out
    assert found[0].counts["tokens"] == sum(row.size for row in found[0].train)
    assert found[0].counts["supervised_tokens"] == sum(row.supervised for row in found[0].train)


def test_a_rows_key_is_that_of_its_contents(loaded: Loaded, tmp_path: Path) -> None:
    rows = halves(loaded, data=(str(written(tmp_path / "rows.jsonl", TEXTS)),), cache="off").train
    assert list(rows.keys()) == [row_key(row)[: tables.KEY] for row in rows]
    assert list(rows[3:5].keys()) == list(rows.keys())[3:5]


def test_what_rows_depend_on_makes_another_key(loaded: Loaded, tmp_path: Path, cache: Path) -> None:
    file = written(tmp_path / "rows.jsonl", TEXTS)

    def count(loaded: Loaded = loaded, intent: Intent = "train", **keys: Any) -> int:
        halves(loaded, intent=intent, **{"data": (str(file),), "cache": str(cache), **keys})
        return len(kept(cache))

    assert count() == count() == count(batch_size=3, seed=5) == 1
    assert count(max_length=77) == 2
    assert count(replace(loaded, max_positions=99)) == 3
    assert count(intent="predict", eval_data=(str(file),)) == 4
    tokenizer = read_tokenizer(loaded.checkpoint)
    assert tokenizer is not None
    other = replace(loaded, tokenizer=tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert count(other) == 5
    tokenizer.add_tokens(["小猫"])
    assert count(other) == 6
    file.write_text(file.read_text(encoding="utf-8").replace("cat", "dog"), encoding="utf-8")
    assert count(other) == 7
    assert count(other) == 7


def test_another_option_or_another_code_of_the_task_makes_another_key(
    loaded: Loaded, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "rows.jsonl", TEXTS)

    def module(extra: int) -> ModuleType:
        code = "\n".join(line[4:] for line in WORDS.splitlines())
        (tmp_path / "word_task.py").write_text(code.replace("{extra}", str(extra)), encoding="utf-8")
        made = ModuleType("word_task")
        made.__file__ = str(tmp_path / "word_task.py")
        monkeypatch.setitem(sys.modules, "word_task", made)
        exec(compile(Path(made.__file__).read_text(encoding="utf-8"), made.__file__, "exec"), made.__dict__)
        return made

    def first(task: Any) -> int:
        run = Run(Settings(data=(str(file),), cache=str(cache)), "train", "causal-lm")
        return int(read(run, loaded, Reading(task, task.encode, TokenRow)).train[0].input_ids[0])

    old = module(0)
    assert first(old.Words()) == first(old.Words()) == ord("T")
    assert first(old.Words(shift=2)) == ord("T") + 2
    assert len(kept(cache)) == 2
    assert first(module(1).Words()) == ord("T") + 1
    assert len(kept(cache)) == 3


def test_runs_that_keep_the_same_rows_at_once_all_find_them_whole(loaded: Loaded, tmp_path: Path, cache: Path) -> None:
    file = str(written(tmp_path / "rows.jsonl", TEXTS * 40))
    wanted = plain(halves(loaded, data=(file,), cache="off").train)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(halves, loaded, data=(file,), cache=str(cache)) for _ in range(4)]
        assert all(plain(run.result().train) == wanted for run in runs)
    assert len(kept(cache)) == 1  # and nothing half-written beside it


def test_what_a_killed_run_left_behind_is_never_read(
    loaded: Loaded, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(written(tmp_path / "rows.jsonl", TEXTS))

    class Killed(BaseException):
        """What no handler catches."""

    def write(folder: Path, rows: Any, facts: Any) -> None:
        (folder / tables.ROWS).write_bytes(b"half")
        raise Killed

    @contextmanager
    def left_behind(prefix: str, dir: Path, **keys: Any) -> Iterator[str]:
        yield tempfile.mkdtemp(prefix=prefix, dir=dir)  # nobody is left to tidy up

    with monkeypatch.context() as broken:
        broken.setattr("ftcore.rows.tables.write", write)
        broken.setattr("tempfile.TemporaryDirectory", left_behind)
        with pytest.raises(Killed):
            halves(loaded, data=(file,), cache=str(cache))
    assert kept(cache)
    assert all(name.startswith(".") for name in kept(cache))
    assert plain(halves(loaded, data=(file,), cache=str(cache)).train) == plain(
        halves(loaded, data=(file,), cache="off").train
    )


def test_small_files_are_kept_only_when_a_directory_is_named(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    small, large = written(tmp_path / "s.jsonl", TEXTS), written(tmp_path / "l.jsonl", ["x" * 1000] * 1100)
    halves(loaded, data=(str(small),))
    halves(loaded, data=(str(large),), cache="off")
    assert not (tmp_path / "home").exists()
    halves(loaded, data=(str(large),))
    assert len(kept(tmp_path / "home" / "ftcore" / "rows")) == 1


# --- parted, counted and weighed -------------------------------------------------------------------------


def test_copies_and_held_out_rows_that_are_trained_on_are_counted_and_named(loaded: Loaded, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [*TEXTS, TEXTS[1], TEXTS[1], TEXTS[4]])
    held, said = written(tmp_path / "held.jsonl", ["New.", TEXTS[2], "Newer."]), list[str]()
    counts = halves(loaded, said, data=(str(file),), eval_data=(str(held),), cache="off").counts
    assert (counts["rows"], counts["duplicates"], counts["held_out_rows_trained_on"]) == (18, 3, 2)
    assert any(f"3 rows are copies of others, the first {file}:7 of {file}:2" in line for line in said)
    assert any(f"2 of 6 held-out rows are trained on too, the first {held}:2 as {file}:3" in line for line in said)


def test_rows_of_one_record_and_copies_are_held_out_together(loaded: Loaded, tmp_path: Path) -> None:
    texts = [f"text {number % 30} of thirty" for number in range(60)]
    file = str(written(tmp_path / "rows.jsonl", texts))
    rows = halves(loaded, data=(file,), eval_share=0.25, cache="off")
    assert len(rows.train) + len(rows.eval) == 120
    assert 30 <= len(rows.eval) <= 33
    assert {row.place for row in rows.train}.isdisjoint(row.place for row in rows.eval)
    assert {row.identity() for row in rows.train[::2]}.isdisjoint(row.identity() for row in rows.eval[::2])
    assert rows.counts["held_out_rows_trained_on"] < len(rows.eval)  # " of thirty" ends more than one text
    again = halves(loaded, data=(file,), eval_share=0.25, cache="off")
    other = halves(loaded, data=(file,), eval_share=0.25, seed=7, cache="off")
    assert plain(again.eval) == plain(rows.eval) != plain(other.eval)


def test_held_out_rows_are_apart_from_training_rows_and_depend_only_on_the_seed(loaded: Loaded, tmp_path: Path) -> None:
    file = str(written(tmp_path / "rows.jsonl", [f"{number} cats and {number} dogs" for number in range(50)]))
    other = str(written(tmp_path / "other.jsonl", ["A bird, a fish and a mouse."]))
    everything = plain(halves(loaded, data=(file,), cache="off").train)
    drawn = halves(loaded, data=(file,), eval_share=0.2, seed=5, cache="off")
    assert len(drawn.eval) == 20
    assert sorted(plain(drawn.train) + plain(drawn.eval)) == sorted(everything)
    assert plain(halves(loaded, data=(file,), eval_share=0.2, seed=5, cache="off").eval) == plain(drawn.eval)
    assert plain(halves(loaded, data=(file,), eval_share=0.2, seed=6, cache="off").eval) != plain(drawn.eval)
    named = halves(loaded, data=(file,), eval_data=(other,), cache="off")
    assert (plain(named.train), len(named.eval)) == (everything, 2)
    assert len(halves(loaded, data=(file,), cache="off").eval) == 0


def test_weights_give_each_source_its_exact_share_drawn_anew_in_every_epoch(loaded: Loaded, tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", [f"one {n}" for n in range(30)])
    two = written(tmp_path / "two.jsonl", [f"two {n}" for n in range(10)])
    rows = halves(loaded, data=(f"{one}:0.25", f"{two}:0.75"), cache="off")
    assert rows.shares == ((60, 20), (20, 60))
    order = Order(sizes_of(rows.train), 3, 4, None, 2, shares=rows.shares)
    epochs = [[row for step in order.epoch(number) for batch in step for row in batch] for number in range(3)]
    for taken in epochs:
        assert len(taken) == 80
        assert len({row for row in taken if row < 60}) == 20
        assert all(taken.count(row) == 3 for row in range(60, 80))
    assert len({frozenset(row for row in taken if row < 60) for taken in epochs}) == 3
    whole = [step for number in range(3) for step in order.epoch(number)]
    for done in (0, 7, 10, 13):
        steps = order.after(done)
        assert [next(steps) for _ in range(12)] == whole[done : done + 12]


def test_sources_without_weights_beside_some_with_them_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    one, two = (written(tmp_path / f"{name}.jsonl", TEXTS) for name in ("one", "two"))
    with pytest.raises(ftcore.Refused, match=r"two\.jsonl has none; give each one, as in --data .*two\.jsonl:0\.5"):
        halves(loaded, data=(f"{one}:0.5", str(two)))


# --- what cannot be used ---------------------------------------------------------------------------------


def encoding(*ids: int, labels: Sequence[int] | None = None) -> Callable[[Record], Iterator[TokenRow]]:
    """Rows of these tokens, whatever the record."""

    def encode(record: Record) -> Iterator[TokenRow]:
        yield token_row(ids, ids if labels is None else labels, record.place)

    return encode


@pytest.mark.parametrize(
    ("encode", "told"),
    [
        (encoding(1, 5000, 2), r"rows\.jsonl:1: input_ids has the token 5000, and the model has 320"),
        (encoding(7, 7, 1, 2), r"rows\.jsonl:1: text has 2 of 4 tokens that the tokenizer does not know"),
        (encoding(1, 2, labels=(-100, -100)), r"rows\.jsonl:1: row gives the model nothing to predict: 2 tokens"),
    ],
)
def test_a_row_that_the_model_cannot_take_is_refused_by_file_and_line(
    encode: Callable[[Record], Iterator[TokenRow]], told: str, loaded: Loaded, tmp_path: Path
) -> None:
    file = written(tmp_path / "rows.jsonl", TEXTS)
    loaded.tokenizer.unk_token = loaded.tokenizer.convert_ids_to_tokens(7)
    run = Run(Settings(data=(str(file),)), "train", "causal-lm")
    with pytest.raises(ftcore.Refused, match=told):
        read(run, replace(loaded, vocab_size=320), Reading(self_of(encode), encode, TokenRow))


def self_of(encode: object) -> object:
    """A task for an encoder that has none."""
    return Halves(encode)


def test_what_is_counted_of_some_rows_only_is_refused(loaded: Loaded, tmp_path: Path, cache: Path) -> None:
    file, task = written(tmp_path / "rows.jsonl", TEXTS), Halves(loaded.tokenizer)
    reading = Reading(task, task.encode, TokenRow, facts=lambda row: {"long": 1} if row.size > 4 else {})
    for place in ("off", str(cache)):
        with pytest.raises(ftcore.Refused, match="'long' is counted of some rows and not of others"):
            read(Run(Settings(data=(str(file),), cache=place), "train", "causal-lm"), loaded, reading)


# --- rows as bytes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    """A row of everything that a row may hold."""

    input_ids: np.ndarray[Any, Any]
    marks: np.ndarray[Any, Any]
    spans: tuple[tuple[int, str], ...]
    text: str
    share: float
    whole: bool
    place: str

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.input_ids)

    def identity(self) -> bytes:
        """Its tokens and text."""
        return self.input_ids.tobytes() + self.text.encode()


def test_a_row_of_arrays_texts_and_numbers_comes_back_as_it_was() -> None:
    for ids in ([], [3, 1, 2]):
        row = Odd(
            np.array(ids, dtype=np.int32), np.array([[1.5, 2], [0, 1]]), ((1, "小"), (2, "")), "\n小", 0.1, True, "f:1"
        )
        back = tables.from_bytes(tables.as_bytes(row), Odd)
        assert (back.spans, back.text, back.share, back.whole, back.place) == (row.spans, "\n小", 0.1, True, "f:1")
        for one, other in ((back.input_ids, row.input_ids), (back.marks, row.marks)):
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()


# --- memory ----------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
import numpy as np
from ftcore.batches import TokenRow, digest, token_row
from ftcore.hooks import Loaded, Run
from ftcore.rows import Reading, read
from ftcore.settings import Settings

def encode(record):
    ids = np.frombuffer(record.fields["text"].encode(), dtype=np.uint8)
    yield token_row(ids, ids, record.place)

run = Run(Settings(data=(sys.argv[1],), cache=sys.argv[2], eval_share=0.01), "train", "causal-lm")
rows = read(run, Loaded(None, None, {}, "", 4096, 256), Reading(object(), encode, TokenRow))
assert len(rows.train) + len(rows.eval) == int(sys.argv[3]) and rows.train[5].size > 900
digest(rows.train)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(folder: Path, rows: int) -> int:
    """MiB that a process took at most to read so many rows of a kilobyte."""
    file = folder / f"{rows}.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(rows):
            lines.write(json.dumps({"text": f"{number} ".ljust(985, "-")}) + "\n")
    command = [sys.executable, "-c", MEASURE, str(file), "off", str(rows)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return int(found.stdout.split()[-1])


def test_the_memory_that_rows_take_hardly_grows_with_their_file(tmp_path: Path) -> None:
    assert peak(tmp_path, 40_000) - peak(tmp_path, 10_000) < 30_000 * 150 / 2**20 + 2


@pytest.mark.slow
def test_eighty_more_megabytes_of_rows_take_less_than_ten_of_memory(tmp_path: Path) -> None:
    assert peak(tmp_path, 100_000) - peak(tmp_path, 20_000) < 10
