"""P-tuning's prompts are made by an LSTM or an MLP, and what they come to is what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
import trials
from ftcore import adapters
from ftcore.hooks import Loaded
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore_ptuning import PTuning
from torch import Tensor, nn
from trials import answers, check_dropout_acts_in_training_only, check_parameters_are_theirs, read_again, trainable

N, D = 5, 32
bound = partial(trials.bound, "ptuning", num_virtual_tokens=N)
injected = partial(trials.injected, "ptuning", num_virtual_tokens=N)


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return ftcore.load("qwen", checkpoint=checkpoint("qwen2"))


def made_by_hand(model: nn.Module) -> Tensor:
    """What the encoder makes of the prompts, with a plain LSTM and plain layers."""
    own = {name.split(".default.")[1]: p.detach() for name, p in trainable(model).items()}
    made = own["embedding.weight"]
    recurrent = {name.removeprefix("lstm_head."): p for name, p in own.items() if name.startswith("lstm_head.")}
    if recurrent:
        hidden = recurrent["weight_hh_l0"].shape[1]
        lstm = nn.LSTM(D, hidden, num_layers=len(recurrent) // 8, bidirectional=True, batch_first=True)
        lstm.load_state_dict(recurrent)
        with torch.no_grad():
            made = lstm(made[None])[0][0]
    layers = sorted(name.split(".")[1] for name in own if name.startswith("mlp_head.") and name.endswith("weight"))
    for layer in layers:
        made = made @ own[f"mlp_head.{layer}.weight"].T + own[f"mlp_head.{layer}.bias"]
        made = made if layer == layers[-1] else made.relu()
    return made


def asked() -> dict[str, Tensor]:
    """A row of seven tokens and one of four."""
    ids = torch.arange(10, 24).reshape(2, 7)
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}


VARIANTS: list[dict[str, Any]] = [
    {},
    {"encoder_num_layers": 1, "encoder_hidden_size": 6},
    {"encoder_num_layers": 3, "encoder_dropout": 0.5},
    {"reparameterization": "mlp"},
    {"reparameterization": "mlp", "encoder_hidden_size": 9},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_logits_are_those_of_the_model_on_what_the_encoder_makes(options: dict[str, Any], loaded: Loaded) -> None:
    plain = copy.deepcopy(loaded.model)
    model = injected(loaded, **options).model.eval()
    rows = torch.cat([made_by_hand(model).expand(2, -1, -1), plain.get_input_embeddings()(asked()["input_ids"])], 1)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), asked()["attention_mask"]], 1)
    with torch.no_grad():
        wanted = plain(inputs_embeds=rows, attention_mask=mask).logits[:, N:]
        assert torch.allclose(model(**asked()).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_as_many_numbers_train_as_prompts_and_encoder_have(options: dict[str, Any], loaded: Loaded) -> None:
    lstm = options.get("reparameterization") != "mlp"
    h = options.get("encoder_hidden_size", D // 2 if lstm else D)
    k = options.get("encoder_num_layers", 2)
    recurrent = 8 * h * (D + h + 2) + (k - 1) * 8 * h * (3 * h + 2) + (2 * h + 1) * 2 * h + (2 * h + 1) * D
    mlp = (D + 1) * h + (h + 1) * h + (h + 1) * D
    assert injected(loaded, **options).trainable == N * D + (recurrent if lstm else mlp)


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_peft_alone_with_the_same_seed_gives_the_same(kind: str, loaded: Loaded) -> None:
    from peft import PromptEncoderConfig, get_peft_model

    base = copy.deepcopy(loaded.model)
    model = injected(loaded, reparameterization=kind, encoder_hidden_size=8).model.eval()
    with seeded(Settings().seed, "inject", "ptuning"):
        config = PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=8,
            encoder_reparameterization_type=kind.upper(),
        )  # fmt: skip
        theirs = get_peft_model(base, config).eval()
    check_parameters_are_theirs(model, theirs)
    with torch.no_grad():
        assert torch.allclose(model(**asked()).logits, theirs(**asked()).logits[:, N:], atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_only_what_the_encoder_makes_is_kept_and_peft_reads_it(
    options: dict[str, Any], loaded: Loaded, tmp_path: Path
) -> None:
    fresh = replace(loaded, model=copy.deepcopy(loaded.model))
    hooks, run = bound(**options)
    found = adapters.inject(hooks, run, loaded, None, 10)
    found.model.train()
    adapter, *others = read_again(hooks, run, found, fresh, tmp_path)
    assert found.model.prompt_encoder["default"].training
    assert {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()} == {"prompt_embeddings": (N, D)}
    assert torch.allclose(adapter.tensors["prompt_embeddings"], made_by_hand(found.model), atol=1e-5)
    wanted, again, theirs = (answers(model, asked()) for model in (found.model, *others))
    assert torch.allclose(again, wanted, atol=1e-5)
    assert torch.allclose(theirs[:, N:], wanted, atol=1e-5)


def test_dropout_acts_in_training_and_not_in_evaluation(loaded: Loaded) -> None:
    check_dropout_acts_in_training_only(injected(loaded, encoder_dropout=0.5).model, asked())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reparameterization": "gru"}, r"option 'reparameterization' is 'gru'.*'mlp' or 'lstm'"),
        ({"reparameterization": "mlp", "encoder_num_layers": 3}, r"encoder_num_layers 3 .* are the LSTM's"),
        ({"reparameterization": "mlp", "encoder_dropout": 0.1}, r"encoder_dropout 0\.1 are the LSTM's"),
        ({"encoder_num_layers": 1, "encoder_dropout": 0.1}, r"acts between layers of the LSTM, and there is one"),
        ({"encoder_dropout": 1.0}, r"option 'encoder_dropout' is 1\.0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str, loaded: Loaded) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected(loaded, **options)


@method_checks(PTuning())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
