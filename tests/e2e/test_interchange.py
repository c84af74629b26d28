"""What a finished run leaves needs no ftcore: PEFT loads the adapter, transformers loads the merged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

LORA: dict[str, dict[str, Any]] = {
    "default": {},
    "rslora": {"use_rslora": True, "r": 4, "alpha": 8},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "some": {"parts": ["attention.q", "mlp.down"], "dropout": 0.1},
    "named": {"target_modules": ["layers.1.self_attn.v_proj", "lm_head"]},
}
HRA = {"type": "HRA", "config": {"r": 4}}
MISS = {"type": "MISS", "config": {"r": 4}}
ADAPTERS = [
    *(pytest.param("qwen", "qwen2", "lora", options, id=f"lora-{name}") for name, options in LORA.items()),
    pytest.param("qwen", "qwen3", "lora", {}, id="lora-qwen3"),
    pytest.param("llama", "llama", "lora", {"use_dora": True}, id="dora-llama"),
    pytest.param("qwen", "qwen2", "peft", HRA, id="peft-hra"),
    pytest.param("llama", "llama", "peft", MISS, id="peft-miss"),
]
FULL = [
    pytest.param("qwen", "qwen2", {}, id="qwen2"),
    pytest.param("qwen", "qwen3", {"tie_word_embeddings": True}, id="qwen3-tied"),
    pytest.param("llama", "llama", {}, id="llama"),
]


def logits(model: nn.Module) -> torch.Tensor:
    """The model's answer to two rows of tokens."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 65).reshape(2, 30)).logits


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two logits."""
    return float((logits(one) - logits(other)).abs().max())


def plain(folder: Path) -> nn.Module:
    """The causal language model in `folder`, as transformers loads it, every tensor filled."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def trained(family: str, folder: Path, data: Path, output: Path, **method: Any) -> Path:
    """The directory of a short run."""
    ftcore.run(
        task="causal", model=family, checkpoint=folder, data=data, output=output, steps=4, lr=5e-3, warmup_steps=0,
        **method,
    )  # fmt: skip
    return output


def assert_merges(directory: Path, folder: Path, output: Path) -> None:
    """The merged directory holds the base's tensors, config and tokenizer, and answers as the adapted model."""
    from transformers import AutoTokenizer

    adapted = ftcore.attach(directory)
    merged = plain(ftcore.merge(directory, output=output))
    assert difference(merged, adapted.model) <= 1e-4
    assert difference(merged, plain(folder)) > 1e-2
    ours, theirs = (load_file(path / "model.safetensors") for path in (output, folder))
    assert ours.keys() == theirs.keys()
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    configs = [json.loads((path / "config.json").read_text()) for path in (output, folder)]
    assert configs[0] == configs[1]
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert tokenizer("小猫 sat.")["input_ids"] == AutoTokenizer.from_pretrained(folder)("小猫 sat.")["input_ids"]


@pytest.mark.parametrize(("family", "kind", "method", "options"), ADAPTERS)
def test_peft_loads_the_adapter_and_transformers_the_merged_model(
    family: str, kind: str, method: str, options: dict[str, Any], checkpoint: Callable[..., Path], rows: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from peft import PeftModel

    folder = checkpoint(kind)
    directory = trained(family, folder, rows, tmp_path / "run", **{"method": method, method: options})
    adapted = ftcore.attach(directory)
    theirs = PeftModel.from_pretrained(plain(folder), str(directory))
    assert difference(theirs, adapted.model) <= 1e-5
    assert difference(theirs, plain(folder)) > 1e-2
    assert_merges(directory, folder, tmp_path / "merged")


@pytest.mark.parametrize(("family", "kind", "changes"), FULL)
def test_transformers_loads_a_fully_trained_model(
    family: str, kind: str, changes: dict[str, Any], checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint(kind, **changes)
    directory = trained(family, folder, rows, tmp_path / "run", method="full")
    assert_merges(directory, folder, tmp_path / "merged")


def test_a_saved_adapter_names_its_base_and_is_ready_for_inference(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2")
    directory = trained("qwen", folder, rows, tmp_path / "run", method="lora", lora={"r": 3, "alpha": 5})
    saved = json.loads((directory / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(folder)
    assert saved["inference_mode"] is True
    assert (saved["peft_type"], saved["task_type"], saved["r"], saved["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 5)
    assert sorted(saved["target_modules"]) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
