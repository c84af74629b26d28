"""What a run would do, found out without its weights: the same path on the meta device, up to the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from ftcore import config
from ftcore.adapters import Injected
from ftcore.config import Recipe
from ftcore.discovery import Hooks
from ftcore.errors import Refused
from ftcore.hooks import Data, Loaded, Piece, Run
from ftcore.pipeline import MANY_STEPS, begin, completed, inject_adapter, load_model, order_of, prepare_data
from ftcore.progress import Screen, size
from ftcore.settings import dtype_of


@dataclass(frozen=True)
class Plan:
    """What `ftcore plan` reports; `refused` says why the run would not start, and is None when it would."""

    title: str = ""
    refused: str | None = None
    notices: tuple[str, ...] = ()
    plugins: tuple[Mapping[str, str], ...] = ()
    model: str = ""
    trainable_parameters: int = 0
    total_parameters: int = 0
    matched_modules: tuple[str, ...] = ()
    steps: int = 0
    rows: int = 0
    eval_rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    batch_tokens: int = 0
    packed: bool = True
    peak_memory_bytes: int = 0
    sample: tuple[Piece, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)


def plan(keys: Mapping[str, object], screen: Screen) -> Plan:
    """The run that `keys` describe, taken as far as it goes without weights; a refusal is part of the answer."""
    notices: list[str] = []
    try:
        return _plan(completed(config.resolve(keys)), notices)
    except Refused as refusal:
        return Plan(refused=str(refusal), notices=tuple(notices))
    finally:
        screen.finished()


def _plan(recipe: Recipe, notices: list[str]) -> Plan:
    hooks, run = begin(recipe, "plan", notices.append)
    loaded = load_model(hooks, run)
    width = dtype_of(recipe.settings).itemsize
    stored = stored_bytes(loaded, bits_of(hooks, run), width)
    total = sum(p.numel() for p in loaded.model.parameters())
    data = prepare_data(hooks, run, loaded) if loaded.tokenizer is not None else None
    if data is None:
        notices.append("the checkpoint has no tokenizer, so the data was not looked at")
    elif not data.train:
        raise Refused("there are no training rows; name a file with --data")
    order = order_of(recipe, loaded, data) if data else None
    steps = recipe.settings.steps or (order.steps(recipe.settings.epochs) if order else 0)
    largest = order.largest if order else recipe.settings.batch_size * recipe.settings.max_length
    injected = inject_adapter(hooks, run, loaded, data, steps or MANY_STEPS)
    stored -= width * max(0, injected.trainable - (injected.total - total))  # what trains of the base is counted apart
    counts = dict(data.counts) if data else {}
    return Plan(
        title=recipe.title,
        notices=tuple(notices),
        plugins=tuple(
            {"kind": c.kind, "name": c.name, "distribution": c.distribution, "version": c.version}
            for c in recipe.chosen
        ),
        model=f"{type(loaded.model).__name__} of {loaded.checkpoint}",
        trainable_parameters=injected.trainable,
        total_parameters=injected.total,
        matched_modules=injected.matched,
        steps=steps,
        rows=len(data.train) if data else 0,
        eval_rows=len(data.eval) if data else 0,
        tokens=counts.get("tokens", 0),
        supervised_tokens=counts.get("supervised_tokens", 0),
        counts=counts,
        batch_tokens=largest,
        packed=not loaded.unpackable and recipe.settings.packing == "auto",
        peak_memory_bytes=peak_memory(recipe, loaded, injected, stored, data, largest),
        sample=tuple(Piece(*piece) for piece in data.sample) if data else (),
    )


def bits_of(hooks: Hooks, run: Run) -> int | None:
    """Bits of a weight in the blocks, where a run would load them quantised as transformers' configurations say."""
    quantized = hooks.load_kwargs(replace(run, intent="train")).get("quantization_config")
    if getattr(quantized, "load_in_4bit", False):
        return 4
    return 8 if getattr(quantized, "load_in_8bit", False) else None


def stored_bytes(loaded: Loaded, bits: int | None, width: int) -> int:
    """Bytes of the base: `width` for each number, or `bits` / 8 for those of matrices in the blocks."""
    blocks = tuple(f"{name}." for name in loaded.parts.get("block", ()))
    sizes = {True: 0, False: 0}
    for name, parameter in loaded.model.named_parameters():
        sizes[bits is not None and parameter.ndim == 2 and name.startswith(blocks)] += parameter.numel()
    return sizes[True] * (bits or 0) // 8 + sizes[False] * width


def peak_memory(recipe: Recipe, loaded: Loaded, injected: Injected, stored: int, data: Data | None, tokens: int) -> int:
    """An estimate in bytes: `stored` ones of weights, 16 a trained number, and what a step of `tokens` tokens keeps.

    A block keeps about 16 vectors of the hidden size and 4 of the feed-forward size for each token, or its input
    alone with gradient checkpointing; the head keeps its logits in float32, twice, where a token is supervised.
    """
    shape: Any = getattr(loaded.model, "config", None)
    width: int = dtype_of(recipe.settings).itemsize
    hidden, layers = int(getattr(shape, "hidden_size", 0)), int(getattr(shape, "num_hidden_layers", 0))
    block = 16 * hidden + 4 * int(getattr(shape, "intermediate_size", 4 * hidden))
    kept = hidden * layers + block if recipe.settings.gradient_checkpointing else block * layers
    counts = data.counts if data else {}
    share = counts.get("supervised_tokens", 1) / max(1, counts.get("tokens", 1))
    logits = round(2 * 4 * tokens * share * loaded.vocab_size)
    return stored + 16 * injected.trainable + tokens * kept * width + logits


def text(planned: Plan, *, colour: bool = False) -> str:
    """The plan as a person reads it; what is learned of the sample stands between ⟦ and ⟧, its tokens parted by │."""
    if planned.refused:
        return f"this run would be refused: {planned.refused}"
    share = 100 * planned.trainable_parameters / max(1, planned.total_parameters)
    lines = [
        planned.title,
        *planned.notices,
        f"model        {planned.model}",
        f"plugins      {', '.join(_named(p) for p in planned.plugins)}",
        f"trainable    {planned.trainable_parameters:,} of {planned.total_parameters:,} ({share:.3f} %)",
        f"modules      {len(planned.matched_modules)}: {_abridged(planned.matched_modules)}",
        f"rows         {planned.rows:,} to train on, {planned.eval_rows:,} held out",
        f"counts       {', '.join(_counted(k, v) for k, v in planned.counts.items())}",
        f"steps        {planned.steps:,}, at most {planned.batch_tokens:,} tokens in a micro-batch, "
        + ("packed without padding" if planned.packed else "padded"),
        f"memory       about {size(planned.peak_memory_bytes)} (an estimate)",
        f"sample       {masked(planned.sample, colour=colour)}",
    ]
    return "\n".join(lines)


def _named(plugin: Mapping[str, str]) -> str:
    return f"{plugin['kind']} {plugin['name']} {plugin['version']}"


def _counted(name: str, count: int) -> str:
    return f"{name.replace('_', ' ')} {count:,}"


def _abridged(names: tuple[str, ...], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (" …" if len(names) > shown else "")


def masked(sample: Sequence[Piece], *, colour: bool = False) -> str:
    """Text of a row token by token: learned tokens between ⟦ and ⟧, or each with its label, and whose they are."""
    groups = [(key, list(pieces)) for key, pieces in groupby(sample, key=lambda piece: (piece.role, _kind(piece)))]
    told, before = [], ""
    for (role, kind), pieces in groups:
        told.append(f"[{role}] " if role and role != before else "")
        told.append(_group(kind, pieces, colour=colour))
        before = role
    return "".join(told)


def _kind(piece: Piece) -> str:
    return "label" if isinstance(piece.learned, str) and piece.learned else "token" if piece.learned else ""


def _group(kind: str, pieces: Sequence[Piece], *, colour: bool) -> str:
    if kind == "label":
        return "".join(_styled(f"{piece.text}⟦{piece.learned}⟧", "green", colour=colour) for piece in pieces)
    text = "│".join(piece.text for piece in pieces)
    return _styled(f"⟦{text}⟧", "green", colour=colour) if kind else _styled(text, "bright_black", colour=colour)


def _styled(text: str, name: str, *, colour: bool) -> str:
    import click

    return click.style(text, fg=name) if colour else text
