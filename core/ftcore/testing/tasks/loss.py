"""What a task promises of its loss: a sum over what is supervised, in float32, of any model that it is given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ftcore.hooks import Batch, Row
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.listening import Heard, listen
from ftcore.testing.tasks.stage import Tried, everything

# The gradients of float32 logits give weights to about 1e-6, sums of a thousand of them to about 1e-5.
EXACT = 1e-4
# What float32 leaves of a sum of some hundred cross-entropies.
CLOSE = 1e-5


def check_loss_is_a_sum_of_cross_entropies(task: object, bench: Bench | None = None) -> None:
    """The loss is the sum, not the mean, of cross-entropies, and a batch's weight is what it is summed over."""
    bench = bench_of("task", task, bench)
    for settings in ({}, {"packing": "off"}):
        tried = everything(bench, **settings)
        train, held = tried.train, tried.held
        for rows in (train[:1], train, train[1:3], held[:1], held):
            if rows:
                _sums_up(tried, rows)
    tried.loaded.model.train()
    try:
        _sums_up(tried, tried.train)
    finally:
        tried.loaded.model.eval()


def _sums_up(tried: Tried, rows: Sequence[Row]) -> None:
    batch = tried.data.collate(rows)
    heard = listen(tried.loaded.model, tried.data.loss, batch)
    if not heard.taught:
        raise Failed(f"a batch of {len(rows)} rows of weight {batch.weight:g} teaches nothing")
    if heard.odd:
        raise Failed(
            f"at {heard.odd}, the gradient of the loss is not that of a cross-entropy with one target; "
            "where that is meant, excuse the check with the reason"
        )
    if abs(heard.weight - batch.weight) > EXACT * batch.weight:
        raise Failed(f"a batch of {len(rows)} rows {_unequal(heard, batch.weight, batch.tokens)}")
    wanted = heard.amount(heard.taught)
    if abs(float(heard.value) - wanted) > CLOSE * abs(wanted):
        raise Failed(f"the loss is {float(heard.value):.6g}, and the cross-entropies it is made of sum to {wanted:.6g}")


def _unequal(heard: Heard, weight: float, tokens: int) -> str:
    """What is likely wrong where the weights that the loss has are not the weight that the batch says."""
    told = f"has weight {weight:g}, and its loss sums {len(heard.taught)} tokens with weights of {heard.weight:.4g}"
    if abs(heard.weight - 1) < EXACT:
        return f"{told}: that is a mean; use reduction='sum'"
    if abs(weight - tokens) < EXACT * tokens:
        return f"{told}: the weight counts every token; count those that are supervised"
    return f"{told} in all; make the weight what the loss sums over"


def check_loss_is_computed_in_float32(task: object, bench: Bench | None = None) -> None:
    """The loss is computed in float32, also from logits in bfloat16 under autocast."""
    import torch

    bench = bench_of("task", task, bench)
    tried = everything(bench)
    batch = tried.data.collate(tried.train)
    taught = listen(tried.loaded.model, tried.data.loss, batch).taught
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heard = listen(tried.loaded.model, tried.data.loss, batch, kind=torch.bfloat16)
    wanted = heard.amount(taught)
    if heard.value.dtype != torch.float32 or abs(float(heard.value) - wanted) > CLOSE * wanted:
        raise Failed(
            f"from bfloat16 logits the loss is {float(heard.value):.6g} in {heard.value.dtype}, and {wanted:.6g} when "
            "computed in float32; call .float() on the logits first"
        )


def check_loss_takes_the_model_as_it_is(task: object, bench: Bench | None = None) -> None:
    """The loss only calls the model, which may be wrapped, and leaves its mode and its gradients alone."""
    import torch

    bench = bench_of("task", task, bench)
    tried = everything(bench)
    model, batch = tried.loaded.model, tried.data.collate(tried.train[:2])
    with torch.no_grad():
        usual = float(tried.data.loss(model, batch))
        try:
            found = float(tried.data.loss(wrapped(model), batch))
        except Exception as fault:
            raise Failed(
                f"of a model that is wrapped for several processes, the loss raises {type(fault).__name__}: {fault}; "
                "call the model and take nothing else of it"
            ) from None
        stranger = copy.deepcopy(model)
        for parameter in stranger.parameters():
            parameter.mul_(0.5)
        if float(tried.data.loss(stranger, batch)) == usual:
            raise Failed("the loss is the same of another model: it keeps a model of its own; call the one it is given")
    if abs(found - usual) > CLOSE * abs(usual):
        raise Failed(f"the loss is {usual:.6g}, and {found:.6g} of the same model when it is wrapped; only call it")
    _left_alone(tried, batch)


def wrapped(model: Any) -> Any:
    """The model inside another that has nothing of it but its call."""
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            return self.module(*arguments, **keywords)

    return Wrapped()


def _left_alone(tried: Tried, batch: Batch) -> None:
    """Modes and gradients are what they were before the loss was computed."""
    model = tried.loaded.model
    try:
        for training in (True, False):
            model.train(training)
            tried.data.loss(model, batch)
            if any(module.training is not training for module in model.modules()):
                raise Failed("the loss turns the model's training mode on or off; leave that to the core")
        if any(parameter.grad is not None for parameter in model.parameters()):
            raise Failed("the loss computes gradients itself; return it and let the core call backward")
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def check_a_batch_without_targets_costs_nothing(task: object, bench: Bench | None = None) -> None:
    """A batch whose targets are all -100 and whose weight is 0, which an idle process takes, costs nothing."""
    import torch

    bench = bench_of("task", task, bench)
    tried = everything(bench)
    made = tried.data.collate(tried.train[:2])
    for name, value in {**made.inputs, **made.targets}.items():
        if not isinstance(value, torch.Tensor):
            raise Failed(f"'{name}' of a batch is {type(value).__name__}; inputs and targets are tensors, to be moved")
    targets = {name: tensor.clone().fill_(-100) for name, tensor in made.targets.items()}
    idle = Batch(made.inputs, targets, 0.0, 0, made.places)
    found = float(tried.data.loss(tried.loaded.model, idle).detach())
    if found != 0:
        raise Failed(
            f"a batch without targets costs {found}, and several processes add that to steps that leave one idle; "
            "keep labels in Batch.targets and ignore -100, summing instead of dividing"
        )
