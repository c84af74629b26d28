"""Any tuner of the installed PEFT is a method, by its type, with its own settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_peft import Peft, endings
from torch import nn


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LORA", {"r": 4}), ("HRA", {"r": 4}), ("MISS", {"r": 4}), ("LOHA", {"r": 4}), ("LOKR", {"r": 4}),
        ("VERA", {"r": 4}), ("FOURIERFT", {"n_frequency": 20}),
    ],
)  # fmt: skip
def test_a_tuner_adapts_only_the_chosen_modules_and_starts_as_the_base(
    kind: str, settings: dict[str, Any], checkpoint: Callable[..., Path]
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = loaded.model(ids).logits
        model = ftcore.inject(
            loaded.model, method="peft", type=kind, settings=settings, target_modules=["q_proj", "o_proj"]
        ).eval()
        after = model(ids).logits
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    wrapped = {name for name, module in model.named_modules() if type(module).__module__.startswith("peft.tuners.")}
    inner = {name.removeprefix("base_model.model.") for name in wrapped if name.endswith("_proj")}
    assert inner == {f"model.layers.{i}.self_attn.{which}_proj" for i in (0, 1) for which in "qo"}
    if kind != "FOURIERFT":  # its coefficients begin random
        assert float((after - before).abs().max()) <= 1e-4


def test_the_type_may_be_written_small_and_the_settings_as_json() -> None:
    model = ftcore.inject(
        nn.Sequential(nn.Linear(4, 4)), method="peft", type="lora", settings='{"r": 3}', target_modules=["0"]
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * (4 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs a value for 'type'"),
        ({"type": "LORRA"}, r"the installed PEFT has no tuner 'LORRA'; it has .*LORA"),
        ({"type": "LORA", "settings": {"rank": 3}}, r"peft\.settings does not fit LORA: .*rank"),
        ({"type": "LORA", "settings": "{r: 3}"}, r"was given '\{r: 3\}', which is no JSON"),
    ],
)
def test_what_peft_does_not_know_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method="peft", target_modules=["0"], **options)


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ftcore.Refused, match=r"no module of Sequential is named '7'"):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method=Peft(type="LORA", target_modules=("0", "7")))


def test_short_endings_are_used_only_where_they_mean_exactly_the_chosen_modules() -> None:
    every = ["a.0.q", "a.1.q", "a.0.k", "a.1.k", "b.0.k"]
    assert endings(["a.0.q", "a.1.q"], every) == ["q"]
    assert endings(["a.0.k", "a.1.k"], every) == ["a.0.k", "a.1.k"]
    assert endings(["a.0.q", "a.0.k", "a.1.q", "a.1.k", "b.0.k"], every) == ["k", "q"]


@method_checks(Peft(type="HRA"))
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
