"""Checkpoints in InternLM's own form answer as their makers' code does, whole or not at all, and run nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import difference
from ftcore.cli import cli
from ftcore.testing import model_checks
from ftcore_internlm import InternLM
from torch import Tensor

HEADS, SHARED_BY, WIDTH = 4, 2, 8  # heads, heads to a key, numbers in a head


def plain(**changes: Any) -> Any:
    """A random Llama with biases in attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS // SHARED_BY, "head_dim": WIDTH,
        "max_position_embeddings": 64, "attention_bias": True, "pad_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def fields(model: Any, model_type: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a model in the spelling of InternLM."""
    config = model.config
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "pad_token_id",
    )  # fmt: skip
    said = {name: getattr(config, name) for name in same}
    return {**said, "model_type": model_type, "bias": True, "tie_word_embeddings": False, "eos_token_id": 2, **changes}


def second(model: Any) -> dict[str, Tensor]:
    """The tensors of a Llama under InternLM2's names: for each key its queries, the key and the value."""
    names = {
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "post_attention_layernorm": "ffn_norm", "lm_head": "output",
        "input_layernorm": "attention_norm", "model.embed_tokens": "model.tok_embeddings",
    }  # fmt: skip
    state = dict(model.state_dict())
    tensors = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            q, k, v = (state.pop(f"model.layers.{layer}.self_attn.{n}_proj.{kind}") for n in "qkv")
            runs = [
                part[key * rows : (key + 1) * rows]
                for key in range(HEADS // SHARED_BY)
                for part, rows in ((q, SHARED_BY * WIDTH), (k, WIDTH), (v, WIDTH))
            ]
            tensors[f"model.layers.{layer}.attention.wqkv.{kind}"] = torch.cat(runs)
        tensors[f"model.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    for name, tensor in state.items():
        new = name
        for native, original in names.items():
            new = new.replace(native, original)
        tensors[new] = tensor
    return tensors


def test_a_checkpoint_of_the_second_generation_answers_as_the_llama_it_was_made_of(
    form: str, written: Callable[..., Path]
) -> None:
    model = plain()
    loaded = ftcore.load("internlm", checkpoint=written(fields(model, "internlm2"), second(model), form))
    assert type(loaded.model) is type(model)
    assert difference(loaded.model, model) < 1e-6
    assert (loaded.max_positions, loaded.vocab_size, loaded.unpackable) == (64, 300, "")


@pytest.mark.parametrize(
    ("spelled", "rope"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
        ),
        (
            {"rotary": {"base": 5e5, "type": "dynamic", "scaling_factor": 1.5}},
            {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 1.5},
        ),
    ],
)
def test_positions_are_read_in_every_spelling(
    spelled: dict[str, Any], rope: dict[str, Any], written: Callable[..., Path]
) -> None:
    model = plain(rope_parameters=rope, max_position_embeddings=16, num_key_value_heads=HEADS)
    folder = written(fields(model, "internlm", **spelled), dict(model.state_dict()))
    assert difference(ftcore.load("internlm", checkpoint=folder).model, model) < 1e-6


@pytest.mark.parametrize("of_attention", [True, False])
def test_biases_that_the_third_generation_has_apart_are_zero_where_it_has_none(
    of_attention: bool, written: Callable[..., Path]
) -> None:
    model = plain(mlp_bias=not of_attention)
    state, without = dict(model.state_dict()), ("o",) if of_attention else tuple("qkv")
    lacking = [f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in range(2) for name in without]
    with torch.no_grad():
        for name in lacking:
            state.pop(name).zero_()
    folder = written(fields(model, "internlm3", bias=not of_attention, qkv_bias=of_attention), state)
    assert difference(ftcore.load("internlm", checkpoint=folder).model, model) < 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output.weight": None}, r"1 missing tensors, the first is 'output\.weight'"),
        (
            {"model.layers.1.attention.wqkv.bias": None},
            r"3 missing tensors, the first is 'model\.layers\.1\.attention\.wqkv\.bias'",
        ),
        ({"model.layers.2.ffn_norm.weight": (32,)}, r"unexpected tensor 'model\.layers\.2\.ffn_norm\.weight'"),
        ({"v_head.weight": (1, 32)}, r"unexpected tensor 'v_head\.weight'"),
        ({"model.norm.weight": (31,)}, r"the tensor 'model\.norm\.weight' is 31 and must be 32"),
        (
            {"model.layers.0.attention.wqkv.weight": (65, 32)},
            r"the tensor 'model\.layers\.0\.attention\.wqkv\.weight' is 65×32 and must be 64×32",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    change: dict[str, Any], said: str, written: Callable[..., Path]
) -> None:
    model = plain()
    tensors = second(model)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.zeros(shape)
    with pytest.raises(ftcore.Refused, match=said):
        ftcore.load("internlm", checkpoint=written(fields(model, "internlm2"), tensors))


def test_a_lost_shard_and_no_weights_at_all_are_refused(written: Callable[..., Path]) -> None:
    model = plain()
    for form, gone in (("model.safetensors.index.json", "*2-of-*"), ("pytorch_model.bin.index.json", "*2-of-*")):
        folder = written(fields(model, "internlm2"), second(model), form)
        next(folder.glob(gone)).unlink()
        with pytest.raises(ftcore.Refused, match=f"the weights in '{folder}' cannot be read: .*00002-of-00002"):
            ftcore.load("internlm", checkpoint=folder)
    folder = written(fields(model, "internlm2"), second(model))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ftcore.Refused, match=r"there is neither model\.safetensors nor pytorch_model\.bin"):
        ftcore.load("internlm", checkpoint=folder)


@pytest.fixture
def original(written: Callable[..., Path], pieces: Callable[..., bytes]) -> tuple[Path, Any]:
    """A whole checkpoint of the second generation, and the Llama that it was made of."""
    model = plain(vocab_size=320)
    folder = written(fields(model, "internlm2"), second(model), "pytorch_model.bin.index.json")
    unused = tuple(f"[UNUSED_TOKEN_{number}]" for number in range(141, 147))
    (folder / "tokenizer.model").write_bytes(pieces(("▁cat", "rain", "user", "assistant"), user=unused))
    return folder, model


def test_its_tokenizer_chats_as_its_makers_say(original: tuple[Path, Any]) -> None:
    loaded = ftcore.load("internlm", checkpoint=original[0])
    tokenizer: Any = loaded.tokenizer
    talk = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "rain"}]
    text = "<s><|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\nrain<|im_end|>\n"
    assert tokenizer.apply_chat_template(talk, tokenize=False) == text
    assert tokenizer.tokenize("a cat") == ["a", "▁cat"]  # no blank before the first word
    assert tokenizer("rain")["input_ids"][0] == 1
    assert tokenizer.convert_ids_to_tokens(list(loaded.stop_ids)) == ["</s>", "<|im_end|>"]


def test_a_plan_reads_no_weights(original: tuple[Path, Any], rows: Path) -> None:
    for file in original[0].glob("*.bin"):
        file.unlink()
    plan = ftcore.plan(method="lora", task="causal", model="internlm", checkpoint=str(original[0]), data=str(rows))
    assert not plan.refused
    assert "model.layers.1.self_attn.q_proj" in plan.matched_modules


def test_converted_it_is_a_plain_checkpoint_that_transformers_loads(original: tuple[Path, Any], tmp_path: Path) -> None:
    from click.testing import CliRunner
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = original
    command = ["convert", str(folder), "--model", "internlm", "--output", str(tmp_path / "plain")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(reloaded) is type(model)
    assert difference(reloaded.eval(), model) < 1e-6
    tokenizer, own = AutoTokenizer.from_pretrained(tmp_path / "plain"), ftcore.load("internlm", checkpoint=folder)
    assert tokenizer("the cat<|im_end|>")["input_ids"] == own.tokenizer("the cat<|im_end|>")["input_ids"]
    assert reloaded.generation_config.eos_token_id == list(own.stop_ids)
    with pytest.raises(ftcore.Refused, match="exists already"):
        ftcore.convert(folder, model="internlm", output=tmp_path / "plain")
    with pytest.raises(ftcore.Refused, match="is a plain one already"):
        ftcore.convert(tmp_path / "plain", model="internlm", output=tmp_path / "again")


def test_conversion_that_fails_leaves_nothing_behind(written: Callable[..., Path], tmp_path: Path) -> None:
    model = plain()
    tensors = second(model)
    del tensors["output.weight"]
    with pytest.raises(ftcore.Refused, match="missing"):
        ftcore.convert(
            written(fields(model, "internlm2"), tensors), model="internlm", output=tmp_path / "out" / "plain"
        )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_keeps_the_precision(dtype: torch.dtype, written: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = plain().to(dtype)
    ftcore.convert(written(fields(model, "internlm2"), second(model)), model="internlm", output=tmp_path / "plain")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert reloaded.dtype == dtype
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in reloaded.state_dict().items())


def test_a_run_merges_into_a_plain_checkpoint_in_memory_and_by_blocks(
    original: tuple[Path, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": "a cat", "output": f"r{i}"}) + "\n" for i in range(8)))
    run = ftcore.run(
        method="lora", task="causal", model="internlm", checkpoint=original[0], data=data, steps=3, lr=1e-2,
        output=tmp_path / "run",
    ).output  # fmt: skip
    adapted = ftcore.attach(run).model
    for stream in (False, True):
        merged = ftcore.merge(run, output=tmp_path / f"merged-{stream}", stream=stream)
        reloaded = AutoModelForCausalLM.from_pretrained(merged).eval()
        assert type(reloaded) is type(original[1])
        assert difference(reloaded, adapted) < 1e-4
        assert difference(reloaded, original[1]) > 1e-3
    changed = original[0] / "tokenizer.model"
    changed.write_bytes(changed.read_bytes() + b"\x22\x00")
    with pytest.raises(ftcore.Refused, match="are not those that"):
        ftcore.attach(run)


def test_random_weights_keep_the_shape(original: tuple[Path, Any]) -> None:
    fresh = ftcore.load("internlm", checkpoint=original[0], weights="random").model
    assert fresh.config.hidden_size == 32
    assert difference(fresh, original[1]) > 1e-2


def test_quantised_and_foreign_checkpoints_are_refused(written: Callable[..., Path]) -> None:
    model = plain()
    quantised = fields(model, "internlm2", quantization_config={"quant_method": "gptq"})
    with pytest.raises(ftcore.Refused, match="is quantised by gptq; use the unquantised one"):
        ftcore.load("internlm", checkpoint=written(quantised, second(model)))
    with pytest.raises(
        ftcore.Refused, match="of type 'baichuan', and this family loads internlm, internlm2, internlm3"
    ):
        ftcore.load("internlm", checkpoint=written(fields(model, "baichuan"), second(model)))
    silent = fields(model, "internlm2", num_attention_heads=None)
    with pytest.raises(
        ftcore.Refused, match=r"the config\.json in '.*' cannot be read: it lacks 'num_attention_heads'"
    ):
        ftcore.load("internlm", checkpoint=written(silent, second(model)))
    odd = {**fields(model, "internlm2"), "rope_scaling": {"type": "yarn", "factor": 2.0}}
    with pytest.raises(ftcore.Refused, match="scales positions by 'yarn'"):
        ftcore.load("internlm", checkpoint=written(odd, second(model)))


def test_published_checkpoints_answer_as_their_makers_code(
    published: Callable[..., list[Path]], as_published: Callable[[Any, Path], None]
) -> None:
    for folder in published("internlm*"):
        as_published(ftcore.load("internlm", checkpoint=folder), folder)


# The starter


def test_the_starter_has_the_shape_of_the_second_generation() -> None:
    config = ftcore.load("internlm").model.config
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert [config.attention_bias, config.mlp_bias, config.tie_word_embeddings] == [False] * 3
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


def test_the_starters_tokenizer_spells_as_its_makers_does() -> None:
    tokenizer = ftcore.load("internlm").tokenizer
    assert tokenizer.tokenize("Once upon") == ["Once", "▁upon"]  # no blank before the first word
    assert tokenizer.tokenize("龘") == ["<0xE9>", "<0xBE>", "<0x98>"]
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id == 1
    text = "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    said = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) == text
    stops = ftcore.load("internlm").stop_ids
    assert tokenizer.convert_ids_to_tokens(list(stops)) == ["</s>", "<|im_end|>"]


def test_the_starters_head_tells_its_stops_from_tokens_that_no_text_held() -> None:
    loaded = ftcore.load("internlm")
    head, unread = loaded.model.lm_head.weight, loaded.tokenizer.unk_token_id
    assert all(torch.cosine_similarity(head[stop], head[unread], dim=0) < 0.9 for stop in loaded.stop_ids)


@model_checks(InternLM())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
