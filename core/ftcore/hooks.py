"""The contract with plugins: the hooks, in the order a run calls them, and the frozen values they pass along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import pluggy

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedTokenizerBase

    from ftcore.converting import Place
    from ftcore.settings import Settings

hookspec = pluggy.HookspecMarker("ftcore")
hookimpl = pluggy.HookimplMarker("ftcore")

# What the model is loaded for; rows to predict need no answers of their own.
Intent = Literal["train", "plan", "merge", "infer", "predict"]


@dataclass(frozen=True)
class Run:
    """What is asked for: the settings, the head the task needs, and why the model is being loaded."""

    settings: Settings
    intent: Intent
    head: str
    output: Path | None = None
    say: Callable[[str], None] = field(default=lambda line: None, repr=False)


@dataclass(frozen=True)
class Loaded:
    """A base model with its tokenizer and what methods and tasks need to know about the family.

    `parts` maps a role (`attention.q`, `mlp.up`, `embedding`, `head`, `norm`, `block`) to module names.
    `unpackable` says why rows cannot be laid end to end; empty means that they can. `lr_scale` is what a method's
    suggested learning rate is multiplied by: a very small model wants larger steps. `tensors` opens the checkpoint's
    tensors under the model's names, each read when it is asked for, where its files hold them in another shape, and
    `places` says what each of them is cut from. `trained` are modules that train whole beside any method, as a head
    does that the checkpoint lacks.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    parts: Mapping[str, tuple[str, ...]]
    checkpoint: str
    max_positions: int
    vocab_size: int
    stop_ids: tuple[int, ...] = ()
    unpackable: str = ""
    lr_scale: float = 1.0
    tensors: Callable[[], Mapping[str, Tensor]] | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    trained: tuple[str, ...] = ()


class Row(Protocol):
    """One training example: how long it is, where it came from, and the bytes that identify it."""

    @property
    def size(self) -> int:
        """Tokens the model reads for this row."""

    @property
    def place(self) -> str:
        """`file:line` of the row."""

    def identity(self) -> bytes:
        """Bytes that differ whenever what the model learns from the row differs."""


@dataclass(frozen=True)
class Batch:
    """Rows ready for the model: `inputs` are the forward's keywords, `weight` is what the loss is summed over."""

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    weight: float
    tokens: int
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A question asked before and after training: the text a person sees and the tokens the model gets."""

    question: str
    input_ids: tuple[int, ...]


class Piece(NamedTuple):
    """A token, or more, of a row as a person sees it: its text, what is learned there, and whose it is."""

    text: str
    learned: str | bool = False
    role: str = ""


@dataclass(frozen=True)
class Scoring:
    """What a task makes of held-out rows beside their loss: an answer to each, and figures over all answers.

    `predict(model, rows)` gives one answer for each row, of plain values, which processes exchange; `lines(rows,
    answers)` one JSON object for each record that the rows came from, in their order, as `ftcore predict` writes it;
    `score(lines)` figures by name, of lines that hold what is right. `generates` tells that answers are written token
    by token: while a run trains, only the first `--score-rows` are.
    """

    predict: Callable[[nn.Module, Sequence[Any]], Sequence[Any]]
    lines: Callable[[Sequence[Any], Sequence[Any]], Sequence[Mapping[str, Any]]]
    score: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, float]]
    generates: bool = False


@dataclass(frozen=True)
class Data:
    """Rows, how to batch them, and the loss.

    `loss(model, batch)` is the sum, not the mean, over `batch.weight` supervised items, as a scalar tensor.
    `counts` are tokens by role and rows left out or cut; `sample` is one row in pieces: (text, learned), or with a
    role. `shares` parts the training rows, in their order, into runs of so many rows, of which an epoch takes so many.
    """

    train: Sequence[Row]
    eval: Sequence[Row]
    collate: Callable[[Sequence[Any]], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    counts: Mapping[str, int] = field(default_factory=dict)
    sample: tuple[tuple[str, bool] | Piece, ...] = ()
    probes: tuple[Probe, ...] = ()
    stop_ids: tuple[int, ...] = ()
    metrics: Callable[[float], Mapping[str, float]] = lambda loss: {"loss": loss}
    scoring: Scoring | None = None
    shares: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Example:
    """A row in the shape that a task reads, and the texts in it that the model learns to say, as they are written.

    The conformance kit tries a task on those it declares as `examples`. `learned` is empty where no text is learned.
    """

    row: Mapping[str, Any]
    learned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """What a method keeps on disk: its configuration, its tensors, and the library that reads them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    library: str = "ftcore"


@hookspec
def fill_options(run: Run) -> Mapping[str, Any] | None:
    """Called before anything is loaded, when a run begins or is planned: options of this plugin that its rows decide.

    The run is recorded with them, so that it can be opened without its rows: a classifier's labels. Every plugin is
    asked by itself.
    """


@hookspec
def load_kwargs(run: Run) -> Mapping[str, Any] | None:
    """Called before the model is loaded: keywords for its `from_pretrained`, fields of its config, or None.

    Every answer counts; two plugins that want different values of one key are refused by name.
    """


@hookspec(firstresult=True)
def load_model(run: Run, kwargs: Mapping[str, Any]) -> Loaded | None:
    """Called once: the base model of `run.settings.checkpoint` with `run.head`, its tokenizer and parts.

    Answered by the model plugin. Stops at the first answer.
    """


@hookspec(firstresult=True)
def prepare_data(run: Run, loaded: Loaded) -> Data | None:
    """Called after the model is loaded: the rows, their batches and the loss.

    Answered by the task plugin. Stops at the first answer.
    """


@hookspec
def inject_adapter(run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
    """Called for each method in the order named: the model with the adapter in place.

    Every parameter arrives frozen; those that require a gradient afterwards are trained. `model` is what the
    method before returned, and `loaded` holds it with its parts as they are named in it. `data` is None and `steps`
    is the trained run's when the intent is merge or infer.
    """


@hookspec
def create_optimizer(run: Run, model: nn.Module) -> Optimizer | None:
    """Called once, before the first step: the optimizer over what trains in `model`, or None to leave it to the core.

    Its learning rates are set before every step, to the schedule's times a group's `lr_ratio` where it has one;
    `ftcore.training.parameter_groups` makes the groups. The core's own is AdamW. Two plugins that both answer are
    refused by name.
    """


@hookspec(firstresult=True)
def train_step(
    run: Run,
    step: int,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer,
    accelerator: Accelerator,
) -> float:
    """Called for each optimizer step, counted from 1: the mean loss over the supervised items of `batches`.

    The core answers last: zero the gradients, accumulate over `batches`, clip, step. Gradients are still there
    afterwards, so that a wrapper can look at them. Stops at the first answer.
    """


@hookspec(firstresult=True)
def save_adapter(run: Run, model: nn.Module) -> Adapter | None:
    """Called when a run of one method has finished: the adapter in the method's published format.

    The core answers last, with the trained tensors under their own names. Stops at the first answer.
    """


@hookspec(firstresult=True)
def load_adapter(run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str] | None:
    """Called after injection to give the model a saved adapter: the names of the tensors it took.

    A tensor that nobody took stops the run. The core answers last. Stops at the first answer.
    """


@hookspec
def merge(run: Run, model: nn.Module) -> nn.Module:
    """Called for each method in reverse order: the model with this method's change folded into plain weights.

    A method without it cannot be merged. The core may pass a model that holds only some of its blocks.
    """
