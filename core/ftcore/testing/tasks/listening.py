"""What a loss asks of a model, read from the gradient of logits that are put into its mouth.

For a sum of cross-entropies the gradient at a position is weight · (softmax(logits) − the target as one-hot): it tells
which positions are supervised, with which target and which weight, however a task shifts or masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftcore.hooks import Batch
from ftcore.testing.kit import Failed

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Callable[["nn.Module", Batch], "Tensor"]
Speech = Callable[["Tensor"], "Tensor"]

# A cross-entropy's gradient fits its own formula to about 1e-6 in float32; anything else misses it by far.
FIT = 1e-3


@dataclass(frozen=True)
class Taught:
    """One prediction that a loss asks for: from a position of a row of the batch, a token, with a weight.

    `at` is its place among all logits that the model gave.
    """

    at: int
    row: int
    position: int
    target: int
    weight: float


@dataclass(frozen=True)
class Heard:
    """A batch's loss, the logits it was made from, and what it teaches.

    `odd` says where it is no cross-entropy; `placed` whether it is known which logits belong to which token.
    """

    value: Tensor
    logits: Tensor
    taught: tuple[Taught, ...]
    odd: str
    placed: bool
    inputs: Mapping[str, Any]

    @property
    def weight(self) -> float:
        """The sum of the weights."""
        return sum(one.weight for one in self.taught)

    def amount(self, taught: Sequence[Taught]) -> float:
        """The sum of cross-entropies that `taught` comes to with the logits that were heard."""
        import torch

        cross = -torch.log_softmax(self.logits.double(), -1)
        return sum(one.weight * float(cross[one.at, one.target]) for one in taught)

    def lesson(self) -> Counter[tuple[int, float]]:
        """Each target with its weight, as often as it is taught, wherever it stands."""
        return Counter((one.target, round(one.weight, 4)) for one in self.taught)


@dataclass
class Ear:
    """What was given to the model and what its head was made to say."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def random_speech(output: Tensor) -> Tensor:
    """Logits that favour nothing in particular, always the same for one shape."""
    import torch

    generator = torch.Generator().manual_seed(7)
    return 2.0 * torch.randn(output.shape, generator=generator)


def even_speech(output: Tensor) -> Tensor:
    """Logits of a model that holds every token for equally likely."""
    import torch

    return torch.zeros(output.shape)


def knowing_speech(taught: Sequence[Taught]) -> Speech:
    """Logits of a model that knows every token that is asked of it."""

    def speech(output: Tensor) -> Tensor:
        import torch

        logits = torch.zeros(output.shape)
        flat = logits.view(-1, logits.shape[-1])
        for one in taught:
            flat[one.at, one.target] = 60.0
        return logits

    return speech


def listen(model: nn.Module, loss: Loss, batch: Batch, speech: Speech = random_speech, kind: Any = None) -> Heard:
    """What `loss` teaches with `batch`, seen at logits of `speech`, in the number format `kind` if one is given."""
    import torch

    with _speaking(model, speech, kind) as ear, torch.enable_grad():
        value = loss(model, batch)
    if not isinstance(value, torch.Tensor) or value.ndim:
        raise Failed(
            f"the loss is {type(value).__name__} of shape {getattr(value, 'shape', '()')}, not a scalar tensor"
        )
    if not ear.logits or not value.requires_grad:
        raise Failed("the loss does not depend on the logits of the model it is given; compute it from them")
    slopes = torch.autograd.grad(value, ear.logits, allow_unused=True)
    grads = [torch.zeros_like(z) if g is None else g for z, g in zip(ear.logits, slopes, strict=True)]
    width = ear.logits[0].shape[-1]
    logits = torch.cat([z.detach().reshape(-1, width) for z in ear.logits])
    seen = logits if kind is None else logits.to(kind).float()
    return _read(value, seen, torch.cat([g.reshape(-1, width) for g in grads]), _places(ear), _merged(ear))


@contextmanager
def _speaking(model: nn.Module, speech: Speech, kind: Any) -> Iterator[Ear]:
    """Inside, the head of `model` says what `speech` makes up, and everything else is the model's own doing."""
    ear = Ear()

    def given(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        names = ("input_ids", "attention_mask")
        ear.inputs.append({**dict(zip(names, arguments, strict=False)), **keywords})

    def said(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        ear.logits.append(speech(output).requires_grad_(True))
        return ear.logits[-1] if kind is None else ear.logits[-1].to(kind)

    handles = [model.register_forward_pre_hook(given, with_kwargs=True), head_of(model).register_forward_hook(said)]
    try:
        yield ear
    finally:
        for handle in handles:
            handle.remove()


def head_of(model: nn.Module) -> nn.Module:
    """The module that logits come out of."""
    from torch import nn

    own = model.get_output_embeddings()  # type: ignore[operator]
    found: nn.Module = own or [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return found


def _merged(ear: Ear) -> Mapping[str, Any]:
    return ear.inputs[0] if len(ear.inputs) == 1 else {}


def _places(ear: Ear) -> list[tuple[int, int]] | None:
    """The row and position that each logit belongs to, or None where that cannot be told."""
    if len(ear.inputs) != 1:
        return None
    given = ear.inputs[0]
    read = next((given[k] for k in ("decoder_input_ids", "labels", "input_ids") if given.get(k) is not None), None)
    if read is None or read.ndim != 2:
        return None
    rows, width = read.shape
    kept = _kept(given.get("logits_to_keep", 0), width)
    count = sum(z.shape[:-1].numel() for z in ear.logits)
    positions = kept if count == rows * len(kept) else list(range(width))
    if count != rows * len(positions):
        return None
    return [(row, position) for row in range(rows) for position in positions]


def _kept(asked: Any, width: int) -> list[int]:
    """The positions whose logits transformers computes for `logits_to_keep`."""
    if isinstance(asked, int):
        return list(range(width))[-asked:] if asked else list(range(width))
    kept: list[int] = asked.tolist()
    return [position % width for position in kept]


def _read(
    value: Tensor, logits: Tensor, slopes: Tensor, places: list[tuple[int, int]] | None, inputs: Mapping[str, Any]
) -> Heard:
    import torch

    chance = torch.softmax(logits.double(), -1)
    weights = (slopes.double() / chance).median(-1).values
    hot = weights[:, None] * chance - slopes.double()
    targets = hot.abs().argmax(-1)
    size = slopes.abs().amax(-1).double()
    misfit = hot.scatter_add(1, targets[:, None], -weights[:, None]).abs().amax(-1)
    wrong = ((misfit > FIT * size) | (weights <= 0)).tolist()
    supervised = torch.nonzero(size > 1e-7).squeeze(-1).tolist()
    found = places or [(0, at) for at in range(len(logits))]
    asked, weighed = targets.tolist(), weights.tolist()
    taught = [Taught(at, found[at][0], found[at][1], asked[at], weighed[at]) for at in supervised]
    odd = next((at for at in supervised if wrong[at]), None)
    return Heard(
        value=value.detach(),
        logits=logits,
        taught=tuple(taught),
        odd="" if odd is None else f"row {found[odd][0]}, position {found[odd][1]}",
        placed=places is not None,
        inputs=inputs,
    )
