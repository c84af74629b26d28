"""What methods are tried with beside the stage's own: a task for every head, and a method that wraps the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftcore.adapters import PartialParts
from ftcore.batches import IGNORED
from ftcore.declaring import options
from ftcore.hooks import Batch, Data, Loaded, Run, hookimpl
from ftcore.seeds import mix
from ftcore.testing.stage import FusedDecoder

if TYPE_CHECKING:
    from torch import Tensor, nn

PAD = 0


@dataclass(frozen=True)
class ExerciseRow:
    """A few tokens; what is to be learnt of them follows from the head."""

    number: int
    ids: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens in the row."""
        return len(self.ids)

    @property
    def place(self) -> str:
        """Where the row came from."""
        return f"exercise:{self.number + 1}"

    def identity(self) -> bytes:
        """The tokens."""
        return repr(self.ids).encode()


@options
class Exercise:
    """The kit's task for heads other than that of a decoder: padded rows with a right answer for each."""

    head: Annotated[str, Field(description="The head that is exercised.")]

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Eight rows of 5 to 12 tokens, and two held out."""
        rows = [exercise_row(number, loaded.vocab_size) for number in range(10)]
        return Data(rows[:8], rows[8:], partial(padded, self.head), exercise_loss, {"rows": 8})


def exercise_row(number: int, vocab_size: int) -> ExerciseRow:
    """The row of that number: the same for ever."""
    size = 5 + 3 * number % 8
    return ExerciseRow(number, tuple(3 + mix(number, "exercise", at) % (vocab_size - 3) for at in range(size)))


def padded(head: str, rows: Sequence[ExerciseRow]) -> Batch:
    """The rows padded on the right, with what `head` is to answer to them."""
    import torch

    width = max(row.size for row in rows)
    ids = torch.tensor([[*row.ids, *[PAD] * (width - row.size)] for row in rows])
    mask = torch.tensor([[1] * row.size + [0] * (width - row.size) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if head == "seq2seq-lm":
        inputs["decoder_input_ids"] = ids.roll(1, 1)
    labels = _labels(head, rows, ids, mask)
    weight = float((labels != IGNORED).sum())
    return Batch(inputs, {"labels": labels}, weight, sum(row.size for row in rows), tuple(row.place for row in rows))


def _labels(head: str, rows: Sequence[ExerciseRow], ids: Tensor, mask: Tensor) -> Tensor:
    import torch

    if head == "sequence-classification":
        return torch.tensor([row.number % 2 for row in rows])
    if head == "question-answering":
        return torch.tensor([[1, row.size - 2] for row in rows])
    wanted = ids % 2 if head == "token-classification" else ids
    return wanted.masked_fill(mask == 0, IGNORED)


def exercise_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of cross-entropies over what is to be answered."""
    from torch.nn.functional import cross_entropy

    said = logits_of(model(**batch.inputs))
    labels = batch.targets["labels"].reshape(-1)
    return cross_entropy(said.reshape(-1, said.shape[-1]), labels, ignore_index=IGNORED, reduction="sum")


def logits_of(output: Any) -> Tensor:
    """What a model answers, in float32: its logits, or those of where an answer starts and of where it ends."""
    import torch

    if "logits" in output:
        logits: Tensor = output.logits
        return logits.float()
    return torch.stack([output.start_logits, output.end_logits], 1).float()


@options
class FusedOnce(FusedDecoder):
    """The same model as the stage's with fused projections, each module under one role only."""

    first: Annotated[str, Field(description="The role that is asked first.")]

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, with no module under a second role."""
        loaded = super().load_model(run, kwargs)
        taken: set[str] = set()
        parts: dict[str, tuple[str, ...]] = {}
        for role in sorted(loaded.parts, key=lambda role: role != self.first):
            parts[role] = tuple(name for name in loaded.parts[role] if name not in taken)
            taken.update(parts[role])
        return replace(loaded, parts=PartialParts(parts))


@options
class Envelope:
    """The kit's method that wraps: the model is inside another module, as some libraries leave it; a weight trains."""

    module: Annotated[str, Field(description="The module whose weight trains.")]

    @hookimpl
    def inject_adapter(self, model: nn.Module) -> nn.Module:
        """The model in an envelope."""
        for name, module in model.named_modules():
            if f".{name}".endswith(f".{self.module}"):
                module.get_parameter("weight").requires_grad_(True)
        return envelope(model)

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model without its envelope."""
        return model.get_submodule("inside")


def envelope(model: nn.Module) -> nn.Module:
    """A module that holds `model` and does as it does."""
    from torch import nn

    class Enveloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, *given: Any, **named: Any) -> Any:
            return self.inside(*given, **named)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inside"), name)

    return Enveloped()


def head_fields(head: str) -> Mapping[str, Any]:
    """What a tiny checkpoint of `head` needs in its config."""
    if head == "masked-lm":
        return {"tie_word_embeddings": True}  # as encoders have it; some have an idle tensor where it is not so
    return {"num_labels": 2} if head.endswith("classification") else {}
