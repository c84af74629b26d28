"""Models of the shapes that their makers published hold as many numbers as the weights on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from family_facts import numbers, planned
from ftcore.discovery import find

QWEN = {
    "model_type": "qwen", "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "kv_channels": 128, "vocab_size": 151936, "seq_length": 8192, "rotary_emb_base": 10000,
    "rotary_pct": 1.0, "layer_norm_epsilon": 1e-6, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_SMALL = {
    **QWEN2, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
INTERNLM = {
    "model_type": "internlm", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 60,
    "num_attention_heads": 40, "vocab_size": 103168, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "bias": False, "tie_word_embeddings": False, "pad_token_id": 2,
}  # fmt: skip
INTERNLM2 = {
    "model_type": "internlm2", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 92544, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False,
    "tie_word_embeddings": False, "pad_token_id": 2,
}  # fmt: skip
CHATGLM = {
    "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28,
    "num_attention_heads": 32, "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2,
    "padded_vocab_size": 65024, "seq_length": 8192, "layernorm_epsilon": 1e-5, "add_qkv_bias": True,
    "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "tie_word_embeddings": False,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GLM4 = {
    **CHATGLM, "num_layers": 40, "padded_vocab_size": 151552, "layernorm_epsilon": 1.5625e-07,
    "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329,
}  # fmt: skip
BAICHUAN = {
    "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_size": 5120,
    "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 40, "vocab_size": 125696,
    "model_max_length": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {**LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
TINYLLAMA = {
    **LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4,
}  # fmt: skip
YI = {**LLAMA, "num_key_value_heads": 4, "vocab_size": 64000}

# The family, the fields of a published config.json that make the shape, and how many numbers the weights hold.
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "Qwen/Qwen-7B": ("qwen", QWEN, 7_721_324_544),
    "Qwen/Qwen2.5-0.5B": ("qwen", QWEN2_SMALL, 494_032_768),
    "Qwen/Qwen2.5-7B": ("qwen", QWEN2, 7_615_616_512),
    "internlm/internlm-20b": ("internlm", INTERNLM, 20_088_714_240),
    "internlm/internlm2_5-7b-chat": ("internlm", INTERNLM2, 7_737_708_544),
    "THUDM/chatglm2-6b": ("chatglm", {**CHATGLM, "_name_or_path": "THUDM/chatglm2-6b"}, 6_243_584_000),
    "THUDM/chatglm3-6b": ("chatglm", {**CHATGLM, "_name_or_path": "THUDM/chatglm3-6b"}, 6_243_584_000),
    "THUDM/glm-4-9b": ("chatglm", {**GLM4, "_name_or_path": "THUDM/glm-4-9b"}, 9_399_951_360),
    "THUDM/glm-4-9b-chat": ("chatglm", {**GLM4, "rope_ratio": 500, "seq_length": 131072}, 9_399_951_360),
    "THUDM/glm-4-9b-chat-1m": (
        "chatglm",
        {**GLM4, "multi_query_group_num": 4, "rope_ratio": 10000, "seq_length": 1048576},
        9_483_857_920,
    ),
    "baichuan-inc/Baichuan2-13B-Chat": ("baichuan", BAICHUAN, 13_896_668_160),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("llama", TINYLLAMA, 1_100_048_384),
    "01-ai/Yi-6B": ("llama", YI, 6_061_035_520),
    "meta-llama/Llama-2-7b-hf": ("llama", LLAMA, 6_738_415_616),
    "meta-llama/Meta-Llama-3-8B": ("llama", LLAMA3, 8_030_261_248),
}


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_a_published_shape_has_as_many_numbers_as_its_weights(checkpoint: str, tmp_path: Path) -> None:
    name, fields, wanted = PUBLISHED[checkpoint]
    family = find("model", f"ftcore-{name}:{name}").load()
    found = planned(family(), fields, tmp_path)
    assert numbers(found) == wanted
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}
    assert checkpoint in family.sizes.values()
