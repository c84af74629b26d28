"""A prefix stands before the keys and values of every layer, of any shape, and PEFT reads what is kept of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore import adapters
from ftcore.adapters import Injected
from ftcore.discovery import Hooks, bind, choose
from ftcore.hooks import Adapter, Loaded, Run
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore.testing.stage import tiny_config, tiny_model
from ftcore.training import Core
from ftcore_prefix import Prefix
from torch import Tensor, nn

N = 5


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return ftcore.load("qwen", checkpoint=checkpoint("qwen3", head_dim=12))


def bound(**options: Any) -> tuple[Hooks, Run]:
    head = options.pop("head", "causal-lm")
    given = {"num_virtual_tokens": N, "encoder_hidden_size": 16, **options}
    return bind([choose("method", "prefix", given)], Core()), Run(Settings(), "train", head)


def injected(loaded: Loaded, **options: Any) -> Injected:
    hooks, run = bound(**options)
    return adapters.inject(hooks, run, loaded, None, 10)


def made(model_type: str, head: str, **fields: Any) -> Loaded:
    """A tiny model with a head, as a family would load it."""
    model = tiny_model(tiny_config(model_type, **fields), head).eval()
    return Loaded(model, None, {}, "", 256, model.config.vocab_size)


def keys_and_values(model: nn.Module, layers: int, heads: int) -> Tensor:
    """What the MLP makes of the embeddings, by layer, key or value, head and virtual token."""
    own = {name.split(".default.")[1]: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    made = own["embedding.weight"]
    if "transform.0.weight" in own:
        hidden = torch.tanh(made @ own["transform.0.weight"].T + own["transform.0.bias"])
        made = hidden @ own["transform.2.weight"].T + own["transform.2.bias"]
    return made.reshape(N, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)


def before(prefix: Tensor, rows: int) -> Any:
    """A cache of transformers that holds the prefix."""
    from transformers import DynamicCache

    return DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in prefix])


def padded(*sizes: int, left: bool = False) -> dict[str, Tensor]:
    """Rows of tokens of these sizes with their mask."""
    width = max(sizes)
    ids = torch.randint(5, 300, (len(sizes), width), generator=torch.Generator().manual_seed(len(sizes)))
    places = torch.arange(width).flip(0) if left else torch.arange(width)
    mask = (places < torch.tensor(sizes)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def answers(model: nn.Module, asked: Mapping[str, Tensor]) -> Tensor:
    """Logits, or where an answer starts and where it ends."""
    with torch.no_grad():
        output = model.eval()(**asked)
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def written(adapter: Adapter, folder: Path) -> Path:
    """A directory that PEFT reads the adapter from."""
    from safetensors.torch import save_file

    save_file(dict(adapter.tensors), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config, default=str))
    return folder


@pytest.mark.parametrize("projection", [True, False])
def test_the_logits_are_those_of_the_model_after_the_keys_and_values(projection: bool, loaded: Loaded) -> None:
    plain = copy.deepcopy(loaded.model)
    model = injected(loaded, projection=projection).model.eval()
    prefix = keys_and_values(model, layers=2, heads=2)
    asked, keep = padded(9, 4), torch.tensor([0, 3, 8])
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), asked["attention_mask"]], 1)
    places = torch.arange(N, N + 9)[None]
    with torch.no_grad():
        wanted = plain(
            input_ids=asked["input_ids"], attention_mask=mask, position_ids=places, past_key_values=before(prefix, 2)
        ).logits
        for cached in ({}, {"use_cache": False}, {"use_cache": True}, {"position_ids": torch.arange(9)[None]}):
            assert torch.allclose(model(**asked, **cached).logits, wanted, atol=1e-5)
        assert torch.allclose(model(**asked, logits_to_keep=keep).logits, wanted[:, keep], atol=1e-5)
        assert float((plain(**asked).logits - wanted).abs().max()) > 0.1


def test_every_head_of_every_layer_attends_to_its_own_prefix() -> None:
    """softmax(q [P_k; K]^T / sqrt(d)) [P_v; V], written out for the attention of BERT."""
    loaded = made("bert", "masked-lm", num_hidden_layers=1, tie_word_embeddings=True)
    model = injected(loaded, head="masked-lm", projection=False).model.eval()
    prefix = keys_and_values(model, layers=1, heads=4)[0]
    attention = loaded.model.bert.encoder.layer[0].attention.self
    seen: dict[str, Any] = {}
    attention.register_forward_pre_hook(lambda module, args: seen.update(given=args[0]))
    attention.register_forward_hook(lambda module, args, output: seen.update(answer=output[0]))
    answers(model, padded(7))
    given = seen["given"]
    q, k, v = (
        (given @ part.weight.T + part.bias).reshape(1, 7, 4, 8).transpose(1, 2)
        for part in (attention.query, attention.key, attention.value)
    )
    k, v = torch.cat([prefix[0][None], k], 2), torch.cat([prefix[1][None], v], 2)
    wanted = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
    assert torch.allclose(seen["answer"], wanted.transpose(1, 2).reshape(1, 7, 32), atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "fields", "layers", "width"),
    [
        ("qwen3", {"head_dim": 12}, 2, 2 * 12),
        ("phi3", {"num_key_value_heads": 1}, 2, 8),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}, 2, 32),
        ("gpt2", {}, 2, 32),
        ("bloom", {}, 2, 32),
    ],
)
def test_as_many_numbers_train_as_keys_and_values_have(
    model_type: str, fields: dict[str, Any], layers: int, width: int
) -> None:
    found = injected(made(model_type, "causal-lm", **fields), projection=False)
    assert found.trainable == N * 2 * layers * width
    found = injected(made(model_type, "causal-lm", **fields), encoder_hidden_size=7)
    assert found.trainable == N * width + (width + 1) * 7 + (7 + 1) * 2 * layers * width


@pytest.mark.parametrize("projection", [True, False])
def test_peft_alone_with_the_same_seed_gives_the_same(projection: bool, loaded: Loaded) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    base = copy.deepcopy(loaded.model)
    model = injected(loaded, projection=projection).model.eval()
    with seeded(Settings().seed, "inject", "prefix"):
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=projection, encoder_hidden_size=16
        )
        theirs = get_peft_model(base, config).eval()
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert mine.keys() == {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, theirs.get_parameter(name)) for name, p in mine.items())
    assert torch.allclose(answers(model, padded(6, 3)), answers(theirs, padded(6, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("llama", "causal-lm"), ("qwen3", "sequence-classification"), ("t5", "seq2seq-lm"), ("bart", "seq2seq-lm"),
        ("bert", "masked-lm"), ("bert", "sequence-classification"), ("roberta", "token-classification"),
        ("bert", "question-answering"),
    ],
)  # fmt: skip
def test_what_is_saved_gives_the_same_in_peft_and_when_loaded_again(model_type: str, head: str, tmp_path: Path) -> None:
    from peft import PeftModel

    loaded = made(model_type, head, **SHAPES.get(model_type, {}))
    bases = [copy.deepcopy(loaded.model) for _ in range(2)]
    hooks, run = bound(head=head)
    found = adapters.inject(hooks, run, loaded, None, 10)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter += parameter.requires_grad * torch.randn_like(parameter)
    adapter = adapters.saved(hooks, run, found)
    asked = padded(6, 3)
    if head == "seq2seq-lm":
        asked["decoder_input_ids"] = asked["input_ids"][:, :4]
    again = adapters.inject(hooks, replace(run, intent="infer"), replace(loaded, model=bases[0]), None, 10)
    adapters.restore(hooks, run, again, adapter)
    theirs = PeftModel.from_pretrained(bases[1], written(adapter, tmp_path))
    wanted = answers(found.model, asked)
    for other in (again.model, theirs):
        assert torch.allclose(answers(other, asked), wanted, atol=1e-5)


# The stage writes num_key_value_heads and head_dim into every config, also where it means nothing but to PEFT.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "bert": {"num_key_value_heads": 4},
    "roberta": {"num_key_value_heads": 4},
    "t5": {
        "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 4,
        "head_dim": 16, "dropout_rate": 0.0, "decoder_start_token_id": 0,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 4, "dropout": 0.0,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def test_in_an_encoder_decoder_each_layer_of_the_decoder_has_its_own_prefix() -> None:
    from transformers import DynamicCache, EncoderDecoderCache

    loaded = made("bart", "seq2seq-lm", **SHAPES["bart"])
    plain = copy.deepcopy(loaded.model)
    model: Any = injected(loaded, head="seq2seq-lm").model.eval()
    prefix = keys_and_values(model, layers=3, heads=4)
    asked, decoded = padded(6, 3), torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(5):
            pair = EncoderDecoderCache(before(prefix, 2), DynamicCache())
            wanted = plain(**asked, decoder_input_ids=decoded, past_key_values=pair).logits
            for cached in ({}, {"use_cache": False}):
                assert torch.allclose(model(**asked, decoder_input_ids=decoded, **cached).logits, wanted, atol=1e-5)
            decoded = torch.cat([decoded, wanted[:, -1:].argmax(-1)], 1)
        said = model.generate(
            **asked, max_new_tokens=5, do_sample=False, eos_token_id=None, decoder_start_token_id=0, bos_token_id=None,
            forced_bos_token_id=None, forced_eos_token_id=None,
        )  # fmt: skip
    assert torch.equal(said, decoded)


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_generated_together_are_those_of_a_loop_of_forward_passes(use_cache: bool, loaded: Loaded) -> None:
    model: Any = injected(loaded).model.eval()
    asked = padded(7, 3, 5, left=True)
    with torch.no_grad():
        said = model.generate(
            **asked, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
        )
        for row, size in enumerate((7, 3, 5)):
            ids = asked["input_ids"][row : row + 1, -size:]
            for _ in range(6):
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            assert torch.equal(said[row, -6:], ids[0, -6:])


@pytest.mark.parametrize(("model_type", "head"), [("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("bert", "masked-lm")])
def test_the_gradient_is_the_same_when_activations_are_computed_twice(model_type: str, head: str) -> None:
    slopes = []
    for twice in (False, True):
        loaded = made(model_type, head, **SHAPES.get(model_type, {}))
        loaded.model.set_attn_implementation("eager")
        if twice:
            loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        with seeded(3, "prefix"):
            model = injected(loaded, head=head).model.train()
            for module in (part for part in model.modules() if isinstance(part, nn.Dropout)):
                module.p = 0.0
        asked = padded(6, 3) | ({"decoder_input_ids": torch.ones(2, 4).long()} if head == "seq2seq-lm" else {})
        model(**asked, use_cache=False).logits.square().sum().backward()
        slopes.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-3) for one, two in zip(*slopes, strict=True))


def test_a_model_that_drops_the_prefix_is_refused_before_training() -> None:
    loaded = made("gpt2", "causal-lm")
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ftcore.Refused, match="GPT2LMHeadModel drops a prefix under gradient checkpointing; turn that"):
        injected(loaded)
    for kind, head in (("mamba", "causal-lm"), ("distilbert", "masked-lm")):
        with pytest.raises(ftcore.Refused, match="hands not all its layers the keys and values that a prefix is"):
            injected(made(kind, head), head=head)
    with pytest.raises(ftcore.Refused, match="need a model of transformers, and Sequential is none"):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method="prefix")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_virtual_tokens": 0}, r"option 'num_virtual_tokens' is 0"),
        ({"projection": "perhaps"}, r"option 'projection' is 'perhaps'"),
        ({"encoder_hidden_size": 0}, r"option 'encoder_hidden_size' is 0"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], message: str, loaded: Loaded) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected(loaded, **options)


@method_checks(Prefix())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
