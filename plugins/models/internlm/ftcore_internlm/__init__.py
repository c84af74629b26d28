"""InternLM, InternLM2, InternLM2.5 and InternLM3 (Cai et al. 2024, arXiv:2403.17297) in transformers' Llama."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import Refused, options
from ftcore.converting import Fields, Original, Rule, carried, needed
from ftcore.families import DECODES, SCORES, HFModel
from ftcore.vocabularies import Specials, added_tokens, from_sentencepiece, read_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
    "max_position_embeddings",
)  # fmt: skip
OWN = (
    "num_key_value_heads", "head_dim", "hidden_act", "initializer_range", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip
NATIVE_NAMES = (
    Rule("model.layers.*.self_attn.*.*", ("model.layers.{0}.self_attn.{1}.{2}",)),
    Rule("model.layers.*.mlp.*.*", ("model.layers.{0}.mlp.{1}.{2}",)),
    Rule("model.layers.*.*.weight", ("model.layers.{0}.{1}.weight",)),
    Rule("model.*.weight", ("model.{0}.weight",)),
    Rule("lm_head.weight", ("lm_head.weight",)),
)
# What InternLM2 calls pieces that its vocabulary leaves unused; tokenizer_config.json says so, where there is one.
RENAMED = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
TURNS = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ '<|System|>:' + message['content'] + '\\n' }}\
{% elif message['role'] == 'user' %}{{ '<|User|>:' + message['content'] + '<eoh>\\n' }}\
{% else %}{{ '<|Bot|>:' + message['content'] + '<eoa>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}"""
CHATML = """\
{{ bos_token }}{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def _llama(fields: Fields, **own: Any) -> PreTrainedConfig:
    from transformers import LlamaConfig

    own |= {"rope_parameters": _rope(fields), "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig(**needed(fields, *NEEDED), **carried(fields, *OWN), **own)


def _rope(fields: Fields) -> dict[str, Any]:
    """Rotary positions, which three generations of these configs spell in three ways."""
    late = fields.get("rotary") or {}  # InternLM's of the end of 2023
    theta = float(late.get("base") or fields.get("rope_theta") or 10000)
    scaling = fields.get("rope_scaling") or {"type": late.get("type"), "factor": late.get("scaling_factor")}
    kind = scaling.get("rope_type") or scaling.get("type") or "origin"
    if kind in ("origin", "default"):
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("dynamic", "linear"):
        raise Refused(f"the config.json scales positions by '{kind}', which no InternLM does; use the published file")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling.get("factor") or 1.0)}


def _config(fields: Fields) -> PreTrainedConfig:
    return _llama(fields, attention_bias=bool(fields.get("bias", True)), mlp_bias=False)


def _third_config(fields: Fields) -> PreTrainedConfig:
    bias, of_attention = bool(fields.get("bias")), bool(fields.get("qkv_bias"))
    return _llama(fields, attention_bias=bias or of_attention, mlp_bias=bias)


def _second_rules(fields: Fields) -> tuple[Rule, ...]:
    """q, k and v are fused for each key-value head: its queries, its key, its value."""
    layer = "model.layers.{0}"
    fused = tuple(f"{layer}.self_attn.{name}_proj.{{1}}" for name in "qkv")
    groups = int(fields.get("num_key_value_heads") or fields["num_attention_heads"])
    return (
        Rule("model.layers.*.attention.wqkv.*", fused, groups),
        Rule("model.layers.*.attention.wo.*", (f"{layer}.self_attn.o_proj.{{1}}",)),
        Rule("model.layers.*.feed_forward.w1.weight", (f"{layer}.mlp.gate_proj.weight",)),
        Rule("model.layers.*.feed_forward.w3.weight", (f"{layer}.mlp.up_proj.weight",)),
        Rule("model.layers.*.feed_forward.w2.weight", (f"{layer}.mlp.down_proj.weight",)),
        Rule("model.layers.*.attention_norm.weight", (f"{layer}.input_layernorm.weight",)),
        Rule("model.layers.*.ffn_norm.weight", (f"{layer}.post_attention_layernorm.weight",)),
        Rule("model.tok_embeddings.weight", ("model.embed_tokens.weight",)),
        Rule("model.norm.weight", ("model.norm.weight",)),
        Rule("output.weight", ("lm_head.weight",)),
    )


def _third_zeros(fields: Fields) -> tuple[str, ...]:
    """The native class has one switch for all biases of attention, and these configs have two."""
    bias, of_attention = bool(fields.get("bias")), bool(fields.get("qkv_bias"))
    lacking = ("o",) if of_attention and not bias else tuple("qkv") if bias and not of_attention else ()
    return tuple(f"model.layers.*.self_attn.{name}_proj.bias" for name in lacking)


def _tokenizer(folder: Path, fields: Fields) -> PreTrainedTokenizerBase:
    file = folder / "tokenizer.model"
    pieces = enumerate(read_pieces(file).pieces)
    renamed = {number: RENAMED[piece.text] for number, piece in pieces if piece.text in RENAMED}
    specials = Specials(
        names=renamed | added_tokens(folder),
        marks=("<eoh>", "<eoa>"),
        begin=("<s>",),
        bos="<s>",
        eos="</s>",
        pad="</s>",
        unk="<unk>",
        template=TURNS if fields["model_type"] == "internlm" else CHATML,
    )
    return from_sentencepiece(file, specials)


SIZES: Mapping[str, str] = {
    "7b": "internlm/internlm2_5-7b",
    "7b-chat": "internlm/internlm2_5-7b-chat",
    "1.8b": "internlm/internlm2_5-1_8b",
    "1.8b-chat": "internlm/internlm2_5-1_8b-chat",
    "20b": "internlm/internlm2_5-20b",
    "20b-chat": "internlm/internlm2_5-20b-chat",
    "7b-chat-1m": "internlm/internlm2_5-7b-chat-1m",
    "3-8b-chat": "internlm/internlm3-8b-instruct",
    "2-1.8b": "internlm/internlm2-1_8b",
    "2-1.8b-chat": "internlm/internlm2-chat-1_8b",
    "2-7b": "internlm/internlm2-7b",
    "2-7b-chat": "internlm/internlm2-chat-7b",
    "2-20b": "internlm/internlm2-20b",
    "2-20b-chat": "internlm/internlm2-chat-20b",
    "1-7b": "internlm/internlm-7b",
    "1-7b-chat": "internlm/internlm-chat-7b",
    "1-20b": "internlm/internlm-20b",
    "1-20b-chat": "internlm/internlm-chat-20b",
}


@options
class InternLM(HFModel):
    """InternLM, InternLM2, InternLM2.5 and InternLM3, whose checkpoints become Llama's while they are read."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    originals: ClassVar[tuple[Original, ...]] = (
        Original("internlm", _config, lambda fields: NATIVE_NAMES, _tokenizer, stops=("<eoa>",)),
        Original("internlm2", _config, _second_rules, _tokenizer, stops=("<|im_end|>",)),
        Original("internlm3", _third_config, lambda fields: NATIVE_NAMES, _tokenizer, _third_zeros, ("<|im_end|>",)),
    )
