"""Checkpoints of two blocks in the forms of their makers, with random weights under the makers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Own:
    """A family's own form: config.json, the shapes of a block's tensors and of the others, and what adapters target."""

    fields: Mapping[str, Any]
    block: str
    inside: Mapping[str, tuple[int, ...]]
    outside: Mapping[str, tuple[int, ...]]
    targets: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """Random weights under the makers' names."""
        shapes = {f"{self.block}.{i}.{name}": shape for i in (0, 1) for name, shape in self.inside.items()}
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if "norm" in name or "ln_" in name else 0.0)
            for name, shape in {**shapes, **self.outside}.items()
        }

    def modules(self) -> list[str]:
        """The modules that an adapter changes."""
        names = [name.removesuffix(".weight") for name in self.tensors() if name.endswith(".weight")]
        return [name for name in names if name.endswith(tuple(f".{target}" for target in self.targets))]


LLAMA_BLOCK = {
    "self_attn.W_pack.weight": (96, 32), "self_attn.o_proj.weight": (32, 32), "mlp.gate_proj.weight": (48, 32),
    "mlp.up_proj.weight": (48, 32), "mlp.down_proj.weight": (32, 48), "input_layernorm.weight": (32,),
    "post_attention_layernorm.weight": (32,),
}  # fmt: skip
OWN = {
    "qwen": Own(
        {
            "model_type": "qwen", "vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4,
            "num_hidden_layers": 2, "intermediate_size": 96, "seq_length": 64, "layer_norm_epsilon": 1e-6,
            "kv_channels": 8, "no_bias": True,
        },
        "transformer.h",
        {
            "attn.c_attn.weight": (96, 32), "attn.c_attn.bias": (96,), "attn.c_proj.weight": (32, 32),
            "mlp.w1.weight": (48, 32), "mlp.w2.weight": (48, 32), "mlp.c_proj.weight": (32, 48),
            "ln_1.weight": (32,), "ln_2.weight": (32,),
        },
        {"transformer.wte.weight": (300, 32), "transformer.ln_f.weight": (32,), "lm_head.weight": (300, 32)},
        ("c_attn", "c_proj", "w1", "w2"),
    ),
    "internlm": Own(
        {
            "model_type": "internlm2", "vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "bias": False, "rope_theta": 1e6,
        },
        "model.layers",
        {
            "attention.wqkv.weight": (64, 32), "attention.wo.weight": (32, 32), "feed_forward.w1.weight": (48, 32),
            "feed_forward.w3.weight": (48, 32), "feed_forward.w2.weight": (32, 48), "attention_norm.weight": (32,),
            "ffn_norm.weight": (32,),
        },
        {"model.tok_embeddings.weight": (300, 32), "model.norm.weight": (32,), "output.weight": (300, 32)},
        ("wqkv", "wo", "w1", "w2", "w3"),
    ),
    "chatglm": Own(
        {
            "model_type": "chatglm", "padded_vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4,
            "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 8, "ffn_hidden_size": 48,
            "num_layers": 2, "seq_length": 64, "layernorm_epsilon": 1e-5, "add_qkv_bias": True, "pad_token_id": 0,
        },
        "transformer.encoder.layers",
        {
            "self_attention.query_key_value.weight": (64, 32), "self_attention.query_key_value.bias": (64,),
            "self_attention.dense.weight": (32, 32), "mlp.dense_h_to_4h.weight": (96, 32),
            "mlp.dense_4h_to_h.weight": (32, 48), "input_layernorm.weight": (32,),
            "post_attention_layernorm.weight": (32,),
        },
        {
            "transformer.embedding.word_embeddings.weight": (300, 32), "transformer.output_layer.weight": (300, 32),
            "transformer.encoder.final_layernorm.weight": (32,),
        },
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"variant": "chatglm3"},
    ),
    "baichuan": Own(
        {
            "model_type": "baichuan", "vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4,
            "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        },
        "model.layers",
        LLAMA_BLOCK,
        {"model.embed_tokens.weight": (300, 32), "model.norm.weight": (32,), "lm_head.weight": (300, 32)},
        ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"),
        {"variant": "baichuan2-7b"},
    ),
}  # fmt: skip


def checkpoint(own: Own, tensors: Tensors, folder: Path) -> Path:
    """A directory as the makers publish it, without a vocabulary."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(own.fields), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
