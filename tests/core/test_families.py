"""What families share: parts by pattern, keywords that reach the loader, stops, and tokenizers that are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import ftcore
import pytest
import torch
from ftcore.families import HFModel, parts_of, sized
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.testing.stage import Encoder, EncoderDecoder, tiny_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn


class Padded(HFModel):
    """Decoders whose rows are padded."""

    model_types: ClassVar[tuple[str, ...]] = ("granite",)
    unpackable: ClassVar[str] = "the test pads them"


class Published(HFModel):
    """Decoders of two types, one of them padded, whose files hold more than a model needs."""

    model_types: ClassVar[tuple[str, ...]] = ("granite", "olmo")
    unpackable: ClassVar[Mapping[str, str]] = {"olmo": "the test pads this type"}
    leftovers: ClassVar[tuple[str, ...]] = (r"model\.layers\.\d+\.mask",)
    sizes: ClassVar[Mapping[str, str]] = {"2b": "makers/model-2b", "8b": "makers/model-8b"}


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


def test_what_files_may_hold_besides_is_left_out_and_said_and_nothing_else_is(tmp_path: Path) -> None:
    folder, said = changed(tiny_checkpoint("granite"), tmp_path / "more"), list[str]()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.0.mask": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    run = Run(Settings(checkpoint=str(folder)), "train", "causal-lm", say=said.append)
    found = Published().load_model(run, {}).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert said == ["1 tensor of the checkpoint has no use here and is left out (model.layers.*)"]
    with pytest.raises(ftcore.Refused, match=r"1 unexpected tensors, the first is 'model\.layers\.0\.mask'"):
        loaded(Padded(), folder)


def test_rows_of_one_type_are_padded_and_of_another_laid_end_to_end() -> None:
    assert loaded(Published(), tiny_checkpoint("olmo")).unpackable == "the test pads this type"
    assert loaded(Published(), tiny_checkpoint("granite")).unpackable == ""


def asked(family: HFModel, checkpoint: str | None = None) -> str | None:
    """The checkpoint that a run with this family reads; None is its starter."""
    return sized(Run(Settings(checkpoint=checkpoint), "train", "causal-lm"), family).settings.checkpoint


def test_a_size_is_a_checkpoint_by_another_name_and_the_first_is_the_usual_one() -> None:
    assert asked(Published(size="8b")) == "makers/model-8b"
    assert asked(Published()) == "makers/model-2b"
    assert asked(Published(), "elsewhere") == "elsewhere"
    with pytest.raises(ftcore.Refused, match="knows no size '9b'; it has 2b, 8b"):
        asked(Published(size="9b"))
    with pytest.raises(ftcore.Refused, match="size '2b' and the checkpoint 'elsewhere' are both given; leave one"):
        asked(Published(size="2b"), "elsewhere")
    with pytest.raises(ftcore.Refused, match="Padded knows no size '2b'; name base weights with --checkpoint"):
        asked(Padded(size="2b"))


def test_a_starter_comes_before_the_usual_size(tmp_path: Path) -> None:
    class WithStarter(Published):
        starter: ClassVar[Path | None] = tmp_path

    assert asked(WithStarter()) is None
    assert asked(WithStarter(size="2b")) == "makers/model-2b"


def pickled(folder: Path, to: Path, shards: int) -> Path:
    """The checkpoint with its tensors in pickles, as old ones on the hub are."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = list(load_file(folder / "model.safetensors").items())
    if shards == 1:
        torch.save(dict(tensors), to / "pytorch_model.bin")
        return to
    index = {}
    for number in range(shards):
        torch.save(dict(tensors[number::shards]), to / f"pytorch_model-{number}.bin")
        index |= {name: f"pytorch_model-{number}.bin" for name, _ in tensors[number::shards]}
    (to / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return to


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_pickled_weights_are_read_where_there_are_no_others(shards: int, tied: bool, tmp_path: Path) -> None:
    folder = tiny_checkpoint("granite", tie_word_embeddings=tied)
    found = loaded(Padded(), pickled(folder, tmp_path / "old", shards))
    wanted = loaded(Padded(), folder).model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.model.state_dict().items())
    assert found.stop_ids == (2,)
    assert found.checkpoint == found.model.name_or_path == str(tmp_path / "old")


def test_a_pickle_that_is_more_than_tensors_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = pickled(tiny_checkpoint("granite"), tmp_path / "old", 1)
    torch.save({"model": {"step": 3}}, folder / "pytorch_model.bin")
    with pytest.raises(
        ftcore.Refused, match=r"cannot be read: not readable is pytorch_model\.bin: 'model' in it is no"
    ):
        loaded(Padded(), folder)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "gone.bin"}}), encoding="utf-8"
    )
    with pytest.raises(ftcore.Refused, match=r"cannot be read: gone\.bin is missing"):
        loaded(Padded(), folder)
