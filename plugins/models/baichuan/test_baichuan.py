"""Checkpoints in Baichuan's own form answer as their makers' code does, whole or not at all, and run nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from click.testing import CliRunner
from family_facts import IDS, difference
from ftcore.cli import cli
from ftcore.testing import model_checks
from ftcore_baichuan import Baichuan
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize


def plain(heads: int = 4, *, alibi: bool = False) -> Any:
    """A random Llama, with rotary positions or with biases."""
    from ftcore_baichuan.alibi import AlibiLlamaConfig, AlibiLlamaForCausalLM, register
    from transformers import LlamaConfig, LlamaForCausalLM

    register()
    shape: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 8 * heads, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": heads, "max_position_embeddings": 64, "pad_token_id": 0, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = (AlibiLlamaConfig if alibi else LlamaConfig)(**shape)
        model = (AlibiLlamaForCausalLM if alibi else LlamaForCausalLM)(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def fields(model: Any, *, alibi: bool = False, **changes: Any) -> dict[str, Any]:
    """The config.json of a model in the spelling of Baichuan."""
    config = model.config
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
        "pad_token_id", "hidden_act",
    )  # fmt: skip
    positions = {"model_max_length": 64} if alibi else {"max_position_embeddings": 64}
    said = {name: getattr(config, name) for name in same}
    return {**said, **positions, "model_type": "baichuan", "tie_word_embeddings": False, "eos_token_id": 2, **changes}


def original(model: Any) -> dict[str, Tensor]:
    """The tensors of a Llama under Baichuan's names: q, k and v in one."""
    state = dict(model.state_dict())
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        state[f"{attention}.W_pack.weight"] = torch.cat([state.pop(f"{attention}.{n}_proj.weight") for n in "qkv"])
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(4)
    return state


def test_a_checkpoint_answers_as_the_llama_it_was_made_of(form: str, written: Callable[..., Path]) -> None:
    model = plain()
    folder = written(fields(model, architectures=["BaiChuanForCausalLM"]), original(model), form)
    loaded = ftcore.load("baichuan", checkpoint=folder)
    assert type(loaded.model) is type(model)
    assert difference(loaded.model, model) < 1e-6


@pytest.mark.parametrize("alibi", [False, True])
def test_the_second_generations_head_is_made_of_rows_of_length_one(alibi: bool, written: Callable[..., Path]) -> None:
    model = plain(alibi=alibi)
    folder = written(fields(model, alibi=alibi), original(model))
    variant = "baichuan2-13b" if alibi else "auto"
    loaded = ftcore.load("baichuan", checkpoint=folder, variant=variant)
    model.lm_head.weight.data = normalize(model.lm_head.weight.data)
    assert difference(loaded.model, model) < 1e-6


def test_which_of_the_four_it_is_follows_from_the_config_or_is_said() -> None:
    seven, thirteen = {"max_position_embeddings": 64}, {"model_max_length": 64}
    expected = [
        ({**seven, "architectures": ["BaiChuanForCausalLM"], "vocab_size": 64000}, "auto", "baichuan-7b"),
        ({**seven, "architectures": ["BaichuanForCausalLM"], "vocab_size": 125696}, "auto", "baichuan2-7b"),
        ({**thirteen, "vocab_size": 64000}, "auto", "baichuan-13b"),
        ({**thirteen, "vocab_size": 125696}, "auto", "baichuan2-13b"),
        ({**thirteen, "vocab_size": 450}, "baichuan2-13b", "baichuan2-13b"),
    ]
    for said, variant, wanted in expected:
        from ftcore_baichuan import MEMBERS

        assert Baichuan(variant=variant).original({"model_type": "baichuan", **said}) is MEMBERS[wanted]
    assert Baichuan().original({"model_type": "llama"}) is None


def test_a_13b_that_could_be_of_either_generation_is_said_to_be_taken_for_the_first() -> None:
    from ftcore_baichuan import MEMBERS

    thirteen = MEMBERS["baichuan-13b"]
    assert thirteen.note({"vocab_size": 64000}) == ""
    assert "read as Baichuan-13B; else pass --baichuan.variant baichuan2-13b" in thirteen.note({"vocab_size": 450})


@pytest.mark.parametrize("heads", [4, 6, 40])
def test_slopes_are_those_of_the_paper(heads: int) -> None:
    from ftcore_baichuan.alibi import slopes

    found = slopes(heads).tolist()
    whole = 2 ** int(math.log2(heads))
    assert found[:whole] == pytest.approx([2 ** (-8 * (head + 1) / whole) for head in range(whole)])
    if heads > whole:  # the rest: every second slope of twice as many heads
        finer = [2 ** (-8 * (head + 1) / (2 * whole)) for head in range(2 * whole)]
        assert found[whole:] == pytest.approx(finer[::2][: heads - whole])


@pytest.mark.parametrize("heads", [4, 6])
def test_attention_with_biases_is_what_the_formula_says(heads: int) -> None:
    from ftcore_baichuan.alibi import alibi_attention, slopes

    query, key, value = torch.randn(3, 2, heads, 9, 8, generator=torch.Generator().manual_seed(0))
    place = torch.arange(9)
    scores = query @ key.transpose(-1, -2) / 8**0.5 - slopes(heads)[:, None, None] * (place[:, None] - place)
    wanted = scores.masked_fill(place > place[:, None], -torch.inf).softmax(-1) @ value
    found, _ = alibi_attention(torch.nn.Module(), query, key, value, None, scaling=8**-0.5)
    assert torch.allclose(found.transpose(1, 2), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.1.self_attn.W_pack.weight", None, r"the first is 'model\.layers\.1\.self_attn\.W_pack\.weight'"),
        ("model.layers.2.mlp.up_proj.weight", (48, 32), r"unexpected tensor 'model\.layers\.2\.mlp\.up_proj\.weight'"),
        ("lm_head.weight", (319, 32), r"the tensor 'lm_head\.weight' is 319×32 and must be 320×32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    name: str, shape: tuple[int, ...] | None, said: str, written: Callable[..., Path]
) -> None:
    model = plain()
    tensors = {key: tensor for key, tensor in original(model).items() if key != name}
    tensors |= {} if shape is None else {name: torch.zeros(shape)}
    with pytest.raises(ftcore.Refused, match=said):
        ftcore.load("baichuan", checkpoint=written(fields(model), tensors))


def test_its_tokenizer_chats_as_its_makers_say(written: Callable[..., Path], pieces: Callable[..., bytes]) -> None:
    model = plain(alibi=True)
    folder = written(fields(model, alibi=True), original(model))
    reserved = tuple(f"<reserved_{number}>" for number in range(100, 106))
    (folder / "tokenizer.model").write_bytes(pieces(("▁cat", "rain"), user=reserved))
    loaded = ftcore.load("baichuan", checkpoint=folder)
    tokenizer: Any = loaded.tokenizer
    talk = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "rain"}]
    said = tokenizer.apply_chat_template(talk, tokenize=False)
    assert said == "<reserved_102>a cat<reserved_103>rain</s>"
    assert tokenizer.tokenize("a cat") == ["a", "▁cat"]
    assert tokenizer.convert_ids_to_tokens(list(loaded.stop_ids)) == ["</s>", "<reserved_102>"]


@pytest.mark.parametrize("alibi", [False, True])
def test_converted_it_loads_again_and_answers_the_same(
    alibi: bool, written: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = plain(alibi=alibi)
    spelled = {} if alibi else {"architectures": ["BaiChuanForCausalLM"]}
    folder = written(fields(model, alibi=alibi, **spelled), original(model))
    done = CliRunner().invoke(cli, ["convert", str(folder), "--output", str(tmp_path / "plain")])
    assert ("no class for its type 'alibi_llama'" if alibi else "with transformers' from_pretrained") in done.output
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert type(reloaded) is type(model)
    assert difference(reloaded, model) < 1e-6


@pytest.fixture
def second(written: Callable[..., Path], pieces: Callable[..., bytes]) -> tuple[Path, Tensor]:
    """A Baichuan2 with rows of many lengths in its head, and that head."""
    model = plain()
    model.lm_head.weight.data *= torch.linspace(0.5, 3, 320)[:, None]
    folder = written(fields(model), original(model))
    reserved = tuple(f"<reserved_{number}>" for number in range(100, 108))
    (folder / "tokenizer.model").write_bytes(pieces(("▁cat", "rain"), user=reserved))
    return folder, model.lm_head.weight.detach().clone()


def test_a_head_that_divides_has_the_gradient_of_one(second: tuple[Path, Tensor]) -> None:
    """d loss / d W through logits = h normalize(W)^T, with W as it is stored."""
    folder, weight = second
    model = ftcore.load("baichuan", checkpoint=folder).model
    hidden = model.model(IDS).last_hidden_state.detach()
    weight.requires_grad_()
    wanted = torch.autograd.grad((hidden @ (weight / weight.norm(dim=1, keepdim=True)).T).logsumexp(-1).sum(), weight)[
        0
    ]
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    model(IDS).logits.logsumexp(-1).sum().backward()
    assert torch.allclose(model.lm_head.weight.grad, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_head_that_was_trained_or_not_is_plain_once_merged(
    method: str, stream: bool, second: tuple[Path, Tensor], tmp_path: Path, rows: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    run = ftcore.run(
        method=method, task="causal", model="baichuan", checkpoint=second[0], data=rows, steps=3, lr=1e-2,
        output=tmp_path / "run",
    ).output  # fmt: skip
    ftcore.merge(run, output=tmp_path / "merged", stream=stream)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert type(merged) is LlamaForCausalLM
    assert torch.allclose(merged.lm_head.weight.norm(dim=1), torch.ones(320), atol=1e-5)
    assert difference(merged, ftcore.attach(run).model) < 1e-4


def test_nothing_is_added_to_a_head_that_divides(second: tuple[Path, Tensor], tmp_path: Path, rows: Path) -> None:
    with pytest.raises(ftcore.Refused, match="no update can be added to it; train it whole or leave it out"):
        ftcore.run(
            method="lora", task="causal", model="baichuan", checkpoint=second[0], data=rows, steps=1,
            lora={"target_modules": ["lm_head"]}, output=tmp_path / "run",
        )  # fmt: skip


def test_published_checkpoints_answer_as_their_makers_code(
    published: Callable[..., list[Path]], as_published: Callable[[Any, Path], None]
) -> None:
    for folder in published("baichuan*"):
        variant = "baichuan2-13b" if folder.name.startswith("baichuan2-13b") else "auto"
        loaded = ftcore.load("baichuan", checkpoint=folder, variant=variant)
        as_published(loaded, folder)
        wanted = load_file(folder / "expected.safetensors")
        if "train_head_grad_rows" in wanted:
            loaded.model.zero_grad()
            loaded.model.train()(wanted["input_ids"], labels=wanted["labels"]).loss.backward()
            found = loaded.model.lm_head.weight.grad[:8]
            assert torch.allclose(found, wanted["train_head_grad_rows"], rtol=1e-4, atol=1e-6)


@model_checks(Baichuan())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
