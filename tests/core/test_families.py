"""What families share: parts by pattern, keywords that reach the loader, stops, and tokenizers that are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import ftcore
import pytest
from ftcore.families import HFModel, parts_of
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.testing.stage import Encoder, EncoderDecoder, tiny_checkpoint
from torch import nn


class Padded(HFModel):
    """Decoders whose rows are padded."""

    model_types: ClassVar[tuple[str, ...]] = ("granite",)
    unpackable: ClassVar[str] = "the test pads them"


def loaded(family: HFModel, folder: Path, head: str = "causal-lm", **kwargs: object) -> Loaded:
    return family.load_model(Run(Settings(checkpoint=str(folder)), "train", head), kwargs)


def test_a_pattern_stands_for_numbers_and_runs_and_blanks_part_several() -> None:
    names = ("h.0.ln_1", "h.0.mlp.up", "h.10.ln_1", "h.x.ln_1", "ln_f", "lm_head")
    model = nn.Module()
    for name in names:
        at = model
        for part in name.split("."):
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
    roles: Mapping[str, str] = {"block": "h.*", "norm": "h.*.ln_* ln_f", "all": "h.*ln*", "none": "nothing"}
    assert parts_of(model, roles) == {
        "block": ("h.0", "h.10"),
        "norm": ("h.0.ln_1", "h.10.ln_1", "ln_f"),
        "all": ("h.0.ln_1", "h.10.ln_1", "h.x.ln_1"),
    }


def test_attention_that_another_plugin_wants_reaches_a_family_that_pads() -> None:
    folder = tiny_checkpoint("granite")
    assert loaded(Padded(), folder).model.config._attn_implementation == "sdpa"
    assert loaded(Padded(), folder, attn_implementation="eager").model.config._attn_implementation == "eager"


def test_a_model_that_generates_nothing_has_no_stops() -> None:
    assert loaded(Padded(), tiny_checkpoint("granite")).stop_ids == (2,)
    assert loaded(Encoder(), tiny_checkpoint("ernie", "masked-lm"), "masked-lm").stop_ids == ()


def test_a_tokenizer_made_of_nothing_is_none(tmp_path: Path) -> None:
    source = tiny_checkpoint("mt5", "seq2seq-lm")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ftcore.Refused, match=r"the tokenizer in '.*' cannot be read: it has no vocabulary"):
        loaded(EncoderDecoder(), tmp_path, "seq2seq-lm")
