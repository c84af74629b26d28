"""A Qwen checkpoint loads whole or not at all, never runs code of its own, and its parts name its modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import model_checks
from ftcore_qwen import Qwen
from safetensors.torch import load_file, save_file
from torch import nn

KINDS = ["qwen2", "qwen3"]
TRAP = "from pathlib import Path\nPath({marker!r}).write_text('it ran')\n"


def copy(folder: Path, to: Path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(folder, to))


def changed(folder: Path, file: str, **values: Any) -> None:
    """The JSON of `file` with other values; None takes one out."""
    path = folder / file
    merged = {**json.loads(path.read_text(encoding="utf-8")), **values}
    kept = {key: value for key, value in merged.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool, checkpoint: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint(kind, tie_word_embeddings=tied)
    loaded, plain = ftcore.load("qwen", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    assert not loaded.model.training
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)
    assert loaded.checkpoint == str(folder)
    assert (loaded.max_positions, loaded.vocab_size) == (256, plain.config.vocab_size)
    assert loaded.tokenizer.convert_ids_to_tokens(list(loaded.stop_ids)) == ["<|im_end|>"]
    assert loaded.unpackable == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_names_modules_and_every_layer_is_a_part(kind: str, checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint(kind))
    modules = dict(loaded.model.named_modules())
    roles = {
        "block", "attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down", "norm",
        "embedding", "head",
    }  # fmt: skip
    assert loaded.parts.keys() == roles
    assert all(name in modules for names in loaded.parts.values() for name in names)
    named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
    weights = {name for name, module in modules.items() if module._parameters}
    assert named == weights
    assert [type(modules[name]) for name in loaded.parts["block"]] == [type(modules["model.layers.0"])] * 2
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    roles_of_linear = roles - {"block", "norm", "embedding"}
    assert {name for role in roles_of_linear for name in loaded.parts[role]} == linear


def test_random_weights_keep_config_and_tokenizer(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2")
    fresh, same = (ftcore.load("qwen", checkpoint=folder, weights="random") for _ in range(2))
    pretrained = ftcore.load("qwen", checkpoint=folder)
    assert fresh.model.config.hidden_size == pretrained.model.config.hidden_size
    weights = [loaded.model.model.layers[0].mlp.up_proj.weight for loaded in (fresh, same, pretrained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    wanted = r"do not fill the model: 1 missing tensors, the first is 'model\.layers\.1\.mlp\.up_proj\.weight'"
    with pytest.raises(ftcore.Refused, match=wanted):
        ftcore.load("qwen", checkpoint=folder)


def test_a_checkpoint_with_a_tensor_too_many_is_refused_by_name(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.2.stray": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 unexpected tensors, the first is 'model\.layers\.2\.stray'"):
        ftcore.load("qwen", checkpoint=folder)


def test_a_tensor_of_another_shape_is_refused_by_name(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.zeros(7)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 mismatched tensors, the first is 'model\.norm\.weight'"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_weights_that_cannot_be_read_are_refused(damage: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    file = folder / "model.safetensors"
    content = {"cut": file.read_bytes()[:-100], "empty": b"", "text": b"version https://git-lfs.github.com/spec/v1\n"}
    file.write_bytes(content[damage])
    with pytest.raises(ftcore.Refused, match=f"the weights in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


def test_a_checkpoint_of_another_family_is_refused_by_its_type(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=r"is of type 'llama', and this family loads qwen2, qwen3"):
        ftcore.load("qwen", checkpoint=checkpoint("llama"))


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    for file in [*folder.glob("tokenizer*"), *folder.glob("*.jinja")]:
        file.unlink()
    with pytest.raises(ftcore.Refused, match=f"the tokenizer in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"'.*empty' has no config\.json; pass the directory that holds one"),
        ("bsae", r"'.*bsae' is no directory; did you mean '.*base'\?"),
        ("base/config.json", r"'.*config\.json' is no directory"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused(
    name: str, message: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    copy(checkpoint("qwen2"), tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.load("qwen", checkpoint=tmp_path / name)


def test_a_config_that_is_no_json_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    (folder / "config.json").write_text("{model_type: qwen2")
    with pytest.raises(ftcore.Refused, match=f"the config.json in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize("kind", ["qwen2", "trap"])
def test_code_beside_a_checkpoint_never_runs(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, marker = copy(checkpoint("qwen2"), tmp_path / "base"), tmp_path / "marker"
    for module in ("modeling_trap", "configuration_trap", "tokenization_trap"):
        (folder / f"{module}.py").write_text(TRAP.format(marker=str(marker)))
    auto = {"AutoConfig": "configuration_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"}
    changed(folder, "config.json", model_type=kind, auto_map=auto)
    slow = {"AutoTokenizer": ["tokenization_trap.Trap", "tokenization_trap.Trap"]}
    changed(folder, "tokenizer_config.json", auto_map=slow)
    if kind == "qwen2":
        for tokenizer_class in ("PreTrainedTokenizerFast", "Trap"):
            changed(folder, "tokenizer_config.json", tokenizer_class=tokenizer_class)
            loaded = ftcore.load("qwen", checkpoint=folder)
            assert type(loaded.model).__module__.startswith("transformers.")
            assert not type(loaded.tokenizer).__module__.startswith("transformers_modules")
    else:
        with pytest.raises(ftcore.Refused, match=r"the config\.json in '.*' cannot be read"):
            ftcore.load("qwen", checkpoint=folder)
    assert not marker.exists()


class Pickled:
    """Unpickling it writes a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Called by pickle."""
        return (Path.touch, (self.marker,))


def test_pickled_weights_are_refused_and_never_read(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, marker = copy(checkpoint("qwen2"), tmp_path / "base"), tmp_path / "marker"
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), "trap": Pickled(marker)}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ftcore.Refused, match=f"the weights in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)
    assert not marker.exists()


def test_without_a_checkpoint_the_starter_is_used() -> None:
    starters = [folder for folder in [Qwen.starter] if folder is not None and (folder / "config.json").is_file()]
    for folder in starters:
        loaded = ftcore.load("qwen")
        assert loaded.checkpoint == str(folder)
        assert loaded.tokenizer.chat_template
        assert sum(parameter.numel() for parameter in loaded.model.parameters()) < 10_000_000


STARTER = Path(__file__).parent / "ftcore_qwen" / "starter"
OWN_STORY = (
    "Once upon a time there was a small cat named Tim. Tim liked to play in the garden. One day he saw a big red ball "
    "under a tree. He ran to it and pushed it with his nose. The ball rolled away, and Tim was happy."
)


def test_the_starter_is_small() -> None:
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 2_500_000


@pytest.mark.parametrize("text", [OWN_STORY, "小猫在门口看雨。", "naïve café 🐱\n\tif x != y: pass", "\u200b \x7f"])
def test_any_text_goes_through_the_starters_tokenizer_and_back(text: str) -> None:
    tokenizer = ftcore.load("qwen").tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_starter_has_read_stories() -> None:
    loaded = ftcore.load("qwen")
    begin = loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.tensor([[begin, *loaded.tokenizer(OWN_STORY, add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        loss = loaded.model(input_ids=ids, labels=ids).loss
    bits = float(loss) * (ids.shape[1] - 1) / torch.tensor(2.0).log() / len(OWN_STORY)
    assert float(bits) < 1.3


def test_the_first_command_lowers_the_loss_on_held_out_rows(tmp_path: Path) -> None:
    outcome = ftcore.run(method="lora", task="causal", model="qwen", output=tmp_path / "run", epochs=1)
    assert outcome.metrics["loss"] < 0.5 * outcome.before["loss"]
    assert all(sample["before"] != sample["after"] for sample in outcome.samples)


@model_checks(Qwen())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
