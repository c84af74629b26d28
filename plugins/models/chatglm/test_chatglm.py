"""Checkpoints in ChatGLM's own form answer as their makers' code does, whole or not at all, and run nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import difference
from ftcore.testing import model_checks
from ftcore_chatglm import ChatGLM
from torch import Tensor


def plain(**changes: Any) -> Any:
    """A random Glm whose heads share keys in pairs."""
    from transformers import GlmConfig, GlmForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
        "pad_token_id": 0, "eos_token_id": 2, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GlmForCausalLM(GlmConfig(**(shape | changes))).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def fields(model: Any, name: str = "THUDM/chatglm3-6b", **changes: Any) -> dict[str, Any]:
    """The config.json of a model in the spelling of ChatGLM."""
    config = model.config
    return {
        "model_type": "chatglm", "_name_or_path": name, "padded_vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "ffn_hidden_size": config.intermediate_size, "num_layers": 2,
        "num_attention_heads": 4, "kv_channels": config.head_dim, "seq_length": 64, "add_qkv_bias": True,
        "multi_query_attention": config.num_key_value_heads < 4, "multi_query_group_num": 2,
        "layernorm_epsilon": config.rms_norm_eps, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, **changes,
    }  # fmt: skip


def original(model: Any) -> dict[str, Tensor]:
    """The tensors of a Glm under ChatGLM's names: q, k, v in a row, or for each head where each has its own key."""
    names = {
        "model.layers": "transformer.encoder.layers", "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h",
        "model.embed_tokens": "transformer.embedding.word_embeddings", "lm_head": "transformer.output_layer",
        "model.norm": "transformer.encoder.final_layernorm",
    }  # fmt: skip
    state, tensors = dict(model.state_dict()), {"transformer.rotary_pos_emb.inv_freq": torch.ones(4)}
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"model.layers.{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            if len({len(part) for part in parts}) == 1:
                parts = [rows for head in zip(*(part.split(16) for part in parts), strict=True) for rows in head]
            tensors[f"transformer.encoder.layers.{layer}.self_attention.query_key_value.{kind}"] = torch.cat(parts)
    for name, tensor in state.items():
        new = name
        for native, old in names.items():
            new = new.replace(native, old)
        tensors[new] = tensor
    return tensors


@pytest.mark.parametrize("keys", [2, 4])
def test_a_checkpoint_answers_as_the_glm_it_was_made_of(keys: int, form: str, written: Callable[..., Path]) -> None:
    model = plain(num_key_value_heads=keys)
    loaded = ftcore.load("chatglm", checkpoint=written(fields(model), original(model), form))
    assert type(loaded.model) is type(model)
    assert difference(loaded.model, model) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "rope"),
    [
        ("THUDM/chatglm2-6b-32k", {}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
        ("THUDM/chatglm3-6b-32k", {}, {"rope_type": "default", "rope_theta": 40000.0}),
        ("THUDM/glm-4-9b-chat-1m", {}, {"rope_type": "default", "rope_theta": 40000.0}),
        ("mine", {"variant": "chatglm2"}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
        ("mine", {"variant": "glm-4"}, {"rope_type": "default", "rope_theta": 40000.0}),
    ],
)
def test_one_field_that_means_two_things_is_read_as_its_model_does(
    name: str, options: dict[str, str], rope: dict[str, Any], written: Callable[..., Path]
) -> None:
    model = plain(rope_parameters={**rope, "partial_rotary_factor": 0.5})
    folder = written(fields(model, name, rope_ratio=4), original(model))
    assert difference(ftcore.load("chatglm", checkpoint=folder, **options).model, model) < 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_name_or_path": "mine"}, r"does not say which model this is .*pass --chatglm\.variant"),
        ({"quantization_bit": 4}, "is quantised to 4 bits .*use the unquantised one"),
        ({"pre_seq_len": 128}, "holds a P-tuning prefix"),
        ({"vision_config": {"hidden_size": 8}}, "reads images"),
        ({"position_encoding_2d": True}, "the first ChatGLM-6B, .*use THUDM/chatglm3-6b"),
        ({"post_layer_norm": False}, "has post_layer_norm False"),
        ({"num_layers": None}, r"the config\.json in '.*' cannot be read"),
    ],
)
def test_other_architectures_of_the_same_type_are_refused(
    change: dict[str, Any], said: str, written: Callable[..., Path]
) -> None:
    model = plain()
    with pytest.raises(ftcore.Refused, match=said):
        ftcore.load("chatglm", checkpoint=written(fields(model, **change), original(model)))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("transformer.output_layer.weight", None, r"the first is 'transformer\.output_layer\.weight'"),
        ("transformer.prefix_encoder.embedding.weight", (2, 2), r"unexpected tensor 'transformer\.prefix_encoder"),
        ("transformer.encoder.final_layernorm.weight", (7,), r"'transformer\.encoder\.final_layernorm\.weight' is 7"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    name: str, shape: tuple[int, ...] | None, said: str, written: Callable[..., Path]
) -> None:
    model = plain()
    tensors = {key: tensor for key, tensor in original(model).items() if key != name}
    tensors |= {} if shape is None else {name: torch.zeros(shape)}
    with pytest.raises(ftcore.Refused, match=said):
        ftcore.load("chatglm", checkpoint=written(fields(model), tensors))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatglm2-6b", "[gMASK]<sop>[Round 1]\n\n问：a cat\n\n答：rain</s>"),
        ("chatglm3-6b", "[gMASK]<sop><|user|>\n a cat<|assistant|>\n rain<|user|>"),
    ],
)
def test_its_tokenizer_chats_as_its_makers_say(
    name: str, text: str, written: Callable[..., Path], pieces: Callable[..., bytes]
) -> None:
    model = plain()
    folder = written(fields(model, name), original(model))
    (folder / "tokenizer.model").write_bytes(pieces(("▁cat", "rain"), prefix=True))
    loaded = ftcore.load("chatglm", checkpoint=folder)
    tokenizer: Any = loaded.tokenizer
    talk = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "rain"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("rain")["input_ids"]) == ["[gMASK]", "<sop>", "▁", "rain"]
    assert tokenizer.all_special_ids
    assert tokenizer("sop", add_special_tokens=False)["input_ids"] != tokenizer.convert_tokens_to_ids(["<sop>"])
    assert tokenizer.padding_side == "left"


def test_converted_it_is_a_plain_checkpoint_that_transformers_loads(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = plain()
    ftcore.convert(written(fields(model), original(model)), model="chatglm", output=tmp_path / "plain")
    assert difference(AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval(), model) < 1e-6


def test_published_checkpoints_answer_as_their_makers_code(
    published: Callable[..., list[Path]], as_published: Callable[[Any, Path], None]
) -> None:
    for folder in [*published("chatglm*"), *published("glm4*")]:
        as_published(ftcore.load("chatglm", checkpoint=folder), folder)
    for folder in published("refuse-chatglm*"):
        with pytest.raises(ftcore.Refused, match="use "):
            ftcore.load("chatglm", checkpoint=folder)


# The starter


def test_the_starter_has_the_shape_of_glm_4() -> None:
    config = ftcore.load("chatglm").model.config
    assert config.num_attention_heads > config.num_key_value_heads == 2
    assert config.attention_bias
    assert not config.tie_word_embeddings
    assert config.rope_parameters["partial_rotary_factor"] == 0.5


def test_the_starters_tokenizer_chats_as_glm_4s_does() -> None:
    loaded = ftcore.load("chatglm")
    tokenizer = loaded.tokenizer
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "[gMASK]<sop><|user|>\nhi<|assistant|>\nho<|user|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi")["input_ids"])[:2] == ["[gMASK]", "<sop>"]
    stops = ["<|endoftext|>", "<|user|>", "<|observation|>"]
    assert tokenizer.convert_ids_to_tokens(list(loaded.stop_ids)) == stops


def test_the_starters_head_tells_its_stops_from_tokens_that_no_text_held() -> None:
    loaded = ftcore.load("chatglm")
    head, unread = loaded.model.lm_head.weight, loaded.tokenizer.convert_tokens_to_ids("[MASK]")
    assert all(torch.cosine_similarity(head[stop], head[unread], dim=0) < 0.9 for stop in loaded.stop_ids)


@model_checks(ChatGLM())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
