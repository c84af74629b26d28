"""What tests of methods do alike: put a method into a model, draw what trains, and try what must hold for many."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore import adapters
from ftcore.adapters import Injected
from ftcore.discovery import Hooks, bind, choose
from ftcore.hooks import Adapter, Data, Intent, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing.stage import (
    Decoder,
    Encoder,
    EncoderDecoder,
    FusedDecoder,
    tiny_checkpoint,
    tiny_config,
    tiny_model,
)
from ftcore.training import Core
from torch import Tensor, nn

# A model of each architecture, and how many attentions it has.
ARCHITECTURES: tuple[tuple[type[Any], str, str, int], ...] = (
    (Decoder, "granite", "causal-lm", 2),
    (FusedDecoder, "phi3", "causal-lm", 2),
    (Encoder, "ernie", "masked-lm", 2),
    (EncoderDecoder, "mt5", "seq2seq-lm", 6),
)
# Choices in `awkward()` that a method which makes anew a weight matrix refuses, and how.
WITHOUT_A_MATRIX: tuple[tuple[dict[str, Any], str], ...] = (
    ({"target_modules": ["1"]}, r"'1' has no weight matrix"),
    ({"target_modules": ["3"]}, r"'3' has no weight matrix"),
    ({"target_modules": ["4"]}, r"'4' keeps its weight quantised \(torch\.uint8\)"),
    ({"target_modules": ["9"]}, r"no module of Sequential is named '9'"),
    ({}, r"no part 'attention'"),
)

# A method in a model


def bound(method: Any, /, intent: Intent = "train", *, head: str = "causal-lm", **options: Any) -> tuple[Hooks, Run]:
    """The hooks of a method with its options, and a run of it."""
    return bind([choose("method", method, options)], Core()), Run(Settings(), intent, head)


def injected(
    method: Any,
    loaded: Loaded,
    /,
    intent: Intent = "train",
    *,
    head: str = "causal-lm",
    data: Data | None = None,
    steps: int = 10,
    **options: Any,
) -> Injected:
    """`loaded` with the method in place, on the parts that it chooses."""
    hooks, run = bound(method, intent, head=head, **options)
    return adapters.inject(hooks, run, loaded, data, steps)


def on_a_layer(
    method: Any, /, reads: int = 5, writes: int = 7, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model of one linear layer, always the same, with the method on it, and the layer's own weight and bias."""
    torch.manual_seed(0)
    layer = nn.Linear(reads, writes, dtype=dtype)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    model: Any = ftcore.inject(nn.Sequential(layer), method=method, **{"target_modules": ["0"], **options})
    return model, weight, bias


def staged(family: type[Any], model_type: str, head: str = "causal-lm", **fields: Any) -> Loaded:
    """A tiny model of the kit's, loaded by its family."""
    run = Run(Settings(checkpoint=str(tiny_checkpoint(model_type, head, **fields))), "train", head)
    loaded: Loaded = family().load_model(run, {})
    return loaded


def tiny(model_type: str, head: str, **fields: Any) -> Loaded:
    """A tiny model with a head, as a family without parts would load it."""
    model: Any = tiny_model(tiny_config(model_type, **fields), head).eval()
    return Loaded(model, None, {}, "", 256, model.config.vocab_size)


def awkward() -> nn.Sequential:
    """An embedding whose weight is also that of a linear layer, a norm, and a quantised layer."""
    model = nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 7), nn.ReLU(), nn.Linear(5, 7))
    model[2].weight = model[0].weight
    model[4].weight = nn.Parameter(torch.zeros(7, 5, dtype=torch.uint8), requires_grad=False)
    return model


# What trains


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains in the model, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(model: nn.Module) -> int:
    """Numbers that train."""
    return sum(parameter.numel() for parameter in trainable(model).values())


@torch.no_grad()
def drawn(model: nn.Module, std: float = 1.0) -> dict[str, nn.Parameter]:
    """What trains in the model, by name, with random values."""
    found = trainable(model)
    for parameter in found.values():
        parameter.normal_(std=std)
    return found


def trained(model: nn.Module, std: float = 0.3) -> dict[str, nn.Parameter]:
    """What trains, by the last word of its name that is not PEFT's `default`, with random values, always the same."""
    torch.manual_seed(1)
    return {name.removesuffix(".default").rpartition(".")[2]: one for name, one in drawn(model, std).items()}


@torch.no_grad()
def shaken(model: nn.Module) -> None:
    """What trains in the model is elsewhere than it was."""
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter))


# What a model is asked, and what it says


def a_row(head: str = "causal-lm") -> dict[str, Tensor]:
    """Twenty tokens, as a model with this head takes them."""
    ids = torch.arange(5, 25)[None]
    return {"input_ids": ids, **({"decoder_input_ids": ids} if head == "seq2seq-lm" else {})}


def padded(*sizes: int, left: bool = False) -> dict[str, Tensor]:
    """Rows of tokens of these sizes with their mask."""
    width = max(sizes)
    ids = torch.randint(5, 300, (len(sizes), width), generator=torch.Generator().manual_seed(len(sizes)))
    places = torch.arange(width).flip(0) if left else torch.arange(width)
    mask = (places < torch.tensor(sizes)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def answers(model: nn.Module, asked: Mapping[str, Any]) -> Tensor:
    """Logits in evaluation, or where an answer starts and where it ends."""
    output = model.eval()(**asked)
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def attended(module: Any, given: Tensor, *, causal: bool, implementation: str) -> Tensor:
    """What an attention of four heads of 8 gives for five tokens that no position turns."""
    module.is_causal = causal
    still = torch.ones(1, 5, 8), torch.zeros(1, 5, 8)
    later = torch.ones(5, 5).triu(1)[None, None] * torch.finfo(torch.float32).min
    mask = later if causal and implementation == "eager" else None
    found: Tensor = module(given, position_embeddings=still, attention_mask=mask)[0]
    return found


# What is kept


def written(adapter: Adapter, folder: Path) -> Path:
    """A directory that PEFT reads the adapter from."""
    from safetensors.torch import save_file

    save_file(dict(adapter.tensors), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config, default=str))
    return folder


def read_again(
    hooks: Hooks, run: Run, found: Injected, fresh: Loaded, folder: Path
) -> tuple[Adapter, nn.Module, nn.Module]:
    """What is saved of a model, and what the `fresh` base becomes with it, by ftcore and by PEFT."""
    from peft import PeftModel

    adapter = adapters.saved(hooks, run, found)
    other = copy.deepcopy(fresh.model)
    again = adapters.inject(hooks, replace(run, intent="infer"), fresh, None, 10)
    adapters.restore(hooks, run, again, adapter)
    return adapter, again.model, PeftModel.from_pretrained(other, written(adapter, folder))


def said_by_all(method: Any, loaded: Loaded, folder: Path, *, head: str, **options: Any) -> list[Tensor]:
    """What an adapted model, one that its adapter was given back to, and PEFT's say to `padded(6, 3)`."""
    fresh = replace(loaded, model=copy.deepcopy(loaded.model))
    hooks, run = bound(method, head=head, **options)
    found = adapters.inject(hooks, run, loaded, None, 10)
    shaken(found.model)
    _, *others = read_again(hooks, run, found, fresh, folder)
    asked = padded(6, 3)
    if head == "seq2seq-lm":
        asked["decoder_input_ids"] = asked["input_ids"][:, :4]
    return [answers(model, asked) for model in (found.model, *others)]


# What must hold


def check_refused_on_a_layer(method: str, options: Mapping[str, Any], message: str) -> None:
    """On a layer that is given 12 numbers the options are refused with the message."""
    with pytest.raises(ftcore.Refused, match=message):
        on_a_layer(method, 12, 6, **options)


def check_merged_it_answers_the_same(method: str, **options: Any) -> None:
    """PEFT's own merge makes a plain layer of the adapted one, which answers as it did in evaluation."""
    model: Any = on_a_layer(method, 12, 6, **options)[0]
    given = torch.randn(4, 12)
    trained(model)
    wanted = model.eval()(given)
    merged = model.merge_and_unload()
    assert type(merged[0]) is nn.Linear
    assert torch.allclose(merged(given), wanted, atol=1e-5)


@torch.no_grad()
def check_start_is_the_base(method: str, loaded: Loaded, tolerance: float = 0.0, **options: Any) -> Injected:
    """With the method in place the model answers as before; returns what was injected."""
    ids = torch.arange(5, 45).reshape(2, 20)
    base: Any = loaded.model
    before = base(ids).logits
    found = injected(method, loaded, **options)
    assert float((found.model.eval()(ids).logits - before).abs().max()) <= tolerance
    return found


@torch.no_grad()
def check_dropout_acts_in_training_only(model: nn.Module, asked: Mapping[str, Any] | None = None) -> None:
    """Two answers differ in training and are the same in evaluation."""
    given = asked or a_row()
    assert not torch.equal(model.train()(**given).logits, model(**given).logits)
    assert torch.equal(model.eval()(**given).logits, model(**given).logits)


@torch.no_grad()
def check_copies_answer_alike(model: nn.Module, head: str = "causal-lm") -> None:
    """A copy of the model and what a pickle of it gives answer bit for bit as it does."""
    asked = a_row(head)
    wanted = model.eval()(**asked).logits
    assert torch.equal(copy.deepcopy(model)(**asked).logits, wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(**asked).logits, wanted)


def check_every_tensor_learns(model: Any, head: str = "causal-lm") -> None:
    """Whatever trains gets a gradient, also when activations are computed twice, and then the model can be copied."""
    model.train().gradient_checkpointing_enable()
    model(**a_row(head)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
    copy.deepcopy(model)


def check_every_attention_has_a_prefix(method: str, loaded: Loaded, head: str, number: int) -> None:
    """The model's own config says nothing of it, copies answer alike, and every tensor gets a gradient."""
    base: Any = loaded.model
    settings = base.config.to_dict(), base.config._attn_implementation
    model: Any = injected(method, loaded).model.eval()
    assert len([name for name in drawn(model, 0.5) if name.endswith("prefix.tokens")]) == number
    assert (model.config.to_dict(), model.config._attn_implementation) == settings
    check_copies_answer_alike(model, head)
    check_every_tensor_learns(model, head)


def check_a_copy_is_its_own(model: nn.Sequential, parameter: nn.Parameter) -> None:
    """A copy of a model of one layer answers as before when what trains in the first changes."""
    twin = copy.deepcopy(model)
    given = torch.randn(3, 5)
    before = model.eval()(given)
    with torch.no_grad():
        parameter.neg_()
    assert torch.equal(twin.eval()(given), before)
    assert not torch.equal(model(given), before)


@torch.no_grad()
def check_rows_generated_together(model: Any, *, use_cache: bool) -> None:
    """Rows of different lengths go on as each does alone in a loop of forward passes."""
    asked = padded(7, 3, 5, left=True)
    said = model.generate(
        **asked, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    for row, size in enumerate((7, 3, 5)):
        ids = asked["input_ids"][row : row + 1, -size:]
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(said[row, -6:], ids[0, -6:])


def check_parameters_are_theirs(model: nn.Module, theirs: nn.Module) -> None:
    """What trains has the names and, bit for bit, the values that it has in a model of PEFT's."""
    mine = trainable(model)
    assert mine.keys() == trainable(theirs).keys()
    assert all(torch.equal(parameter, theirs.get_parameter(name)) for name, parameter in mine.items())
