"""Packed, padded or alone, rows give the model the same loss and gradients, and every row comes once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path

import ftcore
import numpy as np
import pytest
import torch
from ftcore.batches import IGNORED, Order, TokenRow, digest, moved, pack, pad, token_loss, token_row
from ftcore.hooks import Batch
from torch import nn
from torch.nn.functional import cross_entropy

SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
MODELS = [
    pytest.param("qwen", "qwen2", {}, id="qwen2"),
    pytest.param("qwen", "qwen2", SLIDING, id="qwen2-sliding"),
    pytest.param("qwen", "qwen3", {}, id="qwen3"),
    pytest.param("llama", "llama", {}, id="llama"),
]
Gradients = dict[str, torch.Tensor]


def random_rows(vocabulary: int) -> list[TokenRow]:
    """Rows of one and of several documents, of which every other token at random is supervised."""
    draw = np.random.default_rng(3)
    rows = []
    for number, lengths in enumerate([(13,), (40,), (5, 1, 30), (2, 8, 9), (21, 2), (3,)]):
        ids = draw.integers(3, vocabulary, sum(lengths))
        labels = np.where(draw.random(len(ids)) < 0.5, ids, IGNORED)
        labels[1] = ids[1]
        rows.append(token_row(ids.tolist(), labels.tolist(), f"made:{number}", lengths))
    return rows


def measured(model: nn.Module, sums: Sequence[torch.Tensor], weight: float) -> tuple[float, Gradients]:
    """The mean loss and its gradients."""
    model.zero_grad()
    mean = torch.stack(list(sums)).sum() / weight
    mean.backward()
    return float(mean.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_batches(model: nn.Module, batches: Sequence[Batch]) -> tuple[float, Gradients]:
    """What ftcore's batches and loss say."""
    return measured(model, [token_loss(model, batch) for batch in batches], sum(batch.weight for batch in batches))


def loss_of(model: nn.Module, batch: Batch) -> float:
    """The sum of the losses, without gradients."""
    with torch.no_grad():
        return float(token_loss(model, batch))


def by_transformers(folder: Path, rows: Sequence[TokenRow]) -> tuple[float, Gradients]:
    """What transformers' own eager attention says, one document at a time, all its logits computed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    sums, weight = [], 0
    for row in rows:
        for start, end in pairwise(np.cumsum([0, *row.lengths]).tolist()):
            ids = torch.tensor(row.input_ids[None, start:end].astype(np.int64))
            labels = torch.tensor(row.labels[start:end].astype(np.int64))
            logits = model(input_ids=ids).logits[0]
            sums.append(cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"))
            weight += int((labels[1:] != IGNORED).sum())
    return measured(model, sums, weight)


def assert_same(found: tuple[float, Gradients], wanted: tuple[float, Gradients]) -> None:
    """Loss and every gradient within 1e-5, of gradients relative to the largest entry where that is above one."""
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[1][name] - gradient).abs().max()) / scale <= 1e-5, name


@pytest.mark.parametrize(("family", "kind", "changes"), MODELS)
def test_packed_padded_and_single_rows_give_the_loss_and_gradients_of_transformers(
    family: str, kind: str, changes: dict[str, object], checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(kind, **changes)
    model = ftcore.load(family, checkpoint=folder).model
    rows = random_rows(model.config.vocab_size)
    wanted = by_transformers(folder, rows)
    assert wanted[0] > 1
    assert_same(by_batches(model, [pack(rows)]), wanted)
    assert_same(by_batches(model, [pad(rows, pad_id=0)]), wanted)
    assert_same(by_batches(model, [pack([row]) for row in rows]), wanted)
    assert_same(by_batches(model, [pad([row], pad_id=0) for row in rows]), wanted)
    assert_same(by_batches(model, [pack(rows[:2]), pad(rows[2:], pad_id=1)]), wanted)


def test_a_sliding_window_changes_the_loss_of_rows_longer_than_it(checkpoint: Callable[..., Path]) -> None:
    full, windowed = (ftcore.load("qwen", checkpoint=checkpoint("qwen2", **c)).model for c in ({}, SLIDING))
    rows = random_rows(full.config.vocab_size)
    short, long = pack([rows[0]]), pack([rows[1]])
    first_eight = pack([token_row(rows[1].input_ids[:8].tolist(), rows[1].input_ids[:8].tolist(), "")])
    assert loss_of(full, first_eight) == pytest.approx(loss_of(windowed, first_eight), rel=1e-6)
    for batch in (short, long):
        assert abs(loss_of(full, batch) - loss_of(windowed, batch)) > 1e-2


def test_a_document_does_not_change_the_loss_of_its_neighbours(checkpoint: Callable[..., Path]) -> None:
    model = ftcore.load("qwen", checkpoint=checkpoint("qwen2")).model
    ids, others = list(range(10, 30)), list(range(30, 45))
    silent = [IGNORED] * len(others)
    alone = loss_of(model, pack([token_row(ids, ids, "")]))
    for neighbour in (others, others[::-1]):
        for row in (
            token_row(neighbour + ids, silent + ids, "", [len(neighbour), len(ids)]),
            token_row(ids + neighbour, ids + silent, "", [len(ids), len(neighbour)]),
        ):
            assert loss_of(model, pack([row])) == pytest.approx(alone, rel=1e-6)
            assert loss_of(model, pad([row], pad_id=0)) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(("family", "kind", "changes"), MODELS)
def test_logits_are_computed_only_where_a_token_is_predicted(
    family: str, kind: str, changes: dict[str, object], checkpoint: Callable[..., Path]
) -> None:
    model = ftcore.load(family, checkpoint=checkpoint(kind, **changes)).model
    asked: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: asked.append(out.shape[0] * out.shape[1]))
    rows = random_rows(model.config.vocab_size)
    token_loss(model, pack(rows))
    assert asked == [sum(row.supervised for row in rows)]
    token_loss(model, pad([rows[0]], pad_id=0))
    assert asked[1:] == [rows[0].supervised]


def test_the_weight_of_a_batch_is_the_number_of_tokens_it_predicts() -> None:
    rows = random_rows(99)
    supervised = sum(row.supervised for row in rows)
    for batch in (pack(rows), pad(rows, pad_id=0)):
        assert batch.weight == supervised == int((batch.targets["labels"] != IGNORED).sum())
        assert batch.tokens == sum(row.size for row in rows)
        assert batch.places == tuple(row.place for row in rows)


def test_no_target_reaches_over_the_border_of_a_document() -> None:
    row = token_row([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], "", [2, 1, 2])
    assert row.targets.tolist() == [2, IGNORED, IGNORED, 5, IGNORED]
    assert row.supervised == 2


def test_a_packed_batch_holds_no_padding_and_positions_start_anew() -> None:
    batch = pack(random_rows(99))
    assert batch.inputs["input_ids"].shape == (1, batch.tokens)
    borders = batch.inputs["cu_seq_lens_q"].tolist()
    wanted = [position for start, end in pairwise(borders) for position in range(end - start)]
    assert batch.inputs["position_ids"].tolist() == [wanted]


def test_a_moved_batch_is_the_same_batch() -> None:
    batch = pack(random_rows(99))
    other = moved(batch, "cpu")
    assert (other.weight, other.tokens, other.places) == (batch.weight, batch.tokens, batch.places)
    assert all(torch.equal(other.inputs[name], tensor) for name, tensor in batch.inputs.items())
    assert all(torch.equal(other.targets[name], tensor) for name, tensor in batch.targets.items())


ORDERS = [
    Order(range(1, 24), 7, 4, None, 1),
    Order(range(1, 24), 7, 4, None, 3),
    Order(range(1, 24), 7, 4, 40, 2),
    Order(range(1, 24), 7, 4, None, 1, by_length=True),
    Order(range(1, 24), 7, 4, 40, 2, by_length=True),
    Order(range(1, 4), 7, 8, None, 5),
]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_row_comes_once_an_epoch_and_epochs_differ(order: Order) -> None:
    epochs = [[row for step in order.epoch(e) for batch in step for row in batch] for e in range(6)]
    assert all(sorted(rows) == list(range(len(order.sizes))) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) > 1


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_no_micro_batch_is_larger_than_asked_for_unless_it_is_one_row(order: Order) -> None:
    for step in order.epoch(0):
        assert 1 <= len(step) <= order.accumulate
        for batch in step:
            tokens = sum(order.sizes[row] for row in batch)
            fits = len(batch) <= order.batch_size if order.batch_tokens is None else tokens <= order.batch_tokens
            assert fits or len(batch) == 1


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_steps_after_any_step_are_those_of_an_unbroken_run(order: Order) -> None:
    whole = list(islice(order.after(0), 25))
    for done in (1, 3, order.steps(1), order.steps(1) + 1, 17):
        assert list(islice(order.after(done), 25 - done)) == whole[done:]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_number_of_steps_is_that_of_the_epochs(order: Order) -> None:
    assert order.steps(3) == sum(len(order.epoch(epoch)) for epoch in range(3))
    assert order.largest == max(sum(order.sizes[row] for row in batch) for step in order.epoch(0) for batch in step)


def test_rows_sorted_by_length_need_little_padding() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(5, 200, 512).tolist()

    def padded(order: Order) -> int:
        return sum(len(batch) * max(sizes[row] for row in batch) for step in order.epoch(0) for batch in step)

    assert padded(Order(sizes, 1, 8, None, 1, by_length=True)) < 1.05 * sum(sizes)
    assert padded(Order(sizes, 1, 8, None, 1)) > 1.4 * sum(sizes)


def test_rows_of_one_length_stay_shuffled_when_rows_are_sorted_by_length() -> None:
    by_length, shuffled = (Order([256] * 512, 1, 8, None, 1, by_length=sort) for sort in (True, False))
    assert sorted(by_length.epoch(0)) == sorted(shuffled.epoch(0))


def test_an_evaluation_takes_the_rows_in_their_own_order() -> None:
    assert Order([1] * 5, 7, 2, None, 1).in_order() == [[0, 1], [2, 3], [4]]


def test_another_seed_is_another_order() -> None:
    first, second = (Order(range(1, 24), seed, 4, None, 1).epoch(0) for seed in (1, 2))
    assert first != second


def test_the_digest_of_rows_tells_tokens_labels_borders_and_order_apart() -> None:
    base = token_row([1, 2, 3, 4], [1, 2, 3, 4], "a:1")
    variants = [
        [base],
        [token_row([1, 2, 3, 5], [1, 2, 3, 4], "a:1")],
        [token_row([1, 2, 3, 4], [IGNORED, 2, 3, 4], "a:1")],
        [token_row([1, 2, 3, 4], [1, 2, 3, 4], "a:1", [2, 2])],
        [base, token_row([9, 9], [9, 9], "a:2")],
        [token_row([9, 9], [9, 9], "a:2"), base],
    ]
    assert len({digest(rows) for rows in variants}) == len(variants)
    assert digest([base]) == digest([token_row([1, 2, 3, 4], [1, 2, 3, 4], "elsewhere:9")])
