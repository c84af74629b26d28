"""Merging: a finished run becomes a plain checkpoint, compared with the adapted model before it takes its name."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import directory as files
from ftcore import streaming, translating
from ftcore.adapters import fold
from ftcore.errors import FtcoreError, Refused
from ftcore.families import read_fields
from ftcore.hooks import Loaded
from ftcore.pipeline import Attached, attach
from ftcore.seeds import seeded

if TYPE_CHECKING:
    from torch import Tensor, nn

# The largest difference of two logits that rounding explains, as a share of the largest logit, by bytes of a weight.
TOLERANCE: Mapping[int, float] = {4: 1e-4, 2: 6e-2}


def merge(
    directory: Path, output: Path, say: Callable[[str], None], overrides: Mapping[str, object], *, stream: bool = False
) -> Path:
    """`output` holds the base's class and tensors with the adapter folded in; it appears whole or not at all.

    With `stream` one block is in memory at a time, and layers are compared; without it the whole model's logits are.
    """
    refuse_existing(output)
    if stream:
        with staged(output) as folder:
            difference = streaming.write(directory, folder, overrides, say)
        say(f"the merged layers' answers are within {difference:.1e} of the adapted ones'")
        return output
    attached = attach(directory, "merge", say, overrides)
    wanted = logits_of_probe(attached.injected.model, attached.loaded)
    merged = fold(attached.hooks, attached.run, attached.injected.model)
    _same_shape(merged, attached)
    difference = _compare(wanted, logits_of_probe(merged, attached.loaded), next(merged.parameters()).element_size())
    say(f"the merged model's logits are within {difference:.1e} of the adapted model's")
    _write(merged, attached.loaded, output)
    return output


def refuse_existing(output: Path) -> None:
    """Refused when `output` is there and no empty directory."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Refused(f"the output '{output}' exists already; name a new directory")


def convert(loaded: Loaded, output: Path) -> Path:
    """`output` is the plain checkpoint that transformers loads without ftcore; it appears whole or not at all."""
    if loaded.tensors is None:
        raise Refused(f"the checkpoint '{loaded.checkpoint}' is a plain one already; use it as it is")
    with staged(output) as folder:
        streaming.convert(loaded, loaded.tensors(), folder)
    return output


def how_to_load(output: Path) -> str:
    """What reads a plain checkpoint: transformers, or ftcore where its type is a family's own."""
    built_in: Any = importlib.import_module("transformers.models.auto.configuration_auto")
    kind = read_fields(str(output)).get("model_type")
    if kind in built_in.CONFIG_MAPPING_NAMES:
        return "load it with transformers' from_pretrained"
    return f"load it with ftcore, as transformers alone has no class for its type '{kind}'"


def convert_adapter(loaded: Loaded, adapter: Path, output: Path) -> Path:
    """`output` is `adapter`, trained on the makers' own modules, for the plain checkpoint; all of it or nothing."""
    native = translating.natively(adapter, loaded)
    with staged(output) as folder:
        folder.mkdir()
        files.write_adapter(folder, native)
    return output


def logits_of_probe(model: nn.Module, loaded: Loaded) -> Tensor:
    """All logits of the model for a fixed row of tokens, whatever its head, end to end and in float32."""
    import torch

    with seeded(0, "probe"):
        row = torch.randint(0, loaded.vocab_size, (1, min(32, loaded.max_positions)))
    row = row.to(next(model.parameters()).device)
    decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    inputs = {"input_ids": row, **({"decoder_input_ids": row} if decodes else {})}
    with torch.inference_mode():
        answer = model(**inputs, use_cache=False)
    return torch.cat([found.float().cpu().reshape(-1) for name, found in answer.items() if name.endswith("logits")])


def _same_shape(merged: nn.Module, attached: Attached) -> None:
    """The merged model is what the base was: class and tensor names."""
    if type(merged) is not attached.base_class:
        raise FtcoreError(f"the methods' merge returned {type(merged).__name__}, not {attached.base_class.__name__}")
    odd = sorted(attached.base_names ^ merged.state_dict().keys())
    if odd:
        raise FtcoreError(f"the merged model and its base differ in tensor '{odd[0]}'; the method's merge is wrong")


def _compare(adapted: Tensor, merged: Tensor, weight_bytes: int) -> float:
    """The largest difference; FtcoreError when it is more than rounding."""
    difference = float((adapted - merged).abs().max())
    allowed = TOLERANCE[weight_bytes] * max(1.0, float(adapted.abs().max()))
    if not difference <= allowed:
        raise FtcoreError(
            f"the merged model's logits differ from the adapted model's by {difference:.2e}, more than {allowed:.0e}; "
            "nothing was written"
        )
    return difference


def _write(model: Any, loaded: Loaded, output: Path) -> None:
    """The checkpoint is in `output`."""
    assert loaded.tokenizer is not None
    if loaded.stop_ids and getattr(model, "generation_config", None) is not None:  # encoders have none
        model.generation_config.eos_token_id = list(loaded.stop_ids)
    with staged(output) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A name beside `output` for a new directory, which is renamed to it when nothing went wrong."""
    folder = output.parent / f".{output.name}.staged-{os.getpid()}"
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
        if output.exists():
            output.rmdir()
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
