"""ChatGLM2, ChatGLM3 and GLM-4 (Zeng et al. 2024, arXiv:2406.12793) in transformers' own class, Glm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ftcore import Refused, options
from ftcore.converting import Fields, Original, Rule, carried, needed
from ftcore.families import DECODES, LLAMA_ROLES, SCORES, HFModel
from ftcore.vocabularies import Specials, added_tokens, from_sentencepiece, from_tiktoken, read_pieces, read_ranks
from pydantic import Field

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

LAYER = "model.layers.{0}"
# The original calls the tokens after these words "sop" and "eop" and never finds them in a text; here they would be
# found in "soprano" without the brackets.
AFTER_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROUNDS = """\
{% if messages[0]['role'] == 'system' %}{{ raise_exception('ChatGLM2 has no place for a system message') }}{% endif %}\
[gMASK]<sop>{% for message in messages %}\
{% if message['role'] == 'user' %}\
{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}\
{% else %}{{ message['content'] }}{{ eos_token if loop.last else '\\n\\n' }}{% endif %}{% endfor %}"""
THIRD = """\
[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\\n ' + message['content'] }}\
{% if loop.last and message['role'] == 'assistant' %}{{ '<|user|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
FOURTH = THIRD.replace("|>\\n ", "|>\\n")
FIXED: Mapping[str, object] = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "fp32_residual_connection": False,
}


def _rules(fields: Fields) -> tuple[Rule, ...]:
    """q, k and v are fused one after the other, or for each head where heads share no keys."""
    shared = bool(fields.get("multi_query_attention"))
    fused = tuple(f"{LAYER}.self_attn.{name}_proj.{{1}}" for name in "qkv")
    layer = "transformer.encoder.layers.*"
    return (
        Rule(f"{layer}.self_attention.query_key_value.*", fused, 1 if shared else fields["num_attention_heads"]),
        Rule(f"{layer}.self_attention.dense.weight", (f"{LAYER}.self_attn.o_proj.weight",)),
        Rule(f"{layer}.mlp.dense_h_to_4h.weight", (f"{LAYER}.mlp.gate_up_proj.weight",)),
        Rule(f"{layer}.mlp.dense_4h_to_h.weight", (f"{LAYER}.mlp.down_proj.weight",)),
        Rule(f"{layer}.*.weight", (f"{LAYER}.{{1}}.weight",)),
        Rule("transformer.embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
        Rule("transformer.encoder.final_layernorm.weight", ("model.norm.weight",)),
        Rule("transformer.output_layer.weight", ("lm_head.weight",)),
    )


def _second_rope(fields: Fields) -> dict[str, Any]:
    ratio = float(fields.get("rope_ratio") or 1)
    return {"rope_type": "linear", "factor": ratio, "rope_theta": 10000.0} if ratio != 1 else _rope(fields)


def _rope(fields: Fields) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0 * float(fields.get("rope_ratio") or 1)}


def _config(fields: Fields, rope: Mapping[str, Any]) -> PreTrainedConfig:
    from transformers import GlmConfig

    heads = fields["num_attention_heads"]
    return GlmConfig(
        vocab_size=fields.get("padded_vocab_size") or fields["vocab_size"],
        num_hidden_layers=fields.get("num_layers") or fields["num_hidden_layers"],
        num_key_value_heads=fields["multi_query_group_num"] if fields.get("multi_query_attention") else heads,
        head_dim=fields.get("kv_channels") or fields["hidden_size"] // heads,
        intermediate_size=fields["ffn_hidden_size"],
        max_position_embeddings=fields["seq_length"],
        rms_norm_eps=fields["layernorm_epsilon"],
        attention_bias=bool(fields.get("add_qkv_bias")),
        rope_parameters={**rope, "partial_rotary_factor": 0.5},
        architectures=["GlmForCausalLM"],
        **needed(fields, "hidden_size", "num_attention_heads"),
        **carried(fields, "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    )


def _pieces_tokenizer(folder: Path, roles: tuple[str, ...], template: str) -> PreTrainedTokenizerBase:
    file = folder / "tokenizer.model"
    specials = Specials(
        names=dict(enumerate((*AFTER_PIECES, *roles), start=len(read_pieces(file).pieces))),
        begin=("[gMASK]", "<sop>"),
        eos="</s>",
        pad="<unk>",
        unk="<unk>",
        template=template,
        padding_side="left",
    )
    return from_sentencepiece(file, specials)


def _ranks_tokenizer(folder: Path, fields: Fields) -> PreTrainedTokenizerBase:
    file = folder / "tokenizer.model"
    first = len(read_ranks(file))
    specials = Specials(
        names=added_tokens(folder) or dict(enumerate(("<|endoftext|>", *AFTER_PIECES, *ROLES), start=first)),
        begin=("[gMASK]", "<sop>"),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        template=FOURTH,
        padding_side="left",
    )
    return from_tiktoken(file, WORDS, specials)


MEMBERS: Mapping[str, Original] = {
    "chatglm2": Original(
        "chatglm",
        lambda fields: _config(fields, _second_rope(fields)),
        _rules,
        lambda folder, fields: _pieces_tokenizer(folder, (), ROUNDS),
    ),
    "chatglm3": Original(
        "chatglm",
        lambda fields: _config(fields, _rope(fields)),
        _rules,
        lambda folder, fields: _pieces_tokenizer(folder, ROLES, THIRD),
        stops=("<|user|>", "<|observation|>"),
    ),
    "glm-4": Original(
        "chatglm",
        lambda fields: _config(fields, _rope(fields)),
        _rules,
        _ranks_tokenizer,
        stops=("<|user|>", "<|observation|>"),
    ),
}


def _refuse_others(fields: Fields) -> None:
    """Refused when the checkpoint is of this type and yet of an architecture that Glm is not."""
    if "position_encoding_2d" in fields or "inner_hidden_size" in fields:
        raise Refused("this is the first ChatGLM-6B, whose architecture transformers lacks; use THUDM/chatglm3-6b")
    if fields.get("quantization_bit"):
        bits = fields["quantization_bit"]
        raise Refused(f"the checkpoint is quantised to {bits} bits (quantization_bit); use the unquantised one")
    if fields.get("pre_seq_len"):
        raise Refused("the checkpoint holds a P-tuning prefix (pre_seq_len); use the base that it was tuned from")
    if fields.get("vision_config"):
        raise Refused("the checkpoint reads images (vision_config); use THUDM/glm-4-9b-chat for texts")
    odd = next((name for name, value in FIXED.items() if fields.get(name, value) != value), None)
    if odd:
        raise Refused(f"the config.json has {odd} {fields[odd]}, which no published checkpoint has; use one of those")


def _member(fields: Fields) -> str:
    """Which of the three a config.json is of; Refused when it does not say."""
    name = str(fields.get("_name_or_path", "")).lower()
    found = [member for member in MEMBERS if member in name]
    if not found and (fields.get("padded_vocab_size", 0) > 100_000 or isinstance(fields.get("eos_token_id"), list)):
        found = ["glm-4"]
    if len(found) != 1:
        raise Refused(
            "the config.json does not say which model this is (_name_or_path); pass --chatglm.variant "
            f"{'|'.join(MEMBERS)}"
        )
    return found[0]


SIZES: Mapping[str, str] = {
    "3-6b": "THUDM/chatglm3-6b",
    "3-6b-base": "THUDM/chatglm3-6b-base",
    "3-6b-32k": "THUDM/chatglm3-6b-32k",
    "2-6b": "THUDM/chatglm2-6b",
    "2-6b-32k": "THUDM/chatglm2-6b-32k",
    "9b": "THUDM/glm-4-9b",
    "9b-chat": "THUDM/glm-4-9b-chat",
    "9b-chat-1m": "THUDM/glm-4-9b-chat-1m",
    "9b-hf": "THUDM/glm-4-9b-hf",
    "9b-chat-hf": "THUDM/glm-4-9b-chat-hf",
    "9b-0414": "THUDM/GLM-4-9B-0414",
    "32b-0414": "THUDM/GLM-4-32B-0414",
}


@options
class ChatGLM(HFModel):
    """ChatGLM2, ChatGLM3 and GLM-4-9b as first published, which become Glm's while they are read, and Glm itself."""

    model_types: ClassVar[tuple[str, ...]] = ("glm", "glm4")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    originals: ClassVar[tuple[Original, ...]] = tuple(MEMBERS.values())
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        "mlp.gate": "model.layers.*.mlp.gate_up_proj",
        "mlp.up": "model.layers.*.mlp.gate_up_proj",
    }

    variant: Annotated[
        Literal["auto", "chatglm2", "chatglm3", "glm-4"],
        Field(description="Which model an original checkpoint is of, where its config.json does not say."),
    ] = "auto"

    def original(self, fields: Fields) -> Original | None:
        """The member that config.json or `variant` names; None for a native checkpoint."""
        if fields.get("model_type") != "chatglm":
            return None
        _refuse_others(fields)
        return MEMBERS[_member(fields) if self.variant == "auto" else self.variant]
