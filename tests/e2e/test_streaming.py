"""Merging one block at a time gives the tensors of merging the whole model, in the memory of a block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore import streaming
from ftcore_lora import LoRA
from ftcore_peft import Peft
from safetensors.torch import load_file, save_file
from torch import nn

METHODS: dict[str, Any] = {
    "lora": LoRA(),
    "dora": LoRA(use_dora=True),
    "rslora": LoRA(use_rslora=True, parts=("attention.q", "mlp.down")),
    "biases": LoRA(bias="all", parts=("attention",)),
    "pissa": LoRA(init="pissa"),
    "olora": LoRA(init="olora"),
    "one block": LoRA(target_modules=("model.layers.1.self_attn.q_proj",)),
    "head": LoRA(parts=("head", "mlp.up")),
    "ia3": Peft(type="IA3", config={"feedforward_modules": []}),
    "loha": Peft(type="LOHA", config={"r": 2}),
    "lokr": Peft(type="LOKR", config={"r": 2}),
    "oft": Peft(type="OFT", config={"oft_block_size": 4, "r": 0}),
    "vera": Peft(type="VERA", parts=("attention.q",), config={"r": 4}),
    "hra": Peft(type="HRA", config={"r": 2}),
    "fourier": Peft(type="FOURIERFT", config={"n_frequency": 8}),
    "full": "full",
}


@pytest.fixture
def trained(checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run of a few steps by a method, with rates that change the weights visibly."""

    def run(method: object, kind: str = "qwen2", model: str = "qwen", **config: Any) -> Path:
        keys = {"task": "causal", "model": model, "checkpoint": checkpoint(kind, **config), "data": rows}
        ftcore.run(method=method, **keys, steps=3, lr=2e-2, warmup_steps=0, output=tmp_path / "run")
        return tmp_path / "run"

    return run


def same(one: Path, other: Path) -> None:
    """Two checkpoints hold the same tensors and the same settings."""
    first, second = load_whole(one), load_whole(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert all(first[name].dtype == second[name].dtype for name in first)
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())


def load_whole(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, in one file or several."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", METHODS)
def test_one_block_at_a_time_merges_as_the_whole(name: str, trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(METHODS[name])
    whole = ftcore.merge(run, output=tmp_path / "whole", method=METHODS[name])
    same(whole, ftcore.merge(run, output=tmp_path / "streamed", stream=True, method=METHODS[name]))


@pytest.mark.parametrize(("kind", "model"), [("qwen2", "qwen"), ("qwen3", "qwen"), ("llama", "llama")])
def test_tied_embeddings_and_shards_load_in_plain_transformers(
    kind: str, model: str, trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    run = trained(LoRA(), kind, model, tie_word_embeddings=True)
    monkeypatch.setattr(streaming, "SHARD_BYTES", 20_000)
    merged = ftcore.merge(run, output=tmp_path / "merged", stream=True, method=LoRA())
    assert len(list(merged.glob("model-*.safetensors"))) > 2
    row = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(merged)(input_ids=row).logits
        wanted = ftcore.attach(run, method=LoRA()).model(input_ids=row).logits
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_a_head_that_the_checkpoint_lacks_or_has_is_merged_as_it_was_trained(
    method: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base, scored = checkpoint("qwen2"), list[torch.Tensor]()
    for seed, name in enumerate(("lacking", "having")):
        given = {"task": "reward", "model": "qwen", "checkpoint": base, "lr": 2e-2, "warmup_steps": 0, "seed": seed}
        ftcore.run(method=method, **given, steps=2, output=tmp_path / name)
        base = ftcore.merge(tmp_path / name, output=tmp_path / f"{name}-whole")
        same(base, ftcore.merge(tmp_path / name, output=tmp_path / f"{name}-streamed", stream=True))
        scored.append(load_whole(base)["score.weight"])
    assert not torch.equal(*scored)


def test_a_tensor_of_the_adapter_that_no_block_takes_is_an_error(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("lora")
    file = run / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2)}, file)
    with pytest.raises(ftcore.FtcoreError, match=r"no block of the model took tensor .*layers\.7"):
        ftcore.merge(run, output=tmp_path / "merged", stream=True)
    assert not (tmp_path / "merged").exists()
    assert list(tmp_path.glob(".merged*")) == []


class WrongMerge(LoRA):
    """A method that forgets to fold its change in."""

    @ftcore.hookimpl
    def merge(self, model: Any) -> nn.Module:
        """The base without the change."""
        plain: nn.Module = model.unload()
        return plain


def test_a_wrong_merge_is_found_before_anything_is_written(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(LoRA())
    with pytest.raises(ftcore.FtcoreError, match="answers differently once merged"):
        ftcore.merge(run, output=tmp_path / "merged", stream=True, method=WrongMerge())
    assert not (tmp_path / "merged").exists()


PEAK = """
import resource, sys
import ftcore, ftcore.merging, peft, transformers
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
ftcore.merge(sys.argv[1], output=sys.argv[2], stream=True)
print((peak() - before) * 1024)
"""


def test_the_peak_of_memory_is_a_blocks_and_not_the_models(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("lora", hidden_size=512, intermediate_size=1024, num_hidden_layers=32, head_dim=128)
    base = Path(json.loads((run / "ftcore.json").read_text())["base"])
    command = [sys.executable, "-c", PEAK, str(run), str(tmp_path / "merged")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert peak < 0.4 * (base / "model.safetensors").stat().st_size
