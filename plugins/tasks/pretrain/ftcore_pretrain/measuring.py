"""What a model makes of each document: how well it predicts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ftcore.batches import TokenRow, moved, pad, token_loss
from ftcore.hooks import Scoring

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def measuring(tokenizer: PreTrainedTokenizerBase) -> Scoring:
    """For each document a line with the mean loss of its tokens; there is nothing that would be right."""
    return Scoring(predict, partial(lines, tokenizer), lambda lines: {})


def predict(model: nn.Module, rows: Sequence[TokenRow]) -> list[float]:
    """The sum of the losses of each row, in nats."""
    device = next(model.parameters()).device
    return [float(token_loss(model, moved(pad([row], 0), device))) for row in rows]


def lines(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], answers: Sequence[float]
) -> list[Mapping[str, Any]]:
    """One object for each document: where it stands, how it begins, and how well it is predicted."""
    found = groupby(zip(rows, answers, strict=True), key=lambda pair: pair[0].place)
    return [_line(tokenizer, list(pairs)) for _, pairs in found]


def _line(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[TokenRow, float]]) -> Mapping[str, Any]:
    row, tokens = pairs[0][0], sum(row.supervised for row, _ in pairs)
    loss = sum(nats for _, nats in pairs) / tokens
    opening = tokenizer.decode(row.input_ids[:32].tolist(), skip_special_tokens=True)
    return {
        "place": row.place,
        "opening": opening,
        "tokens": tokens,
        "prediction": loss,
        "perplexity": math.exp(min(loss, 700)),
    }
