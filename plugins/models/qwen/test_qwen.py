"""A Qwen checkpoint loads whole or not at all, never runs code of its own, and its parts name its modules."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from family_facts import answers_as_plain_transformers, loaded, numbers, outside_of_parts, planned
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_qwen import Qwen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KINDS = ["qwen2", "qwen3"]
TRAP = "from pathlib import Path\nPath({marker!r}).write_text('it ran')\n"


def copy(folder: Path, to: Path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(folder, to))


def changed(folder: Path, file: str, **values: Any) -> None:
    """The JSON of `file` with other values; None takes one out."""
    path = folder / file
    merged = {**json.loads(path.read_text(encoding="utf-8")), **values}
    kept = {key: value for key, value in merged.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(kind: str, tied: bool, checkpoint: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint(kind, tie_word_embeddings=tied)
    loaded, plain = ftcore.load("qwen", checkpoint=folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded.model) is type(plain)
    assert not loaded.model.training
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, plain.eval()(ids).logits, atol=1e-5)
    assert loaded.checkpoint == str(folder)
    assert (loaded.max_positions, loaded.vocab_size) == (256, plain.config.vocab_size)
    assert loaded.tokenizer.convert_ids_to_tokens(list(loaded.stop_ids)) == ["<|im_end|>"]
    assert loaded.unpackable == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_names_modules_and_every_layer_is_a_part(kind: str, checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint(kind))
    modules = dict(loaded.model.named_modules())
    roles = {
        "block", "attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down", "norm",
        "embedding", "head",
    }  # fmt: skip
    assert loaded.parts.keys() == roles
    assert all(name in modules for names in loaded.parts.values() for name in names)
    named = {name for role, names in loaded.parts.items() if role != "block" for name in names}
    weights = {name for name, module in modules.items() if module._parameters}
    assert named == weights
    assert [type(modules[name]) for name in loaded.parts["block"]] == [type(modules["model.layers.0"])] * 2
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    roles_of_linear = roles - {"block", "norm", "embedding"}
    assert {name for role in roles_of_linear for name in loaded.parts[role]} == linear


# Fields of published configs with experts, and how many numbers their weights hold.
EXPERTS: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen1.5-MoE-A2.7B": (
        {
            "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "vocab_size": 151936,
        },
        14_315_784_192,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
        },
        30_532_122_624,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_published_models_with_experts_have_as_many_numbers_as_their_weights(name: str, tmp_path: Path) -> None:
    fields, wanted = EXPERTS[name]
    assert numbers(planned(Qwen(), fields, tmp_path)) == wanted


@pytest.mark.parametrize(("kind", "has_mlp"), [("qwen2_moe", True), ("qwen3_moe", False)])
def test_a_model_with_experts_answers_as_plain_transformers_and_every_weight_is_in_a_part(
    kind: str, has_mlp: bool
) -> None:
    folder = tiny_checkpoint(kind, **Qwen.tiny[kind])
    answers_as_plain_transformers(Qwen(), folder)
    found = loaded(Qwen(), folder)
    assert outside_of_parts(found) == set()
    assert found.parts["experts"] == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
    assert has_mlp == ("mlp.up" in found.parts)


def test_random_weights_keep_config_and_tokenizer(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2")
    fresh, same = (ftcore.load("qwen", checkpoint=folder, weights="random") for _ in range(2))
    pretrained = ftcore.load("qwen", checkpoint=folder)
    assert fresh.model.config.hidden_size == pretrained.model.config.hidden_size
    weights = [loaded.model.model.layers[0].mlp.up_proj.weight for loaded in (fresh, same, pretrained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    wanted = r"do not fill the model: 1 missing tensors, the first is 'model\.layers\.1\.mlp\.up_proj\.weight'"
    with pytest.raises(ftcore.Refused, match=wanted):
        ftcore.load("qwen", checkpoint=folder)


def test_a_checkpoint_with_a_tensor_too_many_is_refused_by_name(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.2.stray": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 unexpected tensors, the first is 'model\.layers\.2\.stray'"):
        ftcore.load("qwen", checkpoint=folder)


def test_a_tensor_of_another_shape_is_refused_by_name(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.zeros(7)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.Refused, match=r"1 mismatched tensors, the first is 'model\.norm\.weight'"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_weights_that_cannot_be_read_are_refused(damage: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    file = folder / "model.safetensors"
    content = {"cut": file.read_bytes()[:-100], "empty": b"", "text": b"version https://git-lfs.github.com/spec/v1\n"}
    file.write_bytes(content[damage])
    with pytest.raises(ftcore.Refused, match=f"the weights in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


def test_a_checkpoint_of_another_family_is_refused_by_its_type(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match="'llama', and this family loads qwen, qwen2, qwen3, qwen2_moe, qwen3_moe"):
        ftcore.load("qwen", checkpoint=checkpoint("llama"))


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    for file in [*folder.glob("tokenizer*"), *folder.glob("*.jinja")]:
        file.unlink()
    with pytest.raises(ftcore.Refused, match=f"the tokenizer in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"'.*empty' has no config\.json; pass the directory that holds one"),
        ("bsae", r"'.*bsae' is no directory; did you mean '.*base'\?"),
        ("base/config.json", r"'.*config\.json' is no directory"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused(
    name: str, message: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    copy(checkpoint("qwen2"), tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.load("qwen", checkpoint=tmp_path / name)


def test_a_config_that_is_no_json_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(checkpoint("qwen2"), tmp_path / "base")
    (folder / "config.json").write_text("{model_type: qwen2")
    with pytest.raises(ftcore.Refused, match=f"the config.json in '{folder}' cannot be read"):
        ftcore.load("qwen", checkpoint=folder)


@pytest.mark.parametrize("kind", ["qwen2", "trap"])
def test_code_beside_a_checkpoint_never_runs(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, marker = copy(checkpoint("qwen2"), tmp_path / "base"), tmp_path / "marker"
    for module in ("modeling_trap", "configuration_trap", "tokenization_trap"):
        (folder / f"{module}.py").write_text(TRAP.format(marker=str(marker)))
    auto = {"AutoConfig": "configuration_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"}
    changed(folder, "config.json", model_type=kind, auto_map=auto)
    slow = {"AutoTokenizer": ["tokenization_trap.Trap", "tokenization_trap.Trap"]}
    changed(folder, "tokenizer_config.json", auto_map=slow)
    if kind == "qwen2":
        for tokenizer_class in ("PreTrainedTokenizerFast", "Trap"):
            changed(folder, "tokenizer_config.json", tokenizer_class=tokenizer_class)
            loaded = ftcore.load("qwen", checkpoint=folder)
            assert type(loaded.model).__module__.startswith("transformers.")
            assert not type(loaded.tokenizer).__module__.startswith("transformers_modules")
    else:
        with pytest.raises(ftcore.Refused, match=r"the config\.json in '.*' cannot be read"):
            ftcore.load("qwen", checkpoint=folder)
    assert not marker.exists()


class Pickled:
    """Unpickling it writes a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Called by pickle."""
        return (Path.touch, (self.marker,))


def test_pickles_that_would_run_code_run_none_and_are_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder, marker = copy(checkpoint("qwen2"), tmp_path / "base"), tmp_path / "marker"
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), "trap": Pickled(marker)}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ftcore.Refused, match=r"cannot be read: not readable is pytorch_model\.bin: "):
        ftcore.load("qwen", checkpoint=folder)
    assert not marker.exists()


def test_without_a_checkpoint_the_starter_is_used() -> None:
    starters = [folder for folder in [Qwen.starter] if folder is not None and (folder / "config.json").is_file()]
    for folder in starters:
        loaded = ftcore.load("qwen")
        assert loaded.checkpoint == str(folder)
        assert loaded.tokenizer.chat_template
        assert sum(parameter.numel() for parameter in loaded.model.parameters()) < 10_000_000


STARTER = Path(__file__).parent / "ftcore_qwen" / "starter"
OWN_STORY = (
    "Once upon a time there was a small cat named Tim. Tim liked to play in the garden. One day he saw a big red ball "
    "under a tree. He ran to it and pushed it with his nose. The ball rolled away, and Tim was happy."
)


def test_the_starter_has_read_stories() -> None:
    loaded = ftcore.load("qwen")
    begin = loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.tensor([[begin, *loaded.tokenizer(OWN_STORY, add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        loss = loaded.model(input_ids=ids, labels=ids).loss
    bits = float(loss) * (ids.shape[1] - 1) / torch.tensor(2.0).log() / len(OWN_STORY)
    assert float(bits) < 1.3


# The first Qwen


def first(model: Any) -> dict[str, Tensor]:
    """The tensors of a Qwen2 under the first Qwen's names: q, k and v in one, w2 the gate."""
    names = {
        "model.layers": "transformer.h", "model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f",
        "self_attn.o_proj": "attn.c_proj", "mlp.gate_proj": "mlp.w2", "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
    }  # fmt: skip
    state, tensors = dict(model.state_dict()), {"transformer.rotary_emb.inv_freq": torch.ones(4)}
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"model.layers.{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            tensors[f"transformer.h.{layer}.attn.c_attn.{kind}"] = torch.cat(parts)
    for name, tensor in state.items():
        new = name
        for native, original in names.items():
            new = new.replace(native, original)
        tensors[new] = tensor
    return tensors


NEW = {"hidden_size": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers",
       "inner": "intermediate_size", "vocabulary": "vocab_size"}  # fmt: skip
AUGUST = {"hidden_size": "n_embd", "heads": "n_head", "layers": "n_layer", "inner": "ffn_hidden_size",
          "vocabulary": "padded_vocab_size"}  # fmt: skip


@pytest.fixture(params=[NEW, AUGUST], ids=["new", "august"])
def made(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> tuple[Any, dict[str, Any]]:
    """A Qwen2, and the config.json of the first Qwen that it makes, in both spellings."""
    from transformers import AutoModelForCausalLM

    folder = checkpoint("qwen2", num_key_value_heads=4, rope_theta=5e4, rms_norm_eps=1e-6)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    spelled: dict[str, str] = request.param
    numbers = {"hidden_size": 32, "heads": 4, "layers": 2, "inner": 128, "vocabulary": model.config.vocab_size}
    config = {
        "model_type": "qwen", "seq_length": 64, "kv_channels": 8, "rotary_emb_base": 5e4, "layer_norm_epsilon": 1e-6,
        "no_bias": True, "rotary_pct": 1.0, "tie_word_embeddings": False, "use_logn_attn": True,
    }  # fmt: skip
    return model, {**config, **{spelled[name]: number for name, number in numbers.items()}}


def test_the_first_qwen_answers_as_the_qwen2_it_was_made_of(
    made: tuple[Any, dict[str, Any]], form: str, written: Callable[..., Path]
) -> None:
    model, config = made
    loaded = ftcore.load("qwen", checkpoint=written(config, first(model), form))
    ids = torch.arange(5, 65).reshape(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, model(ids).logits, atol=1e-6)
    assert loaded.max_positions == 64


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("transformer.h.1.mlp.w1.weight", None, r"the first is 'transformer\.h\.1\.mlp\.w1\.weight'"),
        ("transformer.h.1.attn.c_proj.bias", (32,), r"unexpected tensor 'transformer\.h\.1\.attn\.c_proj\.bias'"),
        ("transformer.h.0.attn.c_attn.weight", (64, 32), r"c_attn\.weight' is 64×32 and must be 96×32"),
    ],
)
def test_a_tensor_of_the_first_qwen_that_does_not_fit_is_refused_by_name(
    name: str,
    shape: tuple[int, ...] | None,
    said: str,
    made: tuple[Any, dict[str, Any]],
    written: Callable[..., Path],
) -> None:
    tensors = {key: tensor for key, tensor in first(made[0]).items() if key != name}
    tensors |= {} if shape is None else {name: torch.zeros(shape)}
    with pytest.raises(ftcore.Refused, match=said):
        ftcore.load("qwen", checkpoint=written(made[1], tensors))


def test_what_no_published_qwen_has_is_refused(made: tuple[Any, dict[str, Any]], written: Callable[..., Path]) -> None:
    for change in ({"no_bias": False}, {"rotary_pct": 0.5}, {"kv_channels": 16}):
        with pytest.raises(ftcore.Refused, match="that no published Qwen has"):
            ftcore.load("qwen", checkpoint=written({**made[1], **change}, first(made[0])))


def test_the_first_qwen_has_its_tokens_and_says_what_differs_past_its_length(
    made: tuple[Any, dict[str, Any]], written: Callable[..., Path]
) -> None:
    from ftcore.hooks import Run
    from ftcore.settings import Settings

    folder = written(made[1], first(made[0]))
    tokens = [bytes([byte]) for byte in range(256)] + [b"ca", b"cat", b" c", b" ca", b" cat"]
    ranks = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    (folder / "qwen.tiktoken").write_bytes(ranks)
    heard: list[str] = []
    run = Run(Settings(checkpoint=str(folder)), "train", "causal-lm", say=heard.append)
    loaded = Qwen().load_model(run, {})
    tokenizer: Any = loaded.tokenizer
    assert tokenizer("cat cat")["input_ids"] == [257, 260]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_204|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [261, 262, 263, 261 + 207]
    assert tokenizer("e\u0301")["input_ids"] == list("é".encode())
    said = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == said
    assert loaded.stop_ids == (261, 263, 262)
    assert [line for line in heard if "past 64 tokens" in line]


def test_published_checkpoints_answer_as_their_makers_code(
    published: Callable[..., list[Path]], as_published: Callable[[Any, Path], None]
) -> None:
    for folder in published("qwen1*"):
        loaded, wanted = ftcore.load("qwen", checkpoint=folder), load_file(folder / "expected.safetensors")
        as_published(loaded, folder)
        if "train_long_input_ids" in wanted:  # what training sees past the length
            with torch.no_grad():
                found = loaded.model(wanted["train_long_input_ids"]).logits[:, -24:]
            assert torch.allclose(found, wanted["train_long_logits"], atol=2e-5, rtol=0)


@model_checks(Qwen())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
