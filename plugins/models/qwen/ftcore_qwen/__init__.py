"""Qwen1.5, 2, 2.5 and 3 in transformers' own classes, the first Qwen read as Qwen2, and a starter of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ftcore import Refused, options
from ftcore.converting import Fields, Original, Rule, carried
from ftcore.families import DECODES, LLAMA_ROLES, SCORES, HFModel
from ftcore.vocabularies import Specials, from_tiktoken, read_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

LAYER, MLP = "model.layers.{0}", "model.layers.*.mlp"
FIRST_RULES = (
    Rule("transformer.h.*.attn.c_attn.*", tuple(f"{LAYER}.self_attn.{name}_proj.{{1}}" for name in "qkv")),
    Rule("transformer.h.*.attn.c_proj.weight", (f"{LAYER}.self_attn.o_proj.weight",)),
    Rule("transformer.h.*.mlp.w2.weight", (f"{LAYER}.mlp.gate_proj.weight",)),
    Rule("transformer.h.*.mlp.w1.weight", (f"{LAYER}.mlp.up_proj.weight",)),
    Rule("transformer.h.*.mlp.c_proj.weight", (f"{LAYER}.mlp.down_proj.weight",)),
    Rule("transformer.h.*.ln_1.weight", (f"{LAYER}.input_layernorm.weight",)),
    Rule("transformer.h.*.ln_2.weight", (f"{LAYER}.post_attention_layernorm.weight",)),
    Rule("transformer.wte.weight", ("model.embed_tokens.weight",)),
    Rule("transformer.ln_f.weight", ("model.norm.weight",)),
    Rule("lm_head.weight", ("lm_head.weight",)),
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = """\
{% if messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def _first_config(fields: Fields) -> PreTrainedConfig:
    """The config of the first Qwen, whose fields of August 2023 had other names."""
    from transformers import Qwen2Config

    heads = fields.get("num_attention_heads") or fields["n_head"]
    width = fields.get("hidden_size") or fields["n_embd"]
    usual = fields.get("no_bias", True) and fields.get("rotary_pct", 1.0) == 1.0
    if not usual or width != heads * fields.get("kv_channels", width // heads):
        raise Refused("the config.json has biases or rotary positions that no published Qwen has; use one of those")
    return Qwen2Config(
        vocab_size=fields.get("padded_vocab_size") or fields["vocab_size"],
        hidden_size=width,
        intermediate_size=(fields.get("intermediate_size") or fields["ffn_hidden_size"]) // 2,
        num_hidden_layers=fields.get("num_hidden_layers") or fields["n_layer"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=fields["seq_length"],
        rope_parameters={"rope_type": "default", "rope_theta": float(fields.get("rotary_emb_base", 10000))},
        architectures=["Qwen2ForCausalLM"],
        **carried(fields, "initializer_range", "tie_word_embeddings", rms_norm_eps="layer_norm_epsilon"),
    )


def _first_tokenizer(folder: Path, fields: Fields) -> PreTrainedTokenizerBase:
    file = folder / "qwen.tiktoken"
    first = len(read_ranks(file))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
    specials = Specials(
        names=dict(enumerate(names, start=first)), eos="<|endoftext|>", pad="<|endoftext|>", template=CHATML
    )
    return from_tiktoken(file, WORDS, specials, nfc=True)


def _first_note(fields: Fields) -> str:
    if not (fields.get("use_dynamic_ntk") or fields.get("use_logn_attn")):
        return ""
    return (
        f"this checkpoint's makers stretch positions past {fields['seq_length']} tokens when it answers, and here they "
        "are not: keep questions and answers within that; training does not differ"
    )


SIZES: Mapping[str, str] = {
    "0.5b": "Qwen/Qwen2.5-0.5B",
    "0.5b-chat": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5b": "Qwen/Qwen2.5-1.5B",
    "1.5b-chat": "Qwen/Qwen2.5-1.5B-Instruct",
    "3b": "Qwen/Qwen2.5-3B",
    "3b-chat": "Qwen/Qwen2.5-3B-Instruct",
    "7b": "Qwen/Qwen2.5-7B",
    "7b-chat": "Qwen/Qwen2.5-7B-Instruct",
    "14b": "Qwen/Qwen2.5-14B",
    "14b-chat": "Qwen/Qwen2.5-14B-Instruct",
    "32b": "Qwen/Qwen2.5-32B",
    "32b-chat": "Qwen/Qwen2.5-32B-Instruct",
    "72b": "Qwen/Qwen2.5-72B",
    "72b-chat": "Qwen/Qwen2.5-72B-Instruct",
    "3-0.6b": "Qwen/Qwen3-0.6B-Base",
    "3-0.6b-chat": "Qwen/Qwen3-0.6B",
    "3-1.7b": "Qwen/Qwen3-1.7B-Base",
    "3-1.7b-chat": "Qwen/Qwen3-1.7B",
    "3-4b": "Qwen/Qwen3-4B-Base",
    "3-4b-chat": "Qwen/Qwen3-4B",
    "3-8b": "Qwen/Qwen3-8B-Base",
    "3-8b-chat": "Qwen/Qwen3-8B",
    "3-14b": "Qwen/Qwen3-14B-Base",
    "3-14b-chat": "Qwen/Qwen3-14B",
    "3-32b-chat": "Qwen/Qwen3-32B",
    "3-30b-a3b": "Qwen/Qwen3-30B-A3B-Base",
    "3-30b-a3b-chat": "Qwen/Qwen3-30B-A3B",
    "3-235b-a22b-chat": "Qwen/Qwen3-235B-A22B",
    "2-0.5b": "Qwen/Qwen2-0.5B",
    "2-0.5b-chat": "Qwen/Qwen2-0.5B-Instruct",
    "2-1.5b": "Qwen/Qwen2-1.5B",
    "2-1.5b-chat": "Qwen/Qwen2-1.5B-Instruct",
    "2-7b": "Qwen/Qwen2-7B",
    "2-7b-chat": "Qwen/Qwen2-7B-Instruct",
    "2-72b": "Qwen/Qwen2-72B",
    "2-72b-chat": "Qwen/Qwen2-72B-Instruct",
    "2-57b-a14b": "Qwen/Qwen2-57B-A14B",
    "2-57b-a14b-chat": "Qwen/Qwen2-57B-A14B-Instruct",
    "1.5-0.5b": "Qwen/Qwen1.5-0.5B",
    "1.5-0.5b-chat": "Qwen/Qwen1.5-0.5B-Chat",
    "1.5-1.8b": "Qwen/Qwen1.5-1.8B",
    "1.5-1.8b-chat": "Qwen/Qwen1.5-1.8B-Chat",
    "1.5-4b": "Qwen/Qwen1.5-4B",
    "1.5-4b-chat": "Qwen/Qwen1.5-4B-Chat",
    "1.5-7b": "Qwen/Qwen1.5-7B",
    "1.5-7b-chat": "Qwen/Qwen1.5-7B-Chat",
    "1.5-14b": "Qwen/Qwen1.5-14B",
    "1.5-14b-chat": "Qwen/Qwen1.5-14B-Chat",
    "1.5-32b": "Qwen/Qwen1.5-32B",
    "1.5-32b-chat": "Qwen/Qwen1.5-32B-Chat",
    "1.5-72b": "Qwen/Qwen1.5-72B",
    "1.5-72b-chat": "Qwen/Qwen1.5-72B-Chat",
    "1.5-110b": "Qwen/Qwen1.5-110B",
    "1.5-110b-chat": "Qwen/Qwen1.5-110B-Chat",
    "1.5-a2.7b": "Qwen/Qwen1.5-MoE-A2.7B",
    "1.5-a2.7b-chat": "Qwen/Qwen1.5-MoE-A2.7B-Chat",
    "1-1.8b": "Qwen/Qwen-1_8B",
    "1-1.8b-chat": "Qwen/Qwen-1_8B-Chat",
    "1-7b": "Qwen/Qwen-7B",
    "1-7b-chat": "Qwen/Qwen-7B-Chat",
    "1-14b": "Qwen/Qwen-14B",
    "1-14b-chat": "Qwen/Qwen-14B-Chat",
    "1-72b": "Qwen/Qwen-72B",
    "1-72b-chat": "Qwen/Qwen-72B-Chat",
}


@options
class Qwen(HFModel):
    """Decoders of the types qwen2 and qwen3, dense and with experts, and the first Qwen's, which are read as Qwen2's.

    Experts are tensors of three dimensions in one module, which has a role of its own; an expert that every token
    passes is an mlp.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        **{f"mlp.{name}": f"{MLP}.{name}_proj {MLP}.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
        "experts": f"{MLP}.experts",
        "router": f"{MLP}.gate {MLP}.shared_expert_gate",
    }
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    }
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    originals: ClassVar[tuple[Original, ...]] = (
        Original(
            "qwen",
            _first_config,
            lambda fields: FIRST_RULES,
            _first_tokenizer,
            stops=("<|im_end|>", "<|im_start|>"),
            note=_first_note,
        ),
    )
