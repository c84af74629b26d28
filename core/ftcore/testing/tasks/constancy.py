"""What a task promises whenever it is asked: the same rows everywhere, held-out rows apart, nothing kept or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftcore.batches import TokenRow, digest
from ftcore.hooks import Batch, Loaded, Row
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.labels import shown
from ftcore.testing.tasks.loss import CLOSE
from ftcore.testing.tasks.stage import (
    Tried,
    alone,
    cases,
    crowd,
    everything,
    file_of,
    leaves,
    line,
    loaded,
    other,
    prepare,
    present,
    reads_files,
    sheet_of,
    text_of,
    with_leaf,
    written,
)  # fmt: skip

BROKEN_OFF = '{"a": "b'


def digests(tried: Tried) -> list[str]:
    """Fingerprints of the rows to train on and of those held out."""
    return [digest(tried.train), digest(tried.held)]


def check_keeps_no_state(task: object, bench: Bench | None = None) -> None:
    """Two runs of one task that take turns do not see each other: nothing is kept from one call to the next."""
    bench = bench_of("task", task, bench)
    one, two = file_of(bench, crowd(bench)), file_of(bench, crowd(bench, 6, 100))
    first = prepare(bench, one, eval_data=(str(two),))
    before = _seen(first)
    if before != _seen(first) or before != _seen(prepare(bench, one, eval_data=(str(two),))):
        return  # it is another each time, which is for the next check to say
    if reads_files(bench) and digests(first)[0] == digests(prepare(bench, two))[0]:
        raise Failed("a second call with other data gives the rows of the first; keep nothing between calls")
    elsewhere: dict[str, Any] = {"base": _elsewhere(bench), "max_length": 200, "packing": "off", "seed": 7}
    if _seen(prepare(bench, two, plugin=bench.fresh(), **elsewhere)) != _seen(prepare(bench, two, **elsewhere)):
        raise Failed("an instance that was used before makes other rows of a file than one that was not; keep nothing")
    if _seen(first) != before:
        raise Failed(
            "rows that were prepared earlier batch, cost or measure otherwise once another run has been prepared; "
            "let collate, loss and metrics hold what they need themselves"
        )
    again = prepare(bench, one, eval_data=(str(two),))
    if _seen(again) != before or counts_of(again) != counts_of(first):
        raise Failed("a call repeated after another one gives something else than before; keep nothing between calls")
    if reads_files(bench):
        _reads_anew(bench, two)


def _reads_anew(bench: Bench, other: Path) -> None:
    """A file that has changed is read again, and nothing is written beside it."""
    folder = bench.place("data")
    folder.mkdir()
    file = folder / "rows.jsonl"
    file.write_bytes(file_of(bench, crowd(bench)).read_bytes())
    before = digests(prepare(bench, file))
    file.write_bytes(other.read_bytes())
    if digests(prepare(bench, file)) == before:
        raise Failed("a file that has changed gives the rows that it gave before; keep nothing under a file's name")
    beside = sorted(path.name for path in folder.iterdir())
    if beside != [file.name] or file.read_bytes() != other.read_bytes():
        raise Failed(f"it writes where the data is: {', '.join(beside)}; leave the user's files alone")


def _elsewhere(bench: Bench) -> Loaded:
    """Another run's model: other tokenizer, and a family that pads."""
    base = other(bench)
    return replace(base, unpackable="the kit asked for padding", tokenizer=_talking_as_before(base.tokenizer))


def _talking_as_before(tokenizer: Any) -> Any:
    from ftcore.testing.stage import CHATML

    tokenizer.chat_template = CHATML
    return tokenizer


def counts_of(tried: Tried) -> tuple[Any, ...]:
    """What is shown of the rows: counts, sample, probes and stop tokens."""
    return dict(tried.data.counts), tried.data.sample, tried.data.probes, tried.data.stop_ids


def _seen(tried: Tried) -> tuple[Any, ...]:
    """Fingerprints, batches and metrics as plain values."""
    batches = tuple(plain(tried.data.collate(rows)) for rows in (tried.train, tried.held) if rows)
    return (*digests(tried), batches, tuple(sorted(tried.data.metrics(1.25).items())))


def plain(batch: Batch) -> tuple[Any, ...]:
    """A batch as plain values."""
    tensors = {**{f"in {k}": v for k, v in batch.inputs.items()}, **{f"to {k}": v for k, v in batch.targets.items()}}
    values = tuple(
        (name, tuple(tensors[name].shape), tuple(tensors[name].reshape(-1).tolist())) for name in sorted(tensors)
    )
    return values, batch.weight, batch.tokens


def check_rows_are_the_same_every_time(task: object, bench: Bench | None = None) -> None:
    """The same file gives the same rows and batches again, in another process and whatever order sets have there."""
    bench = bench_of("task", task, bench)
    file, held = file_of(bench, crowd(bench)), file_of(bench, crowd(bench, 6, 100))
    given: dict[str, Any] = {"eval_data": (str(held),)}
    first, again = prepare(bench, file, **given), prepare(bench, file, plugin=bench.fresh(), **given)
    if digests(first) != digests(again):
        raise Failed("the same file gives other rows the second time; draw nothing at random but from the run's seed")
    _collates_alike(first)
    there = fresh.call(
        "ftcore.testing.tasks.constancy:digests_there",
        described=fresh.reference(task),
        file=str(file),
        settings={"eval_data": [str(held)]},
    )
    if there != digests(first):
        raise Failed(
            "the same file gives other rows in another process; do not go by the order of a set, by hash() or by id()"
        )


def _cost(tried: Tried, rows: Sequence[Row]) -> float:
    """The loss of a batch, computed anew."""
    import torch

    with torch.no_grad():
        return float(tried.data.loss(tried.loaded.model, tried.data.collate(rows)))


def digests_there(described: Mapping[str, Any], file: str, settings: Mapping[str, Any]) -> list[str]:
    """The fingerprints as a process makes them that knows nothing of this one."""
    bench = Bench("task", fresh.rebuilt(described))
    return digests(prepare(bench, Path(file), **settings))


def _collates_alike(tried: Tried) -> None:
    for rows in (tried.train, tried.train[:1], tried.held):
        if not rows:
            continue
        before = digest(rows)
        one, two = tried.data.collate(rows), tried.data.collate(rows)
        if plain(one) != plain(two):
            raise Failed("the same rows make another batch the second time; a resumed run would learn something else")
        if digest(rows) != before:
            raise Failed("making a batch changes the rows it is made of; copy what you change")
        costs = [_cost(tried, rows) for _ in range(3)]
        if max(costs) - min(costs) > CLOSE * abs(costs[0]):
            raise Failed("the same batch costs something else the second time; keep nothing between calls")


def check_held_out_rows_are_drawn_by_the_seed(task: object, bench: Bench | None = None) -> None:
    """--eval-share holds out the share that is asked for, drawn by the run's seed and by nothing else."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    sheet = sheet_of(bench, crowd(bench, 20))
    splits = []
    for seed in (1, 1, 2, 3, 4):
        tried = prepare(bench, sheet.file, eval_share=0.25, seed=seed)
        splits.append(frozenset(present(tried, tried.held, sheet)))
    if splits[0] != splits[1]:
        raise Failed("the same seed holds out other rows the second time; draw them by run.settings.seed")
    if len(set(splits)) == 1:
        raise Failed("seeds 1 to 4 hold out the same rows; draw them by run.settings.seed, as ftcore.rows does")
    if not all(abs(len(split) - 5) <= 1 for split in splits):
        raise Failed(f"of 20 rows, --eval-share 0.25 holds out {len(splits[0])}; hold out 5")


def check_held_out_rows_are_not_trained_on(task: object, bench: Bench | None = None) -> None:
    """No row that is held out is trained on, and a file of held-out rows is held out whole."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    made, apart = sheet_of(bench, crowd(bench, 20)), sheet_of(bench, crowd(bench, 6, 100))
    share = prepare(bench, made.file, eval_share=0.25)
    both = present(share, share.train, made).keys() & present(share, share.held, made).keys()
    if both:
        raise Failed(f"with --eval-share 0.25, {len(both)} rows are held out and trained on, such as {min(both)}")
    plain = prepare(bench, made.file)
    if present(plain, plain.held, made).keys() & present(plain, plain.train, made).keys():
        raise Failed("where no row is to be held out, rows that are trained on are held out too; hold out none")
    tried = prepare(bench, made.file, eval_data=(str(apart.file),))
    strays = present(tried, tried.train, apart)
    if strays:
        raise Failed(f"{len(strays)} rows of --eval-data are trained on, such as {min(strays)}")
    held = present(tried, tried.held, apart)
    if len(held) < len(apart.lines) or present(tried, tried.held, made):
        raise Failed(f"of {len(apart.lines)} rows of --eval-data, {len(held)} are held out; hold out these only")


def check_rows_know_their_place(task: object, bench: Bench | None = None) -> None:
    """Every row says the file that it is from and the line that it begins on, blank lines and bad rows counted."""
    bench = bench_of("task", task, bench)
    if not reads_files(bench):
        return
    made, apart = crowd(bench)[:4], crowd(bench, 6, 100)[:3]
    one = written(bench, [line(made[0].row), BROKEN_OFF, line(made[1].row), "", *(line(c.row) for c in made[2:])])
    two = file_of(bench, apart)
    held = file_of(bench, crowd(bench, 6, 100))
    tried = prepare(bench, one, data=(str(one), str(two)), eval_data=(str(held),), on_bad_row="skip")
    for row in tried.held:
        if not row.place.startswith(f"{held}:"):
            raise Failed(f"a held-out row says it is from {shown(row.place)}, and it is from {held.name}")
    homes = {case.name: f"{one}:{number}" for case, number in zip(made, (1, 3, 5, 6), strict=True)}
    homes |= {case.name: f"{two}:{number}" for number, case in enumerate(apart, start=1)}
    known = {f"{one}:{number}" for number in (1, 3, 5, 6)} | {f"{two}:{number}" for number in (1, 2, 3)}
    for row in tried.train:
        if row.place not in known:
            raise Failed(f"a row says it is from {shown(row.place)}, and the rows are from {min(known)} and so on")
        inside = [home for name, home in homes.items() if name in text_of(tried, row)]
        if inside and row.place != inside[0]:
            raise Failed(f"the row of {Path(inside[0]).name} says it is from {Path(row.place).name}")


def check_rows_know_themselves(task: object, bench: Bench | None = None) -> None:
    """The identity of a row is another whenever what the model learns from it is another, and only then."""
    bench = bench_of("task", task, bench)
    tries = [tried for _, tried in alone(bench)] if reads_files(bench) else [everything(bench)]
    for case in cases(bench)[:3]:
        for place, leaf in leaves(case.row):
            row = with_leaf(case.row, place, f"{leaf[:-1]}b" if leaf.endswith("a") else f"{leaf[:-1]}a")
            file = written(bench, [line(row)])
            try:
                tries.append(prepare(bench, file))
            except Exception:  # a text that may not be changed
                continue
    known: dict[bytes, Any] = {}
    for tried in tries:
        for row in (*tried.train, *tried.held):
            if not isinstance(row.identity(), bytes):
                raise Failed(f"{row.place}: identity() gives {type(row.identity()).__name__}; give bytes")
            _takes_all_in(row)
            learned = plain(tried.data.collate([row]))
            if known.setdefault(row.identity(), learned) != learned:
                raise Failed(f"{row.place} has the identity of a row with other tokens or labels; take all of them in")


def _takes_all_in(row: Row) -> None:
    """The identity of a row of the core's kind is another with other labels or borders."""
    if not isinstance(row, TokenRow):
        return
    others = {
        "labels": replace(row, labels=-row.labels - 7),
        "tokens": replace(row, input_ids=row.input_ids + 1),
        "lengths": replace(row, lengths=(1, *row.lengths[:-1], row.lengths[-1] - 1)),
    }
    for what, changed in others.items():
        if changed.identity() == row.identity():
            raise Failed(f"{row.place} has the same identity with other {what}; take all of them in")


def check_tokenizer_and_model_are_left_alone(task: object, bench: Bench | None = None) -> None:
    """Tokenizer and model are as the family gave them; a chat template is set only with a notice."""
    bench = bench_of("task", task, bench)
    for base in (loaded(bench), other(bench), _without_template(bench)):
        before, weights = _state(base.tokenizer), _weights(base)
        template = getattr(base.tokenizer, "chat_template", None)
        try:
            tried = prepare(bench, file_of(bench, crowd(bench)), base=base, max_length=200)
        except Exception:  # a tokenizer that it cannot be used with
            continue
        tried.data.collate(tried.train)
        for name, value in _state(base.tokenizer).items():
            if value != before[name]:
                raise Failed(
                    f"it changes the tokenizer's {name}: {_differing(before[name], value)}; the tokenizer is saved "
                    "with the run, so work on a copy or pass the setting with each call"
                )
        if getattr(base.tokenizer, "chat_template", None) != template and not any(
            "template" in said for said in tried.said
        ):
            raise Failed("it gives the tokenizer another chat template without a notice; say so with run.say")
        if _weights(base) != weights:
            raise Failed("it changes the model that it is given; a task reads the model and leaves it as it is")


def _without_template(bench: Bench) -> Loaded:
    base = loaded(bench)
    tokenizer: Any = base.tokenizer
    tokenizer.chat_template = None
    return base


def _state(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer is saved with, apart from its chat template."""
    backend = tokenizer.backend_tokenizer
    return {
        "truncation": backend.truncation,
        "padding": backend.padding,
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "padding side": tokenizer.padding_side,
        "truncation side": tokenizer.truncation_side,
        "model_max_length": tokenizer.model_max_length,
        "vocabulary": len(tokenizer),
        "reading of special tokens": getattr(tokenizer, "split_special_tokens", False),
        "tokenizer.json": backend.to_str(),
    }


def _differing(before: Any, after: Any) -> str:
    return f"{shown(str(before))} before, {shown(str(after))} after"


def _weights(base: Loaded) -> list[tuple[str, float, bool]]:
    named = base.model.state_dict(keep_vars=True).items()
    return [(name, float(value.detach().double().sum()), value.requires_grad) for name, value in named]
