"""A prefix stands before the keys and values of every layer, of any shape, and PEFT reads what is kept of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
import trials
from ftcore.hooks import Loaded
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore_prefix import Prefix
from ftcore_prompt.virtual_tokens import heads_by_layer
from torch import Tensor, nn
from trials import (
    answers,
    check_parameters_are_theirs,
    check_rows_generated_together,
    padded,
    said_by_all,
    tiny,
    trainable,
)

N = 5
OPTIONS = {"num_virtual_tokens": N, "encoder_hidden_size": 16}
injected = partial(trials.injected, "prefix", **OPTIONS)


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return ftcore.load("qwen", checkpoint=checkpoint("qwen3", head_dim=12))


def keys_and_values(model: nn.Module, layers: int, heads: int) -> Tensor:
    """What the MLP makes of the embeddings, by layer, key or value, head and virtual token."""
    own = {name.split(".default.")[1]: p.detach() for name, p in trainable(model).items()}
    made = own["embedding.weight"]
    if "transform.0.weight" in own:
        hidden = torch.tanh(made @ own["transform.0.weight"].T + own["transform.0.bias"])
        made = hidden @ own["transform.2.weight"].T + own["transform.2.bias"]
    return made.reshape(N, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)


def before(prefix: Tensor, rows: int) -> Any:
    """A cache of transformers that holds the prefix."""
    from transformers import DynamicCache

    return DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in prefix])


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
    loaded = tiny("bert", "masked-lm", num_hidden_layers=1, tie_word_embeddings=True)
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
    found = injected(tiny(model_type, "causal-lm", **fields), projection=False)
    assert found.trainable == N * 2 * layers * width
    found = injected(tiny(model_type, "causal-lm", **fields), encoder_hidden_size=7)
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
    check_parameters_are_theirs(model, theirs)
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
    loaded = tiny(model_type, head, **SHAPES.get(model_type, {}))
    wanted, *others = said_by_all("prefix", loaded, tmp_path, head=head, **OPTIONS)
    assert all(torch.allclose(other, wanted, atol=1e-5) for other in others)


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


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_an_encoder_decoder_needs_no_weights_for_its_layers_to_be_seen(model_type: str) -> None:
    model = tiny(model_type, "seq2seq-lm", **SHAPES[model_type]).model
    assert heads_by_layer(copy.deepcopy(model).to("meta")) == heads_by_layer(model) != []


def test_in_an_encoder_decoder_each_layer_of_the_decoder_has_its_own_prefix() -> None:
    from transformers import DynamicCache, EncoderDecoderCache

    loaded = tiny("bart", "seq2seq-lm", **SHAPES["bart"])
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
    check_rows_generated_together(injected(loaded).model.eval(), use_cache=use_cache)


@pytest.mark.parametrize(("model_type", "head"), [("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("bert", "masked-lm")])
def test_the_gradient_is_the_same_when_activations_are_computed_twice(model_type: str, head: str) -> None:
    slopes = []
    for twice in (False, True):
        loaded = tiny(model_type, head, **SHAPES.get(model_type, {}))
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
    loaded = tiny("gpt2", "causal-lm")
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ftcore.Refused, match="GPT2LMHeadModel drops a prefix under gradient checkpointing; turn that"):
        injected(loaded)
    for kind, head in (("mamba", "causal-lm"), ("distilbert", "masked-lm")):
        with pytest.raises(ftcore.Refused, match="hands not all its layers the keys and values that a prefix is"):
            injected(tiny(kind, head), head=head)
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
