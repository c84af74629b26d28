"""Baichuan and Baichuan2 (Yang et al. 2023, arXiv:2309.10305): 7B in transformers' Llama, 13B in one with ALiBi."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ftcore import Loaded, Refused, Run, hookimpl, options
from ftcore.converting import Fields, Native, Original, Rule, carried, needed
from ftcore.families import DECODES, SCORES, HFModel
from ftcore.vocabularies import Specials, from_sentencepiece, read_pieces
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
)  # fmt: skip
OWN = ("hidden_act", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
RULES = (
    Rule(
        "model.layers.*.self_attn.W_pack.weight",
        tuple(f"model.layers.{{0}}.self_attn.{name}_proj.weight" for name in "qkv"),
    ),
    Rule("model.layers.*.self_attn.o_proj.weight", ("model.layers.{0}.self_attn.o_proj.weight",)),
    Rule("model.layers.*.mlp.*.weight", ("model.layers.{0}.mlp.{1}.weight",)),
    Rule("model.layers.*.*.weight", ("model.layers.{0}.{1}.weight",)),
    Rule("model.*.weight", ("model.{0}.weight",)),
)
HEAD = Rule("lm_head.weight", ("lm_head.weight",))
TURNS = """\
{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ 'USER' + message['content'] }}\
{% elif message['role'] == 'assistant' %}\
{{ 'ASSISTANT' + message['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT{% endif %}"""


def _rotary(fields: Fields) -> PreTrainedConfig:
    from transformers import LlamaConfig

    rope = {"rope_type": "default", "rope_theta": float(fields.get("rope_theta") or 10000)}
    return LlamaConfig(
        **needed(fields, *NEEDED, "max_position_embeddings"),
        **carried(fields, *OWN),
        rope_parameters=rope,
        architectures=["LlamaForCausalLM"],
    )


def _biased(fields: Fields) -> PreTrainedConfig:
    from ftcore_baichuan.alibi import AlibiLlamaConfig

    return AlibiLlamaConfig(
        **needed(fields, *NEEDED),
        **carried(fields, *OWN, max_position_embeddings="model_max_length"),
        architectures=["AlibiLlamaForCausalLM"],
    )


def _plain_head(fields: Fields) -> tuple[Rule, ...]:
    return (*RULES, HEAD)


def _unit_head(fields: Fields) -> tuple[Rule, ...]:
    """Baichuan2 divides each row of its head by its length whenever it answers; a plain checkpoint has it divided."""
    return (*RULES, replace(HEAD, normalised=True))


def _dividing(model: PreTrainedModel, tensors: Native | None) -> None:
    """The head divides as its makers' does, so that it trains as theirs."""
    from ftcore_baichuan.unit_head import UnitHead

    if model.get_output_embeddings() is None:  # another head was asked for
        return
    weight = tensors.uncut("lm_head.weight") if tensors else model.lm_head.weight
    model.lm_head = UnitHead.of(model.lm_head, weight)


def _tokenizer(turns: tuple[str, str] | None) -> Callable[[Path, Fields], PreTrainedTokenizerBase]:
    """How a checkpoint's tokenizer is made; `turns` are the tokens that open a question and an answer."""

    def made(folder: Path, fields: Fields) -> PreTrainedTokenizerBase:
        file = folder / "tokenizer.model"
        pieces = {piece.text for piece in read_pieces(file).pieces}
        chats = turns is not None and pieces.issuperset(turns)
        template = TURNS.replace("USER", turns[0]).replace("ASSISTANT", turns[1]) if turns and chats else None
        marks = turns if turns and chats else ()
        return from_sentencepiece(
            file, Specials(marks=marks, bos="<s>", eos="</s>", pad="<unk>", unk="<unk>", template=template)
        )

    return made


FIRST_VOCABULARY, SECOND_VOCABULARY = 64_000, 125_696


def _doubt(fields: Fields) -> str:
    """What is said where config.json does not tell a Baichuan-13B from a Baichuan2-13B."""
    size = fields.get("vocab_size")
    if size == FIRST_VOCABULARY:
        return ""
    taken = "read as Baichuan-13B; else pass --baichuan.variant baichuan2-13b"
    return f"a vocabulary of {size} is no published 13B's: {taken}"


FIRST = ("<reserved_102>", "<reserved_103>")
SECOND = ("<reserved_106>", "<reserved_107>")
MEMBERS: Mapping[str, Original] = {
    "baichuan-7b": Original("baichuan", _rotary, _plain_head, _tokenizer(None)),
    "baichuan-13b": Original("baichuan", _biased, _plain_head, _tokenizer(FIRST), stops=FIRST[:1], note=_doubt),
    "baichuan2-7b": Original("baichuan", _rotary, _unit_head, _tokenizer(SECOND), stops=SECOND[:1], finish=_dividing),
    "baichuan2-13b": Original("baichuan", _biased, _unit_head, _tokenizer(SECOND), stops=SECOND[:1], finish=_dividing),
}


def _member(fields: Fields) -> str:
    """Which of the four a config.json is of, as the published ones differ."""
    if fields.get("architectures") == ["BaiChuanForCausalLM"]:  # only this one is spelled so
        return "baichuan-7b"
    if "max_position_embeddings" in fields:
        return "baichuan2-7b"
    return "baichuan2-13b" if fields.get("vocab_size") == SECOND_VOCABULARY else "baichuan-13b"


SIZES: Mapping[str, str] = {
    "7b": "baichuan-inc/Baichuan2-7B-Base",
    "7b-chat": "baichuan-inc/Baichuan2-7B-Chat",
    "13b": "baichuan-inc/Baichuan2-13B-Base",
    "13b-chat": "baichuan-inc/Baichuan2-13B-Chat",
    "1-7b": "baichuan-inc/Baichuan-7B",
    "1-13b": "baichuan-inc/Baichuan-13B-Base",
    "1-13b-chat": "baichuan-inc/Baichuan-13B-Chat",
}


@options
class Baichuan(HFModel):
    """Baichuan and Baichuan2, 7B and 13B, which become Llama's while they are read, with ALiBi where they have it."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "alibi_llama")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    sizes: ClassVar[Mapping[str, str]] = SIZES
    originals: ClassVar[tuple[Original, ...]] = tuple(MEMBERS.values())
    excused: ClassVar[Mapping[str, str]] = {
        "check_keywords_reach_the_model": "one attention alone knows the bias of alibi_llama, so it takes no other"
    }

    variant: Annotated[
        Literal["auto", "baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b"],
        Field(description="Which model an original checkpoint is of, where its config.json does not say."),
    ] = "auto"

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' Llama, or in this package's where positions are biases."""
        from ftcore_baichuan.alibi import register

        register()
        return super().load_model(run, kwargs)

    def original(self, fields: Fields) -> Original | None:
        """The member that config.json or `variant` names; None for a native checkpoint."""
        if fields.get("model_type") != "baichuan":
            return None
        return MEMBERS[_member(fields) if self.variant == "auto" else self.variant]

    @hookimpl(wrapper=True)
    def inject_adapter(self) -> Generator[None, list[nn.Module], list[nn.Module]]:
        """Nothing is added to a head that divides: the sum would not be what is merged."""
        from ftcore_baichuan.unit_head import SCALED, is_added_to

        adapted = yield
        if any(is_added_to(model) for model in adapted):
            raise Refused(SCALED)
        return adapted

    @hookimpl(wrapper=True)
    def merge(self) -> Generator[None, list[nn.Module], list[nn.Module]]:
        """The merged model's head is a plain projection, divided once."""
        from ftcore_baichuan.unit_head import made_plain

        merged = yield
        for model in merged:
            made_plain(model)
        return merged
