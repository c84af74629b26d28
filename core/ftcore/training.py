"""The training loop: steps that depend on nothing but the weights, the optimizer's state and their number."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ftcore.adapters import Injected, give
from ftcore.batches import Order, moved, sizes_of
from ftcore.checkpoints import Checkpoint, Store
from ftcore.discovery import Hooks
from ftcore.errors import FtcoreError, Interrupted, Leave, Refused
from ftcore.hooks import Batch, Data, Run, hookimpl
from ftcore.progress import Screen, StepReport
from ftcore.seeds import seeded
from ftcore.settings import Settings, dtype_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer

Loss = Callable[["nn.Module", Batch], "Tensor"]


class Core:
    """The core's own answers to the hooks, asked after every plugin."""

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer:
        """AdamW over what trains."""
        return adamw(model, run.settings)

    @hookimpl
    def train_step(
        self,
        run: Run,
        step: int,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Loss,
        optimizer: Optimizer,
        accelerator: Accelerator,
    ) -> float:
        """Accumulate, each batch weighted by what it supervises, clip, step; a non-finite loss updates nothing."""
        optimizer.zero_grad()
        share = accelerator.num_processes / _everywhere(sum(b.weight for b in batches), accelerator)
        total = 0.0
        for index, batch in enumerate(batches):
            with _last(index, batches, model, accelerator), autocast(run, accelerator):
                part = loss(model, batch) * share
            accelerator.backward(part)
            total += float(part.detach())
        mean: float = _everywhere(total, accelerator) / accelerator.num_processes
        limit = run.settings.max_grad_norm or math.inf
        norm = float(accelerator.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), limit))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            _not_finite(step, mean, norm, batches)
        optimizer.step()
        return mean


def _everywhere(value: float, accelerator: Accelerator) -> float:
    """The sum of `value` over all processes."""
    import torch

    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device)))


def _last(
    index: int, batches: Sequence[Batch], model: nn.Module, accelerator: Accelerator
) -> AbstractContextManager[Any]:
    """Processes exchange gradients only in the last micro-batch."""
    return nullcontext() if index == len(batches) - 1 else accelerator.no_sync(model)


def _not_finite(step: int, loss: float, norm: float, batches: Sequence[Batch]) -> NoReturn:
    places = [place for batch in batches for place in batch.places]
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    raise FtcoreError(
        f"step {step} gave loss {loss} with gradient norm {norm} and was not applied, so every checkpoint is finite; "
        f"lower --lr or look at the rows of that step: {shown}"
    )


def autocast(run: Run, accelerator: Accelerator) -> AbstractContextManager[Any]:
    """The forward pass in the precision of the run; trainable tensors stay float32."""
    import torch

    kind = dtype_of(run.settings)
    if kind == torch.float32:
        return nullcontext()
    return torch.autocast(accelerator.device.type, dtype=kind)


def learning_rate(settings: Settings, peak: float, step: int, steps: int) -> float:
    """The learning rate of `step`, counted from 1, as transformers' schedules give it.

    It rises from 0 in the first step to `peak` in step warmup + 1, then falls towards `min_lr_ratio` of the peak.
    """
    warmup = settings.warmup_steps if settings.warmup_steps is not None else 3 * steps // 100
    if step <= warmup:
        return peak * (step - 1) / warmup
    if settings.schedule == "constant":
        return peak
    progress = min(1.0, (step - 1 - warmup) / max(1, steps - warmup))
    falling = (1 + math.cos(math.pi * progress)) / 2 if settings.schedule == "cosine" else 1 - progress
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * falling)


def parameter_groups(
    model: nn.Module, settings: Settings, lr_ratio: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """What trains, in groups of one decay and one learning rate; tensors of fewer than two dimensions do not decay.

    `lr_ratio` tells by a parameter's name what its learning rate is multiplied by.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, lr_ratio(name)), []).append(parameter)
    return [{"params": one, "weight_decay": decay, "lr_ratio": ratio} for (decay, ratio), one in groups.items()]


def adam_settings(settings: Settings) -> dict[str, Any]:
    """What optimizers of the Adam family are made with; the learning rate is set before every step."""
    return {"lr": 0.0, "betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon}


def adamw(model: nn.Module, settings: Settings) -> Optimizer:
    """AdamW over what trains."""
    import torch

    return torch.optim.AdamW(parameter_groups(model, settings), **adam_settings(settings))


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER::SLOT` tensors; a plain integer is one of int64 without dimensions."""
    import torch

    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(parameter)]}::{slot}": torch.tensor(value) if isinstance(value, int) else value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def give_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The optimizer's state holds `tensors`, beside the parameters they belong to."""
    import torch

    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("::")
        parameter = parameters[name]
        counted = tensor.ndim == 0
        value = int(tensor) if counted and tensor.dtype == torch.int64 else tensor
        optimizer.state[parameter][slot] = value if counted else tensor.to(parameter.device)


@dataclass(frozen=True)
class Job:
    """All that a loop needs, resolved before it starts."""

    run: Run
    hooks: Hooks
    injected: Injected
    data: Data
    order: Order
    steps: int
    peak_lr: float
    accelerator: Accelerator
    store: Store
    screen: Screen
    log: Callable[[Mapping[str, float]], None]


def train(job: Job, checkpoint: Checkpoint | None) -> float:
    """The adapter is trained to the last step and saved; returns the last loss. Interrupted when asked to stop."""
    raw, settings = job.injected.model, job.run.settings
    optimizer = job.hooks.create_optimizer(job.run, raw)
    done = _resume(job, checkpoint, optimizer)
    model, prepared = job.accelerator.prepare(raw, optimizer)
    loss, report = math.nan, _Clock(job)
    with asked_to_stop() as stop:
        watched = _watched(job, stop)
        try:
            job.screen.started(done, job.steps)
            for step, micro_batches in zip(range(done + 1, job.steps + 1), job.order.after(done), strict=False):
                _leave_together(job, stop)
                if step == 1 or _due(settings.eval_every, done):
                    _evaluate(job, raw, watched, done)
                batches = _batches(job, micro_batches)
                rate = _set_rate(optimizer, learning_rate(settings, job.peak_lr, step, job.steps))
                model.train()
                with seeded(settings.seed, "step", step, job.accelerator.process_index):
                    loss = job.hooks.train_step(
                        run=job.run, step=step, model=model, batches=batches, loss=watched,
                        optimizer=prepared, accelerator=job.accelerator,
                    )  # fmt: skip
                done = step
                if step == 1:
                    _every_tensor_learns(raw)
                report.stepped(step, loss, rate, batches)
                if step == job.steps or _due(settings.save_every, step):
                    _save(job, optimizer, step)
            _evaluate(job, raw, watched, job.steps)
        except Interrupted:
            _save(job, optimizer, done)
            raise
        finally:
            job.screen.finished()
    return loss


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _resume(job: Job, checkpoint: Checkpoint | None, optimizer: Optimizer) -> int:
    """The step that `checkpoint` holds, with weights and optimizer as they were after it."""
    if checkpoint is None:
        return 0
    give(job.injected, checkpoint.tensors["adapter"])
    give_optimizer(job.injected.model, optimizer, checkpoint.tensors["optimizer"])
    return checkpoint.step


def _save(job: Job, optimizer: Optimizer, step: int) -> None:
    """The state after `step` is on disk; one process writes."""
    if job.accelerator.is_main_process:
        tensors = {
            "adapter": job.injected.tensors(),
            "optimizer": optimizer_tensors(job.injected.model, optimizer),
        }
        job.store.save(step, tensors, {"step": step, "steps": job.steps})
        job.screen.saved(step)
    job.accelerator.wait_for_everyone()


def _batches(job: Job, micro_batches: Sequence[Sequence[int]]) -> list[Batch]:
    """This process's share of a step; one with nothing to do takes a batch that weighs nothing."""
    mine = micro_batches[job.accelerator.process_index :: job.accelerator.num_processes]
    made = [moved(job.data.collate([job.data.train[i] for i in rows]), job.accelerator.device) for rows in mine]
    if made:
        return made
    spare = moved(job.data.collate([job.data.train[i] for i in micro_batches[0]]), job.accelerator.device)
    return [Batch(spare.inputs, {k: t.fill_(-100) for k, t in spare.targets.items()}, 0.0, 0, spare.places)]


def _set_rate(optimizer: Optimizer, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)
    return rate


def _every_tensor_learns(model: nn.Module) -> None:
    """Refused when a tensor that should train got no gradient from the first step."""
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise Refused(
            f"{len(idle)} trainable tensors got no gradient in step 1, the first is '{idle[0]}'; "
            "the forward pass does not reach them: choose other parts or another method"
        )


def evaluate(
    run: Run, data: Data, model: nn.Module, order: Order, accelerator: Accelerator, loss: Loss
) -> dict[str, float]:
    """The task's metrics over the held-out rows, each row's loss weighted by what it supervises.

    `model` is not the wrapper that exchanges between processes: they need not have equally many batches.
    """
    import torch

    total, weight = 0.0, 0.0
    model.eval()
    for rows in order.in_order()[accelerator.process_index :: accelerator.num_processes]:
        batch = moved(data.collate([data.eval[i] for i in rows]), accelerator.device)
        with torch.no_grad(), autocast(run, accelerator):
            total += float(loss(model, batch))
        weight += batch.weight
    mean = _everywhere(total, accelerator) / _everywhere(weight, accelerator)
    scores = data.scoring.score(lines(run, data, model, order, accelerator)) if data.scoring else {}
    counted = {"tokens": _everywhere(weight, accelerator), "rows": float(len(data.eval))}
    return {**data.metrics(mean), **scores, **counted}


def lines(
    run: Run, data: Data, model: nn.Module, order: Order, accelerator: Accelerator
) -> Sequence[Mapping[str, Any]]:
    """What the model answers to the held-out rows, an object for each record; all of them in every process.

    While a run trains, answers that are written token by token are those to the first `score_rows` rows.
    """
    import torch
    from accelerate.utils import gather_object

    assert data.scoring is not None
    limited = data.scoring.generates and run.intent == "train"
    count = min(run.settings.score_rows, len(data.eval)) if limited else len(data.eval)
    batches = [kept for rows in order.in_order() if (kept := [i for i in rows if i < count])]
    model.eval()
    answers: list[tuple[int, Any]] = []
    for rows in batches[accelerator.process_index :: accelerator.num_processes]:
        with torch.no_grad(), autocast(run, accelerator):
            said = data.scoring.predict(model, [data.eval[i] for i in rows])
        answers += zip(rows, said, strict=True)
    if accelerator.num_processes > 1:
        answers = gather_object(answers)
    found = dict(answers)
    return data.scoring.lines([data.eval[i] for i in range(count)], [found[i] for i in range(count)])


def _evaluate(job: Job, model: nn.Module, loss: Loss, step: int) -> None:
    if not job.data.eval:
        return
    order = evaluation_order(job.run.settings, job.data)
    metrics = evaluate(job.run, job.data, model, order, job.accelerator, loss)
    if not math.isfinite(metrics["loss"]):
        raise FtcoreError(
            f"the held-out loss after step {step} is {metrics['loss']}; the weights, or a row of the held-out data, "
            "hold what no number can come of"
        )
    job.screen.evaluated(step, {name: value for name, value in metrics.items() if name not in ("tokens", "rows")})
    job.log({"step": step, **{f"eval_{name}": value for name, value in metrics.items()}})


def evaluation_order(settings: Settings, data: Data) -> Order:
    """The held-out rows in their own order."""
    return Order(sizes_of(data.eval), settings.seed, settings.batch_size, settings.batch_tokens, 1)


class _Clock:
    """Counts tokens and seconds between steps, for the screen and the log."""

    def __init__(self, job: Job) -> None:
        self.job, self.before = job, time.monotonic()

    def stepped(self, step: int, loss: float, rate: float, batches: Sequence[Batch]) -> None:
        """The step is on the screen and, when it is its turn, in the log."""
        now = time.monotonic()
        tokens = sum(batch.tokens for batch in batches)
        report = StepReport(step, self.job.steps, loss, rate, tokens, now - self.before)
        self.before = now
        logged = step % self.job.run.settings.log_every == 0 or step in (1, self.job.steps)
        self.job.screen.stepped(report, logged)
        if logged:
            self.job.log({"step": step, "loss": loss, "lr": rate, "tokens": tokens})


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT end the run with Interrupted at once: outside the loop there is nothing to save."""

    def leave(number: int, frame: object) -> None:
        raise Leave

    try:
        with _handled(leave):
            yield
    except Leave:
        raise Interrupted(STOPPED) from None


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in the main thread; a second signal ends the process at once."""
    event = threading.Event()

    def ask(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled(ask):
        yield event


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """SIGTERM and SIGINT go to `handler`, where handlers can be set: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


STOPPED = "stopped as asked; everything is saved, run the same command again to go on"


def _leave_together(job: Job, stop: threading.Event) -> None:
    """Several processes stop before the same step, or they would wait for each other for ever."""
    if _everywhere(float(stop.is_set()), job.accelerator):
        raise Interrupted(STOPPED)


def _watched(job: Job, stop: threading.Event) -> Loss:
    """The task's loss, which leaves a step half-way when a lone process was asked to stop: nothing is updated yet."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if stop.is_set() and job.accelerator.num_processes == 1:
            raise Interrupted(STOPPED)
        return job.data.loss(model, batch)

    return loss
