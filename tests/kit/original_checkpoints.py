"""Tiny checkpoints in their makers' form, one of each member of each converted family, made from native models."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ftcore.converting import Original, Rule
from ftcore.discovery import find
from ftcore.families import HEADS, HFModel
from ftcore.seeds import seeded
from torch import Tensor

SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": False}
LAYERS = {**SHAPE, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 480}
LLAMA = {**LAYERS, "rms_norm_eps": 1e-6, "eos_token_id": 2}
SHORT = {"max_position_embeddings": 64}
QWEN = {
    "model_type": "qwen", "seq_length": 64, "kv_channels": 8, "rotary_emb_base": 10000, "layer_norm_epsilon": 1e-6,
    "no_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
GLM = {
    **SHAPE, "model_type": "chatglm", "ffn_hidden_size": 48, "num_layers": 2, "kv_channels": 16, "seq_length": 64,
    "padded_vocab_size": 480, "multi_query_attention": True, "multi_query_group_num": 2, "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Member:
    """One of a converted family's members: its config.json, and the options without which it is not told."""

    family: str
    fields: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = "tokenizer.model"
    ranked: bool = False

    @property
    def plugin(self) -> HFModel:
        """The family with these options."""
        made: HFModel = find("model", f"ftcore-{self.family}:{self.family}").load()(**self.options)
        return made

    @property
    def original(self) -> Original:
        """How it becomes native."""
        found = self.plugin.original(self.fields)
        assert found is not None
        return found


AUGUST = {"n_embd": 32, "n_head": 4, "n_layer": 2, "ffn_hidden_size": 96, "padded_vocab_size": 480}
SHARED = {**LLAMA, **SHORT, "num_key_value_heads": 2}
BAICHUAN = {**LLAMA, "model_type": "baichuan"}
MEMBERS: Mapping[str, Member] = {
    "qwen": Member(
        "qwen", {**QWEN, **LAYERS, "intermediate_size": 96, "use_logn_attn": True}, file="qwen.tiktoken", ranked=True
    ),
    "qwen-august": Member("qwen", {**QWEN, **AUGUST}, file="qwen.tiktoken", ranked=True),
    "internlm": Member("internlm", {**LLAMA, **SHORT, "model_type": "internlm", "bias": True}),
    "internlm2": Member("internlm", {**SHARED, "model_type": "internlm2", "bias": False}),
    "internlm3": Member("internlm", {**SHARED, "model_type": "internlm3", "qkv_bias": True}),
    "chatglm2": Member("chatglm", {**GLM, "_name_or_path": "THUDM/chatglm2-6b"}),
    "chatglm3": Member("chatglm", {**GLM, "_name_or_path": "THUDM/chatglm3-6b"}),
    "glm-4": Member("chatglm", {**GLM, "_name_or_path": "THUDM/glm-4-9b"}, ranked=True),
    "baichuan-7b": Member("baichuan", {**BAICHUAN, **SHORT, "architectures": ["BaiChuanForCausalLM"]}),
    "baichuan-13b": Member("baichuan", {**BAICHUAN, "model_max_length": 64}),
    "baichuan2-7b": Member("baichuan", {**BAICHUAN, **SHORT, "architectures": ["BaichuanForCausalLM"]}),
    "baichuan2-13b": Member("baichuan", {**BAICHUAN, "model_max_length": 64}, {"variant": "baichuan2-13b"}),
}  # fmt: skip


def native_model(member: Member) -> Any:
    """The native model of a member with weights far from zero, those that its makers do not have being zero."""
    import transformers

    if member.family == "baichuan":
        from ftcore_baichuan.alibi import register

        register()
    with seeded(0, "original"):
        auto = getattr(transformers, HEADS["causal-lm"])
        model = auto.from_config(member.original.config(member.fields)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    rules = member.original.rules(member.fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.bias") and member.original.zeros(member.fields):
                parameter.zero_()
        if any(rule.normalised for rule in rules):
            model.lm_head.weight.copy_(torch.nn.functional.normalize(model.lm_head.weight))
    return model


def original_tensors(member: Member, model: Any) -> dict[str, Tensor]:
    """The tensors of a native model under its makers' names and in their shapes: the rules, read backwards."""
    state, rules = dict(model.state_dict()), member.original.rules(member.fields)
    zero = {name for name in state if name.endswith("o_proj.bias") and member.original.zeros(member.fields)}
    tensors: dict[str, Tensor] = {}
    for name in state.keys() - zero:
        rule, origin = next((one, found) for one in rules if (found := one.origin(name)) is not None)
        tensors[origin] = _together(rule, [state[target] for target in rule.targets(origin) or ()])
    return tensors


def _together(rule: Rule, parts: list[Tensor]) -> Tensor:
    """The rows of the native tensors as one tensor has them, in the rule's equal runs."""
    runs = [part.reshape(rule.groups, part.shape[0] // rule.groups, *part.shape[1:]) for part in parts]
    return torch.cat(runs, dim=1).reshape(-1, *parts[0].shape[1:])


def original_checkpoint(member: Member, folder: Path, vocabulary: bytes, *, pickled: bool = False) -> Any:
    """The native model of which `folder` now holds the original, with the vocabulary of pieces or one of ranks."""
    from safetensors.torch import save_file

    model = native_model(member)
    tensors = original_tensors(member, model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(member.fields), encoding="utf-8")
    (folder / member.file).write_bytes(_ranks() if member.ranked else vocabulary)
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def _ranks() -> bytes:
    """A vocabulary of all bytes and two words."""
    words = [*(bytes([byte]) for byte in range(256)), b"ca", b"cat"]
    return b"".join(base64.b64encode(word) + f" {rank}\n".encode() for rank, word in enumerate(words))
