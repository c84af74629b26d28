"""Merging one block at a time: the model is never in memory whole, whatever its size."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import directory
from ftcore.adapters import Injected, PartialParts, fold, give, inject
from ftcore.discovery import Hooks
from ftcore.errors import FtcoreError, Refused
from ftcore.families import read_tokenizer
from ftcore.hooks import Adapter, Loaded, Run
from ftcore.pipeline import load_base, reopen
from ftcore.seeds import seeded
from ftcore.settings import dtype_of
from ftcore.weights import Files

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 5 * 10**9
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
REST = ""
Sizes = Mapping[str, tuple[tuple[int, ...], int]]  # shape and bytes of each tensor


@dataclass(frozen=True)
class Source:
    """A run to merge: its plugins, the model without weights, the weights, read when asked for, and the adapter.

    `heads` are the tensors that train whole beside the methods, by the name that each has in the adapter.
    """

    hooks: Hooks
    run: Run
    skeleton: Loaded
    tensors: Mapping[str, Tensor]
    adapter: Adapter
    steps: int
    heads: Mapping[str, str]


def write(output: Path, folder: Path, overrides: Mapping[str, object], say: Callable[[str], None]) -> float:
    """`folder` holds the merged checkpoint of the run in `output`; returns the largest difference seen in a layer.

    Each block is made real on its own, adapted, folded, compared and written: peak memory is the largest block's, or
    that of all that is in none.
    """
    source = opened(output, overrides, say)
    taken: set[str] = set()
    worst = 0.0
    kind = DTYPES[str(dtype_of(source.run.settings)).removeprefix("torch.")]
    places = lay_out(folder, sizes(source), kind)
    for block in (*source.skeleton.parts.get("block", ()), REST):
        tensors, used, difference = merged_part(source, block)
        taken |= used
        worst = max(worst, difference)
        for name, tensor in tensors.items():
            put(places[name], tensor)
    unused = sorted(source.adapter.tensors.keys() - taken)
    if unused:
        raise FtcoreError(f"no block of the model took tensor '{unused[0]}' of the adapter; merge without --stream")
    _write_configuration(source.skeleton, read_tokenizer(str(output)), folder)
    return worst


def convert(loaded: Loaded, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """`folder` is a plain checkpoint of `tensors`, written one at a time in the precision of the first."""
    dtype = next(tensor.dtype for tensor in tensors.values())
    state = loaded.model.state_dict()
    held = {name: (tuple(state[name].shape), state[name].numel() * dtype.itemsize) for name in tensors}
    places = lay_out(folder, held, DTYPES[str(dtype).removeprefix("torch.")])
    for name, tensor in tensors.items():
        put(places[name], tensor.to(dtype))
    model: Any = loaded.model
    model.config.dtype = dtype
    _write_configuration(loaded, loaded.tokenizer, folder)


def opened(output: Path, overrides: Mapping[str, object], say: Callable[[str], None]) -> Source:
    """The run in `output`, its base on the meta device; refused when base or adapter are not what they were."""
    _, hooks, run, steps = reopen(output, "merge", overrides, say)
    skeleton = load_base(hooks, replace(run, intent="plan"), output)
    tensors = skeleton.tensors() if skeleton.tensors else Stored(skeleton.checkpoint)
    adapter = directory.read_adapter(output)
    return Source(hooks, run, skeleton, tensors, adapter, steps, dict(_heads(skeleton, adapter)))


def _heads(skeleton: Loaded, adapter: Adapter) -> Iterator[tuple[str, str]]:
    """The model's tensors that train whole, with their names in the adapter, where methods may have wrapped them."""
    inside = tuple(f"{name}." for name in skeleton.trained)
    for name in skeleton.model.state_dict():
        found = [key for key in adapter.tensors if f".{key}".endswith(f".{name}")] if name.startswith(inside) else []
        yield from ((name, key) for key in found[:1])


class Stored(Mapping[str, "Tensor"]):
    """The tensors of a checkpoint directory, each read when it is asked for."""

    def __init__(self, checkpoint: str) -> None:
        self.files = Files(Path(checkpoint))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in the precision in which it is stored."""
        if name not in self.files.shapes:
            raise KeyError(name)
        return self.files.read(name)

    def __iter__(self) -> Iterator[str]:
        """The names, file by file."""
        return iter(self.files.shapes)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self.files.shapes)


def sizes(source: Source) -> Sizes:
    """Shape and bytes of every tensor that the merged checkpoint holds, each tied one once."""
    width = dtype_of(source.run.settings).itemsize
    state = source.skeleton.model.state_dict()
    return {name: (tuple(t.shape), t.numel() * width) for name, t in state.items() if _is_stored(source, name)}


def merged_part(source: Source, block: str) -> tuple[dict[str, Tensor], set[str], float]:
    """The merged tensors of one block, or of all that is in none; the adapter tensors used; the largest difference."""
    from torch import nn

    model, names = real_part(source, block)
    mine = {name: t for name, t in source.adapter.tensors.items() if _block_of(source, name) in (block, REST)}
    whole = set() if block else set(source.heads.values())  # the part has them already
    if not any(_block_of(source, name) == block for name in mine.keys() - whole):
        return _written(source, model, names), whole, 0.0
    present = {name for name, module in model.named_modules() if not isinstance(module, nn.Identity)}
    parts = PartialParts({role: tuple(n for n in part if n in present) for role, part in source.skeleton.parts.items()})
    loaded = replace(source.skeleton, model=model, parts=parts)
    try:
        injected = inject(source.hooks, source.run, loaded, None, source.steps)
    except Refused:
        if block:
            raise
        return _written(source, model, names), whole, 0.0  # what is in no block was shared among them, or is nobody's
    used = _given(source, injected, mine)
    injected.model.eval()
    before = dict(answers(injected.model, injected.matched))
    merged = fold(source.hooks, source.run, injected.model)
    exact = dtype_of(source.run.settings).itemsize == 4
    difference = compare(before, dict(answers(merged, injected.matched)), 1e-4 if exact else 6e-2)
    return _written(source, merged, names), used | whole, difference


def real_part(source: Source, block: str) -> tuple[nn.Module, list[str]]:
    """The model with only one block real, every other part empty; or with all but the blocks."""
    from torch import nn

    model: nn.Module = copy.deepcopy(source.skeleton.model)
    blocks = set(source.skeleton.parts.get("block", ()))
    for name in _beside(model, block) if block else blocks:
        model.set_submodule(name, nn.Identity())
    names = [name for name in model.state_dict() if not block or name.startswith(f"{block}.")]
    tensors = {name: tensor for name in names if (tensor := _read(source, name)) is not None}
    model.load_state_dict(tensors, strict=False, assign=True)
    return model, list(tensors)


def _beside(model: nn.Module, block: str) -> list[str]:
    """The largest modules that neither hold `block` nor are in it."""
    around = [block.rsplit(".", depth)[0] for depth in range(1, block.count(".") + 1)]
    parents = ["", *around]
    children = [f"{p}.{name}".lstrip(".") for p in parents for name, _ in model.get_submodule(p).named_children()]
    return [name for name in children if name != block and name not in parents]


def _read(source: Source, name: str) -> Tensor | None:
    """A tensor of checkpoint or trained head in the precision of the run; None for the second name of a tied one."""
    if not _is_stored(source, name):
        return None
    tensor = source.adapter.tensors[source.heads[name]] if name in source.heads else source.tensors[name]
    return tensor.to(dtype_of(source.run.settings))


def _is_stored(source: Source, name: str) -> bool:
    """Whether checkpoint or adapter hold a tensor by this name; Refused when they hold it by no name at all."""
    if name in source.tensors or name in source.heads:
        return True
    state = source.skeleton.model.state_dict(keep_vars=True)
    if any(other in source.tensors for other, tensor in state.items() if tensor is state[name]):
        return False
    raise Refused(f"the checkpoint names no tensor '{name}'; merge without --stream")


def _block_of(source: Source, name: str) -> str:
    """The block that an adapter's tensor belongs to by its name, if any."""
    return next((b for b in source.skeleton.parts.get("block", ()) if f".{b}." in f".{name}"), REST)


def _given(source: Source, injected: Injected, tensors: Mapping[str, Tensor]) -> set[str]:
    """The part of the adapter is in the part of the model; the names that were taken."""
    others = {name: tensor for name, tensor in tensors.items() if name not in injected.beside}
    taken = source.hooks.load_adapter(source.run, injected.model, Adapter(source.adapter.config, others))
    if taken is not None:
        return set(taken) & tensors.keys()
    mine = {name: tensors[name] for name in injected.names if name in tensors}
    give(injected, mine)
    return set(mine)


def answers(model: nn.Module, layers: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """What each linear layer among `layers` makes of a random input, in float32."""
    import torch

    modules = dict(model.named_modules())
    for layer in layers:
        module: Any = next((m for name, m in modules.items() if f".{name}".endswith(f".{layer}")), None)
        width = getattr(module, "in_features", None)
        if width is not None:
            with seeded(0, "layer", layer), torch.inference_mode():
                weight = next(module.parameters())
                yield layer, module(torch.randn(4, width).to(weight.dtype)).float()


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest difference of a layer's answers; FtcoreError when it is more than `tolerance` allows."""
    worst = 0.0
    for layer, wanted in before.items():
        found = after[layer]
        difference = float((wanted - found).abs().max())
        if not difference <= tolerance * max(1.0, float(wanted.abs().max())):
            raise FtcoreError(
                f"layer '{layer}' answers differently once merged, by {difference:.2e}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _written(source: Source, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The tensors of this part under the base's names; refused when the methods' merge left other ones."""
    state = model.state_dict()
    lacking = [name for name in names if name not in state]
    if lacking:
        raise FtcoreError(f"the merged model lacks tensor '{lacking[0]}' of its base; the method's merge is wrong")
    return {name: state[name].detach().to(dtype_of(source.run.settings)) for name in names}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes stand in the file of a shard."""

    file: Path
    start: int
    size: int


def lay_out(folder: Path, sizes: Sizes, dtype: str) -> dict[str, Place]:
    """The files of a checkpoint with their headers, as safetensors has them, and where each tensor's bytes belong."""
    shards: list[dict[str, tuple[tuple[int, ...], int]]] = [{}]
    for name, (shape, size) in sizes.items():
        if shards[-1] and sum(held for _, held in shards[-1].values()) + size > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = (shape, size)
    folder.mkdir(parents=True)
    places: dict[str, Place] = {}
    for number, held in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        places.update(_with_header(folder / file, held, dtype))
    if len(shards) > 1:
        total = sum(size for _, size in sizes.values())
        listing = {"metadata": {"total_size": total}, "weight_map": {n: p.file.name for n, p in places.items()}}
        (folder / "model.safetensors.index.json").write_bytes(directory.as_json(listing))
    return places


def _with_header(file: Path, held: Sizes, dtype: str) -> dict[str, Place]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (shape, size) in held.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + begin)
    offset = 8 + len(text)
    return {n: Place(file, offset + header[n]["data_offsets"][0], size) for n, (_, size) in held.items()}


def put(place: Place, tensor: Tensor) -> None:
    """The tensor's bytes are in their place."""
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(data) == place.size, place
    with place.file.open("r+b") as out:
        out.seek(place.start)
        out.write(data)


def _write_configuration(skeleton: Loaded, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Configuration, generation settings and tokenizer are beside the tensors."""
    model: Any = skeleton.model
    model.config.save_pretrained(folder)
    generates = getattr(model, "generation_config", None)  # encoders have none
    if generates is not None:
        generates.eos_token_id = list(skeleton.stop_ids) or generates.eos_token_id
        generates.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept["architectures"] = [type(model).__name__]
    (folder / "config.json").write_bytes(directory.as_json(kept))
