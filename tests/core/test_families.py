"""What families share: parts by pattern, keywords that reach the loader, stops, and tokenizers that are there."""

from __future__ import annotations

import json
import shutil
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


def changed(folder: Path, to: Path, **fields: object) -> Path:
    """A copy of a checkpoint with other fields in its config."""
    shutil.copytree(folder, to)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (to / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return to


def test_an_adapter_beside_the_weights_is_refused_and_not_put_in(tmp_path: Path) -> None:
    folder = changed(tiny_checkpoint("granite"), tmp_path / "adapted")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ftcore.Refused, match="holds an adapter beside its weights; merge it, or take the file out"):
        loaded(Padded(), folder)


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(field: str, tmp_path: Path) -> None:
    folder = changed(tiny_checkpoint("granite"), tmp_path / "kernel", **{field: "no-such-owner/no-such-kernel"})
    assert loaded(Padded(), folder).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("field", [{"hidden_size": "wide"}, {"vocab_size": None}])
def test_a_config_with_impossible_fields_is_refused(field: dict[str, object], tmp_path: Path) -> None:
    folder = changed(tiny_checkpoint("granite"), tmp_path / "impossible", **field)
    with pytest.raises(ftcore.Refused, match=r"the config\.json in '.*impossible' cannot be read: .*(hidden|vocab)"):
        loaded(Padded(), folder)


@pytest.mark.parametrize("index", ["{}", '{"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere"}}'])
def test_an_index_that_leads_nowhere_is_refused(index: str, tmp_path: Path) -> None:
    folder = changed(tiny_checkpoint("granite"), tmp_path / "led-astray")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(ftcore.Refused, match=r"the weights in '.*led-astray' cannot be read"):
        loaded(Padded(), folder)
