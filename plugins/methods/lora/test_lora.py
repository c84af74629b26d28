"""LoRA adapts exactly the chosen modules, starts as the base and refuses what it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore_lora import LoRA
from torch import nn
from trials import check_dropout_acts_in_training_only, check_start_is_the_base, count, injected, on_a_layer, trainable

FAMILIES = [("qwen", "qwen2"), ("qwen", "qwen3"), ("llama", "llama")]
ATTENTION = ("attention.q", "attention.k", "attention.v", "attention.o")
MLP = ("mlp.gate", "mlp.up", "mlp.down")


def modules(loaded: Loaded, roles: Iterable[str]) -> set[str]:
    """The names of the modules with these roles."""
    return {name for role in roles for name in loaded.parts[role]}


def adapted(model: nn.Module) -> set[str]:
    """The base's names of the modules that hold a LoRA pair."""
    found = {name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    return {name.removeprefix("base_model.model.") for name in found}


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
@pytest.mark.parametrize(
    ("parts", "roles"),
    [
        (None, ATTENTION + MLP),
        (["attention"], ATTENTION),
        (["attention.q", "mlp"], ("attention.q", *MLP)),
        (["head"], ("head",)),
        (["attention.o", "embedding"], ("attention.o", "embedding")),
    ],
)
def test_exactly_the_modules_of_the_chosen_parts_are_adapted(
    family: str, kind: str, parts: list[str] | None, roles: tuple[str, ...], checkpoint: Callable[..., Path]
) -> None:
    loaded = ftcore.load(family, checkpoint=checkpoint(kind))
    wanted = modules(loaded, roles)
    shapes = {name: tuple(loaded.model.get_submodule(name).weight.shape) for name in wanted}
    found = injected("lora", loaded, r=5, **({"parts": parts} if parts else {}))
    assert set(found.matched) == wanted
    assert found.trainable == sum(5 * (rows + columns) for rows, columns in shapes.values())
    trained = trainable(found.model)
    assert all(".lora_" in name for name in trained)
    assert len(trained) == 2 * len(wanted)


def test_exactly_the_named_modules_are_adapted(checkpoint: Callable[..., Path]) -> None:
    cases: dict[tuple[str, ...], set[str]] = {
        ("q_proj",): {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"},
        ("layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"): {
            "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj",
        },
        ("lm_head",): {"lm_head"},
    }  # fmt: skip
    for targets, wanted in cases.items():
        loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
        assert adapted(injected("lora", loaded, target_modules=targets).model) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["attention", "mlp.upp"]}, r"no part 'mlp\.upp'; did you mean 'mlp\.up'\?"),
        ({"parts": ["attn"]}, r"no part 'attn'; did you mean 'attention"),
        ({"target_modules": ["q_proj", "k_porj"]}, r"is named 'k_porj'; did you mean 'k_proj'\?"),
        ({"target_modules": ["layers.7.self_attn.q_proj"]}, r"is named 'layers\.7\.self_attn\.q_proj'"),
    ],
)
def test_what_matches_nothing_is_refused_also_when_others_match(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("lora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"method 'lora' .*option 'r' is 0"),
        ({"r": "many"}, r"option 'r' is 'many'"),
        ({"alpha": -1}, r"option 'alpha' is -1"),
        ({"dropout": 1.0}, r"option 'dropout' is 1\.0"),
        ({"bias": "some"}, r"option 'bias' is 'some'.*'none', 'all' or 'lora_only'"),
        ({"init": "kaiming"}, r"option 'init' is 'kaiming'"),
        ({"rank": 8}, r"has no option 'rank'; "),
        ({"use_dorra": True}, r"has no option 'use_dorra'; did you mean 'use_dora'\?"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method="lora", target_modules=["0"], **options)


def test_an_option_may_come_as_the_text_of_a_flag(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    found = injected("lora", loaded, r="3", parts="attention.q, mlp.up", use_rslora="true")
    assert adapted(found.model) == modules(loaded, ("attention.q", "mlp.up"))
    assert all(p.shape[0] == 3 for name, p in found.model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.0),
        ({"dropout": 0.5}, 0.0),
        ({"bias": "all"}, 0.0),
        ({"init": "gaussian"}, 0.0),
        ({"use_rslora": True}, 0.0),
        ({"use_dora": True}, 1e-5),
        ({"init": "pissa"}, 1e-4),
        ({"init": "olora"}, 1e-4),
        ({"init": "orthogonal"}, 1e-4),
    ],
    ids=str,
)
def test_the_start_is_the_base(options: dict[str, Any], tolerance: float, checkpoint: Callable[..., Path]) -> None:
    check_start_is_the_base("lora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), tolerance, **options)


@pytest.mark.parametrize("scaling", [{"alpha": 6}, {"alpha": 6, "use_rslora": True}])
def test_the_update_is_the_published_formula(scaling: dict[str, Any]) -> None:
    """h = W x + b + s B A x with s = alpha / r, or alpha / sqrt(r) for rsLoRA."""
    model, weight, bias = on_a_layer("lora", r=4, **scaling)
    pair = {name.split(".")[-3]: p for name, p in trainable(model).items()}
    assert {name: tuple(p.shape) for name, p in pair.items()} == {"lora_A": (4, 5), "lora_B": (7, 4)}
    torch.nn.init.normal_(pair["lora_B"])
    scale = 6 / 2 if "use_rslora" in scaling else 6 / 4
    given = torch.randn(3, 5)
    wanted = given @ (weight + scale * pair["lora_B"] @ pair["lora_A"]).T + bias
    assert torch.allclose(model(given), wanted, atol=1e-5)


def test_any_torch_module_gets_an_adapter_by_module_name() -> None:
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    given = torch.randn(4, 6)
    before = base(given).detach()
    model = ftcore.inject(base, method="lora", target_modules=["0"])
    assert torch.equal(model(given), before)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = trainable(model)
    assert count(model) == 8 * (6 + 8)
    assert adapted(model) == {"0"}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(given).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model(given), before)
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in frozen.items())


def test_a_module_without_parts_wants_names() -> None:
    with pytest.raises(ftcore.Refused, match="no part 'attention'"):
        ftcore.inject(nn.Sequential(nn.Linear(6, 8)), method="lora")


def test_dropout_acts_in_training_and_not_in_evaluation(checkpoint: Callable[..., Path]) -> None:
    model = injected("lora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), dropout=0.5).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    check_dropout_acts_in_training_only(model)


def test_patterns_give_modules_other_ranks_and_alphas(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    patterns = {"rank_pattern": '{"q_proj": 2, "layers.1.*down_proj": 6}', "alpha_pattern": {"q_proj": 32}}
    found = injected("lora", loaded, r=4, **patterns).model
    ranks = {n.partition(".lora_A.")[0]: p.shape[0] for n, p in found.named_parameters() if ".lora_A." in n}
    names = {name.removeprefix("base_model.model.model.layers."): rank for name, rank in ranks.items()}
    assert {name for name, rank in names.items() if rank == 2} == {"0.self_attn.q_proj", "1.self_attn.q_proj"}
    assert {name for name, rank in names.items() if rank == 6} == {"1.mlp.down_proj"}
    assert found.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").scaling == {"default": 32 / 2}


def test_the_papers_choice_of_queries_and_values_is_a_choice_of_parts(checkpoint: Callable[..., Path]) -> None:
    """The LoRA paper adapts W_q and W_v (section 7.1); here every linear of the blocks is adapted by default."""
    folder = checkpoint("qwen2")
    chosen = injected("lora", ftcore.load("qwen", checkpoint=folder), parts="attention.q,attention.v")
    everything = injected("lora", ftcore.load("qwen", checkpoint=folder))
    assert {name.rpartition(".")[2] for name in chosen.matched} == {"q_proj", "v_proj"}
    assert len(everything.matched) == 2 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"q_porj": 2}}, r"lora\.rank_pattern 'q_porj' means none of the adapted modules"),
        ({"alpha_pattern": {"lm_head": 2}}, r"lora\.alpha_pattern 'lm_head' means none"),
        ({"init": "eva"}, r"lora\.init 'eva' begins from the rows, and there are none"),
        ({"init": "lora_ga"}, r"lora\.init 'lora_ga' begins from the rows, and there are none"),
        ({"lr_ratio": 0}, r"option 'lr_ratio' is 0"),
        ({"train_embeddings": True, "parts": ["head"]}, r"trains 'model.embed_tokens' whole, and lora\.parts names it"),
        ({"trainable_token_indices": [3, 320]}, r"names token 320, and the model has 320"),
        ({"trainable_token_indices": [3], "train_embeddings": True}, r"trains every row already"),
    ],
)
def test_what_does_not_fit_the_model_or_the_other_options_is_refused(
    options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("lora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


def test_embeddings_that_are_the_head_are_not_trained_whole(checkpoint: Callable[..., Path]) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2", tie_word_embeddings=True))
    with pytest.raises(ftcore.Refused, match="shares its weight with"):
        injected("lora", loaded, train_embeddings=True)


def test_b_learns_faster_where_it_is_asked_for(checkpoint: Callable[..., Path]) -> None:
    """LoRA+ multiplies the learning rate of B and of nothing else."""
    model = injected("lora", ftcore.load("qwen", checkpoint=checkpoint("qwen2"))).model
    run = Run(Settings(), "train", "causal-lm")
    assert LoRA().create_optimizer(run=run, model=model) is None
    optimizer = LoRA(lr_ratio=16).create_optimizer(run=run, model=model)
    assert optimizer is not None
    ratios = {id(p): group["lr_ratio"] for group in optimizer.param_groups for p in group["params"]}
    assert all(
        ratios[id(p)] == (16 if ".lora_B." in name else 1) for name, p in model.named_parameters() if p.requires_grad
    )


VARIANTS: list[dict[str, Any]] = [
    {"init": "eva"}, {"init": "loftq"}, {"init": "lora_ga"}, {"init": "lora_ga", "use_rslora": True},
    {"train_embeddings": True}, {"trainable_token_indices": (5, 9)}, {"rank_pattern": {"q_proj": 2}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        *((options, "fp32") for options in VARIANTS),
        ({"trainable_token_indices": (5, 9)}, "bf16"),
        ({"train_embeddings": True}, "bf16"),
    ],
    ids=str,
)
def test_a_variant_is_attached_merged_and_read_by_peft_as_it_was_trained(
    options: dict[str, Any], precision: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, tolerance = checkpoint("qwen2"), 1e-4 if precision == "fp32" else 0.25
    ftcore.run(
        method=LoRA(**options), task="causal", model="qwen", checkpoint=folder, data=rows, steps=2, lr=1e-2,
        batch_size=8, precision=precision, output=tmp_path / "run",
    )  # fmt: skip
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = ftcore.attach(tmp_path / "run").model(ids).logits.float()
        base = AutoModelForCausalLM.from_pretrained(folder)
        assert float((base(ids).logits - wanted).abs().max()) > tolerance
        merged = AutoModelForCausalLM.from_pretrained(ftcore.merge(tmp_path / "run", output=tmp_path / "merged"))
        assert float((merged(ids).logits.float() - wanted).abs().max()) <= tolerance
        if options.get("init") != "loftq":  # PEFT makes its own on a CUDA device only
            plain = PeftModel.from_pretrained(base, tmp_path / "run").eval()
            assert float((plain(input_ids=ids).logits - wanted).abs().max()) <= tolerance


@pytest.mark.parametrize(("init", "tolerance"), [("eva", 0.0), ("lora_ga", 1e-4), ("loftq", 2.0)])
def test_a_start_from_rows_or_rounding_is_near_the_base(
    init: str, tolerance: float, checkpoint: Callable[..., Path], rows: Path
) -> None:
    from ftcore.config import resolve
    from ftcore.pipeline import prepare
    from ftcore.progress import Silent

    folder = checkpoint("qwen2")
    keys = {"method": LoRA(init=init), "task": "causal", "model": "qwen", "checkpoint": folder, "data": rows}
    prepared = prepare(resolve({**keys, "steps": 2}), Silent(), answer=False)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = ftcore.load("qwen", checkpoint=folder).model(ids).logits
        after = prepared.injected.model.eval()(ids).logits
    assert float((after - before).abs().max()) <= tolerance


def test_four_bits_round_as_bitsandbytes_does() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    from ftcore_lora.starts import nf4

    torch.manual_seed(0)
    weight = torch.randn(48, 40)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.allclose(nf4(weight), functional.dequantize_4bit(packed, state), atol=1e-6)


@method_checks(LoRA())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
