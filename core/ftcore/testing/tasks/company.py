"""What a task promises of rows that meet: in a batch, padded or end to end, or in one file, none changes another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ftcore.batches import IGNORED
from ftcore.hooks import Row
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.labels import shown
from ftcore.testing.tasks.listening import Heard
from ftcore.testing.tasks.stage import (
    Tried,
    alone,
    crowd,
    everything,
    file_of,
    loaded,
    prepare,
    reads_files,
    text_from,
    tokenizer_of,
)

if TYPE_CHECKING:
    from torch import Tensor

# Float32 sums of a thousand cross-entropies agree to 1e-6, whatever they are batched with; a leak of one token in one
# row changes them by more than a hundred times that.
SAME = 1e-5


def check_a_token_weighs_the_same_in_company(task: object, bench: Bench | None = None) -> None:
    """What a token weighs in the loss does not depend on the rows that it is batched with."""
    bench = bench_of("task", task, bench)
    for tried in (everything(bench), *padded(bench)):
        for rows in groups(tried):
            known = {weight for _, weight in _lessons(tried, rows)}
            strange = {weight for _, weight in tried.heard(rows).lesson()} - known
            if strange:
                raise Failed(
                    f"in a batch of {len(rows)} rows a token weighs {min(strange)}, and {min(known)} when its row is "
                    "alone; weigh a token by its own row, or every batch trains another objective"
                )


def check_padding_is_not_learned(task: object, bench: Bench | None = None) -> None:
    """Beside a longer row, to whose length it is padded, a row teaches none of its padding."""
    bench = bench_of("task", task, bench)
    for tried in padded(bench):
        pad = tokenizer_of(tried).pad_token_id
        for rows in groups(tried):
            more = tried.heard(rows).lesson() - _lessons(tried, rows)
            found = sum(count for (target, _), count in more.items() if target == pad)
            if found:
                raise Failed(
                    f"{len(rows)} rows of differing length teach {found} tokens of padding; give it the label -100"
                )


def check_no_row_teaches_its_neighbour(task: object, bench: Bench | None = None) -> None:
    """Rows in one batch teach what each teaches alone: none is lost, and none has its first token predicted."""
    bench = bench_of("task", task, bench)
    for tried in (everything(bench), *padded(bench)):
        for rows in groups(tried):
            hint = "start labels and positions anew in every row, whose last token predicts nothing"
            _equal(tried, tried.heard(rows).lesson(), _lessons(tried, rows), f"{len(rows)} rows in one batch", hint)
    if reads_files(bench):
        tried = everything(bench)
        hint = "the last token of a document predicts nothing of the next: give token_row its lengths"
        apart = sum((heard.lesson() for _, one in alone(bench) for _, heard in one.readings), Counter())
        together = sum((heard.lesson() for _, heard in tried.sides[0]), Counter())
        _equal(tried, together, apart, "the rows of one file", hint)


def _lessons(tried: Tried, rows: Sequence[Row]) -> Counter[tuple[int, float]]:
    known = {id(row): heard for row, heard in tried.readings}
    return sum((known[id(row)].lesson() for row in rows), Counter())


def _equal(tried: Tried, together: Counter[Any], apart: Counter[Any], which: str, hint: str) -> None:
    """The same targets with the same weights."""
    more, fewer = together - apart, apart - together
    if not more and not fewer:
        return
    targets = Counter(target for target, _ in more.elements()) - Counter(target for target, _ in fewer.elements())
    lost = Counter(target for target, _ in fewer.elements()) - Counter(target for target, _ in more.elements())
    if not targets and not lost:
        raise Failed(f"{which} teach tokens with other weights than each does alone; weigh a token by its own row")
    told = f"{sum(targets.values())} tokens more ({_words(tried, targets)})" if targets else ""
    less = f"{sum(lost.values())} tokens fewer ({_words(tried, lost)})" if lost else ""
    raise Failed(f"{which} teach {' and '.join(filter(None, (told, less)))} than each does alone; {hint}")


def _words(tried: Tried, targets: Counter[int]) -> str:
    return ", ".join(_word(tried, target) for target in list(targets)[:3])


def _word(tried: Tried, token: int) -> str:
    return shown(text_from(tried, [token]))


def padded(bench: Bench) -> Iterator[Tried]:
    """The crowd as batches with padding: because packing is off, and because the family cannot be packed."""
    yield everything(bench, packing="off")
    yield bench.once("unpackable", lambda: _unpackable(bench))


def _unpackable(bench: Bench) -> Tried:
    return prepare(bench, file_of(bench, crowd(bench)), base=loaded(bench, packed=False))


def groups(tried: Tried) -> Iterator[list[Row]]:
    """Rows to make batches of: pairs, all, all in another order, and those held out."""
    train = tried.train
    if len(train) > 1:
        yield from ([*pair] for pair in pairwise(train[:3]))
        yield train
        yield train[::-1]
    if len(tried.held) > 1:
        yield tried.held


def check_a_row_costs_what_the_model_makes_of_it(task: object, bench: Bench | None = None) -> None:
    """Alone, a row's loss is what the plain model gives its tokens: right positions, and every token before it seen."""
    bench = bench_of("task", task, bench)
    tries = [tried for _, tried in alone(bench)] if reads_files(bench) else []
    for tried in (*tries, *(bench.once(("alone", "padded"), lambda: _alone_padded(bench)) if tries else ())):
        for row, heard in tried.readings:
            _costs(tried, row, heard)


def _alone_padded(bench: Bench) -> list[Tried]:
    base = loaded(bench, packed=False)
    return [prepare(bench, file_of(bench, [case]), base=base) for case in crowd(bench)[:3]]


def _costs(tried: Tried, row: Row, heard: Heard) -> None:
    import torch

    if not heard.placed or "input_ids" not in heard.inputs:
        return
    ids, taught = _plain(heard)
    if ids.shape[0] != 1:
        return
    with torch.no_grad():
        logits = tried.loaded.model(input_ids=ids).logits[0].double()
    chances = torch.log_softmax(logits, -1)
    wanted = -sum(weight * float(chances[position, target]) for position, target, weight in taught)
    found = tried.cost([row])
    if abs(found - wanted) > SAME * abs(wanted):
        raise Failed(
            f"{row.place} costs {found:.6g}, and the plain model makes {wanted:.6g} of the same tokens; "
            "look at position_ids, the attention mask and where logits are kept"
        )


def _plain(heard: Heard) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """The tokens of a row without its padding, and what is taught where among them."""
    import torch

    ids, mask = heard.inputs["input_ids"], heard.inputs.get("attention_mask")
    real = mask.bool() if mask is not None and mask.shape == ids.shape else torch.ones_like(ids, dtype=torch.bool)
    place = real.cumsum(1) - 1
    return ids[real].reshape(ids.shape[0], -1), [
        (int(place[one.row, one.position]), one.target, one.weight) for one in heard.taught
    ]


def check_packing_changes_no_loss(task: object, bench: Bench | None = None) -> None:
    """The model's loss of rows laid end to end is the sum of what each costs alone, in whatever order they come."""
    bench = bench_of("task", task, bench)
    tried = everything(bench)
    hint = "each must start at position 0 and see nothing before it (position_ids, cu_seq_lens_q)"
    for rows in groups(tried):
        _sum_of(tried, rows, hint)
    if reads_files(bench):
        apart = sum(one.cost([row]) for _, one in alone(bench) for row in one.train)
        together = tried.cost(tried.train)
        if abs(apart - together) > SAME * abs(apart):
            raise Failed(
                f"the rows of a file cost {together:.6g}, and {apart:.6g} when each has a file of its own; "
                "the documents of a row must not see each other (lengths)"
            )


def check_padding_changes_no_loss(task: object, bench: Bench | None = None) -> None:
    """The model's loss of padded rows is the sum of what each costs alone, in whatever order they come."""
    bench = bench_of("task", task, bench)
    for tried in padded(bench):
        for rows in groups(tried):
            _sum_of(tried, rows, "padding must be masked (attention_mask), and where a family is unpackable be used")


def _sum_of(tried: Tried, rows: Sequence[Row], hint: str) -> None:
    together, apart = tried.cost(rows), sum(tried.cost([row]) for row in rows)
    if abs(together * len(rows) - apart) < SAME * abs(apart):
        hint = "that is a mean; the loss is the sum"
    if abs(together - apart) > SAME * abs(apart):
        raise Failed(f"{len(rows)} rows cost {together:.6g} in one batch and {apart:.6g} one by one; {hint}")
    weight, each = tried.data.collate(rows).weight, sum(tried.data.collate([row]).weight for row in rows)
    if abs(weight - each) > SAME * each:
        raise Failed(f"{len(rows)} rows weigh {weight:g} in one batch and {each:g} one by one; the weight is a sum")


def check_counts_are_true(task: object, bench: Bench | None = None) -> None:
    """Rows, tokens and supervised tokens are as many as rows, batches and counts say, padding not counted."""
    bench = bench_of("task", task, bench)
    for settings in ({}, {"packing": "off"}):
        tried = everything(bench, **settings)
        for rows in groups(tried):
            batch = tried.data.collate(rows)
            size = sum(row.size for row in rows)
            if batch.tokens != size:
                raise Failed(f"a batch of {len(rows)} rows of {size} tokens says it has {batch.tokens}")
            if batch.places and sorted(batch.places) != sorted(row.place for row in rows):
                raise Failed(f"a batch of rows from {rows[0].place} on says it is from {batch.places[:2]}")
        _counted(tried)


def _counted(tried: Tried) -> None:
    train, counts = tried.train, tried.data.counts
    for row in (*train, *tried.held):
        _sized(tried, row)
    known = {
        "rows": len(train),
        "tokens": sum(row.size for row in train),
        "supervised_tokens": round(sum(tried.data.collate([row]).weight for row in train)),
        "rows_left_out": 0,
        "rows_cut": 0,
    }
    if tried.compares:  # what a batch weighs there are comparisons
        known["supervised_tokens"] = sum(int((_labels(tried, row) != IGNORED).sum()) for row in train)
    for name, count in counts.items():
        if not isinstance(count, int):
            raise Failed(f"its count '{name}' is {count!r}, which is no whole number")
        if name in known and count != known[name]:
            raise Failed(
                f"it counts {count} '{name}', and there are {known[name]} in the rows that it gives to train on"
            )


def _labels(tried: Tried, row: Row) -> Tensor:
    targets = tried.data.collate([row]).targets
    return targets.get("labels", next(iter(targets.values())))


def _sized(tried: Tried, row: Row) -> None:
    inputs = tried.data.collate([row]).inputs
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or "decoder_input_ids" in inputs or "labels" in inputs:
        return
    read = int(mask.sum()) if mask is not None and mask.shape == ids.shape else ids.numel()
    if row.size != read:
        raise Failed(f"{row.place} has size {row.size}, and the model reads {read} tokens for it; count what it reads")
