"""LoRA reaches in every converted family what its makers' code reached, under the native names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ftcore
import pytest
from ftcore.testing.stage import tiny_checkpoint
from original_checkpoints import MEMBERS, original_checkpoint

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
APART = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FUSED = ("mlp.gate_up_proj", "mlp.down_proj")
# What default and all-linear of the original mean natively; a makers' default may have been two of q, k and v.
LINEAR: Mapping[str, tuple[str, ...]] = {
    "qwen": APART, "qwen-august": APART, "internlm": APART, "internlm2": APART, "internlm3": APART, "chatglm2": FUSED,
    "chatglm3": FUSED, "glm-4": FUSED, "baichuan-7b": APART, "baichuan-13b": APART, "baichuan2-7b": APART,
    "baichuan2-13b": APART,
}  # fmt: skip


def reached(family: object, folder: Path, story: Path, parts: str) -> set[str]:
    """The modules of each of two layers that a plan says LoRA adapts."""
    found = ftcore.plan(
        method="lora", task="pretrain", model=family, checkpoint=folder, data=story, max_length=64,
        lora={"parts": parts},
    )  # fmt: skip
    assert found.refused is None
    inside: dict[str, set[str]] = {"0": set(), "1": set()}
    for name in found.matched_modules:
        _, number, rest = re.split(r"\.(\d+)\.", name, maxsplit=1)
        inside[number].add(rest)
    assert inside["0"] == inside["1"]
    return inside["0"]


def test_every_member_has_a_line() -> None:
    assert LINEAR.keys() == MEMBERS.keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_parts_are_the_native_modules_of_the_makers_targets(
    name: str, story: Path, pieces: Callable[..., bytes], tmp_path: Path
) -> None:
    member = MEMBERS[name]
    original_checkpoint(member, tmp_path / name, pieces(("▁cat", "rain")))
    (tmp_path / name / "model.safetensors").unlink()
    asked = {
        "attention.q,attention.k,attention.v": set(QKV),
        "attention.q,attention.v": {QKV[0], QKV[2]},
        "attention,mlp": {*QKV, "self_attn.o_proj", *LINEAR[name]},
    }
    assert {parts: reached(member.plugin, tmp_path / name, story, parts) for parts in asked} == asked


def test_one_layer_that_makes_q_k_and_v_is_reached_by_each_of_them(story: Path) -> None:
    fused = "self_attention.query_key_value"
    asked = {
        "attention.q,attention.k,attention.v": {fused},
        "attention.q,attention.v": {fused},
        "attention,mlp": {fused, "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    }
    assert {parts: reached("bloom", tiny_checkpoint("bloom"), story, parts) for parts in asked} == asked
