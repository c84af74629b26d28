"""Any tuner of the installed PEFT is a method, by its type, with its own settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.adapters import endings, inject
from ftcore.testing import method_checks
from ftcore_peft import ELSEWHERE, Peft
from torch import nn
from trials import bound, count, injected, on_a_layer


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
            loaded.model, method="peft", type=kind, config=settings, target_modules=["q_proj", "o_proj"]
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
    model, _, _ = on_a_layer("peft", 4, 4, type="lora", config='{"r": 3}')
    assert count(model) == 3 * (4 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs a value for 'type'"),
        ({"type": "LORRA"}, r"the installed PEFT has no tuner 'LORRA'; it has .*LORA"),
        ({"type": "LORA", "config": {"rank": 3}}, r"peft\.config does not fit LORA: .*rank"),
        ({"type": "LORA", "config": "{r: 3}"}, r"was given '\{r: 3\}', which is no JSON"),
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


# Every tuner of the installed PEFT, with what it needs to fit modules of 16 to 64 numbers.
WORKS: dict[str, dict[str, Any]] = {
    "BEFT": {}, "C3A": {"block_size": 16}, "DEFT": {}, "DELORA": {}, "FOURIERFT": {"n_frequency": 20}, "FROD": {},
    "GLORA": {}, "GRALORA": {}, "HIRA": {}, "HRA": {}, "IA3": {"feedforward_modules": []}, "LILY": {}, "LN_TUNING": {},
    "LOHA": {}, "LOKR": {}, "LORA": {}, "MISS": {"r": 4}, "OFT": {}, "OSF": {}, "PEANUT": {}, "PSOFT": {"r": 4},
    "PVERA": {}, "RANDLORA": {}, "ROAD": {"group_size": 16}, "SHIRA": {"r": 2}, "SUPERTUNING": {}, "TINYLORA": {},
    "UNILORA": {}, "VBLORA": {"vector_length": 16}, "VERA": {}, "WAVEFT": {"n_frequency": 20},
}  # fmt: skip
WANTING = {"ADAMSS": "scikit-learn is required"}
UNMERGED = {"BEFT": "Base layer has no bias", "LILY": "not supported for Lily"}
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


def test_every_tuner_is_known_to_work_or_not_and_the_readme_says_which() -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    every = {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert {*WORKS, *ELSEWHERE, *WANTING} == every
    works, _, rest = README.partition("<!-- these work -->")[2].partition("<!-- these do not -->")
    assert set(works.replace(",", " ").replace(".", " ").split()) == WORKS.keys()
    assert all(f"`{kind}`" in rest for kind in (*ELSEWHERE, *WANTING, *UNMERGED))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WORKS)
def test_a_tuner_trains_is_loaded_again_and_merges(kind: str, checkpoint: Callable[..., Path]) -> None:
    folder, ids = checkpoint("qwen2"), torch.arange(5, 25)[None]
    hooks, run = bound("peft", type=kind, config=WORKS[kind])
    trained, again = (inject(hooks, run, ftcore.load("qwen", checkpoint=folder), None, 10) for _ in range(2))
    optimizer = torch.optim.SGD([p for p in trained.model.parameters() if p.requires_grad], lr=1e-3)
    trained.model.train()(ids).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    wanted = trained.model.eval()(ids).logits.detach()
    hooks.load_adapter(run, again.model, hooks.save_adapter(run, trained.model))
    assert torch.allclose(again.model.eval()(ids).logits, wanted, atol=1e-4)
    if kind in UNMERGED:
        with pytest.raises(ftcore.Refused, match=f"PEFT cannot merge {kind} here: .*{UNMERGED[kind]}"):
            hooks.merge(run, hooks.methods[0], trained.model)
    else:
        assert torch.allclose(hooks.merge(run, hooks.methods[0], trained.model)(ids).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("kind", [*ELSEWHERE, *WANTING])
def test_a_tuner_that_cannot_work_is_refused_with_what_to_use(
    kind: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as on a machine without it
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    with pytest.raises(ftcore.Refused, match=r"use --method|scikit-learn is required"):
        injected("peft", loaded, type=kind)


def test_target_modules_are_an_option_of_their_own() -> None:
    with pytest.raises(ftcore.Refused, match=r"give them as --peft\.target_modules"):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method=Peft(type="LORA", config={"target_modules": ["0"]}))


@method_checks(Peft(type="HRA"))
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
