"""What a plan counts on the shapes of the papers is what the papers print, found without a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ftcore.cli import cli

GPT3 = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 12288, "num_hidden_layers": 96,
    "num_attention_heads": 96, "ffn_dim": 49152, "word_embed_proj_dim": 12288, "vocab_size": 50257,
    "max_position_embeddings": 2048,
}  # fmt: skip
D, LAYERS = 12288, 96


@pytest.fixture(scope="module")
def gpt3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the shape of GPT-3 175B with nothing but its config.json."""
    folder = tmp_path_factory.mktemp("gpt3")
    (folder / "config.json").write_text(json.dumps(GPT3), encoding="utf-8")
    return folder


def planned(checkpoint: Path, flags: str) -> Any:
    """What `ftcore plan` answers in JSON."""
    command = ["plan", *flags.split(), "--task", "causal", "--model", "opt", "--checkpoint", str(checkpoint), "--json"]
    said = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


# Hu et al. 2021 (arXiv:2106.09685), tables 4, 5 and 15: millions of trainable parameters of GPT-3 175B.
PUBLISHED = [
    ("--method lora --lora.r 1 --lora.parts attention.q,attention.v", LAYERS * 2 * 2 * D, 4.7),
    ("--method lora --lora.r 8 --lora.parts attention.q,attention.v", LAYERS * 2 * 8 * 2 * D, 37.7),
    ("--method lora --lora.r 2 --lora.parts attention", LAYERS * 4 * 2 * 2 * D, 18.9),
    ("--method adapter --adapter.kind houlsby --adapter.bottleneck 1", LAYERS * 2 * (2 * D + 1 + D), 7.1),
    ("--method adapter --adapter.kind houlsby --adapter.bottleneck 8", LAYERS * 2 * (2 * 8 * D + 8 + D), 40.1),
    ("--method prompt --prompt.num_virtual_tokens 264", 264 * D, 3.2),
]


@pytest.mark.parametrize(("flags", "formula", "millions"), PUBLISHED)
def test_a_plan_counts_what_the_paper_prints(flags: str, formula: int, millions: float, gpt3: Path) -> None:
    found = planned(gpt3, flags)
    assert found["trainable_parameters"] == formula
    assert round(found["trainable_parameters"] / 1e6, 1) == millions
    assert 174e9 < found["total_parameters"] - formula < 176e9


def test_four_bits_make_the_base_of_a_plan_a_quarter_of_sixteen(gpt3: Path) -> None:
    flags = "--lora.parts attention.q --precision bf16 --max-length 2 --batch-size 1"
    whole = planned(gpt3, f"--method lora {flags}")["peak_memory_bytes"]
    quarter = planned(gpt3, f"--method qlora {flags.replace('lora', 'qlora')}")["peak_memory_bytes"]
    assert 0.24 < quarter / whole < 0.27
