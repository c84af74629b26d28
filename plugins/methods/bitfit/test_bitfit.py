"""BitFit trains every bias that it is told to and nothing else, and says what to do where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore.testing.stage import Encoder
from ftcore_bitfit import BitFit
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import layer_norm, linear
from transformers import BartConfig, BartForConditionalGeneration
from trials import drawn, injected, staged, trainable


def test_the_forward_pass_is_the_published_formula() -> None:
    """y = W x + b: after a step of gradient descent only b has moved, by the gradient of b."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2, bias=False))
    before = {name: tensor.detach().clone() for name, tensor in base.state_dict().items()}
    model = ftcore.inject(base, method="bitfit")
    trained = trainable(model)
    assert trained.keys() == {"0.bias", "1.bias"}
    given, slope = torch.randn(3, 5), torch.randn(3, 7)
    (model[0](given) * slope).sum().backward()
    assert torch.allclose(trained["0.bias"].grad, slope.sum(0))
    drawn(model)
    hidden = linear(given, before["0.weight"], trained["0.bias"])
    wanted = linear(layer_norm(hidden, (7,), before["1.weight"], trained["1.bias"]), before["2.weight"])
    assert torch.equal(model(given), wanted)


def test_every_bias_trains_or_those_of_the_chosen_parts(checkpoint: Callable[..., Path]) -> None:
    """Qwen2 has biases on q (32), k and v (16 each) in two blocks."""
    cases: dict[tuple[str, ...], int] = {(): 2 * 64, ("attention",): 2 * 64, ("attention.k",): 2 * 16}
    for parts, numbers in cases.items():
        found = injected("bitfit", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), parts=parts)
        names = [name for name, p in found.model.named_parameters() if p.requires_grad]
        assert found.trainable == numbers
        assert all(name.endswith(".bias") for name in names)
        assert set(found.names) == set(names)
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    found = injected("bitfit", loaded, target_modules=["layers.1.self_attn.q_proj"])
    assert found.names == ("model.layers.1.self_attn.q_proj.bias",)


@pytest.mark.parametrize(
    ("family", "kind", "options", "message"),
    [
        ("llama", "llama", {}, "LlamaForCausalLM has no bias to train; use ln-tuning, ia3 or lora instead"),
        ("qwen", "qwen2", {"parts": ["mlp"]}, "Qwen2ForCausalLM has no bias to train in mlp; use"),
        ("qwen", "qwen2", {"parts": ["attention", "mpl"]}, "no part 'mpl'; did you mean 'mlp'"),
        ("qwen", "qwen2", {"target_modules": ["k_porj"]}, "is named 'k_porj'; did you mean 'k_proj'"),
    ],
)
def test_where_there_is_no_bias_it_is_refused(
    family: str, kind: str, options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("bitfit", ftcore.load(family, checkpoint=checkpoint(kind)), **options)


def test_only_biases_are_saved_and_merging_puts_them_into_the_base(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder, output = checkpoint("qwen2"), tmp_path / "run"
    ftcore.run(method="bitfit", task="causal", model="qwen", checkpoint=folder, data=rows, steps=2, output=output)
    learnt = load_file(output / "adapter_model.safetensors")
    assert len(learnt) == 6
    assert all(name.endswith("_proj.bias") for name in learnt)
    ftcore.merge(output, output=tmp_path / "merged")
    base, merged = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "merged"))
    assert all(torch.equal(merged[name], learnt.get(name, tensor)) for name, tensor in base.items())


@pytest.mark.parametrize("head", ["masked-lm", "sequence-classification", "token-classification"])
def test_encoders_train_the_biases_of_their_heads_too(head: str) -> None:
    loaded = replace(staged(Encoder, "ernie", head), trained=())  # a head that comes with the checkpoint
    wanted = sum(p.numel() for name, p in loaded.model.named_parameters() if name.endswith(".bias"))
    assert injected("bitfit", loaded).trainable == wanted > 2 * 9 * 32


def test_an_encoder_decoder_with_biases_trains_them() -> None:
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 32}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = ftcore.inject(BartForConditionalGeneration(BartConfig(**sizes, **layers)), method="bitfit")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert {"model.encoder.layers.0.fc1.bias", "model.decoder.layers.0.encoder_attn.q_proj.bias"} <= trained


@method_checks(BitFit())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
