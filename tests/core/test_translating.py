"""Adapters trained on a maker's own modules change the plain model as they changed theirs, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.adapters import inject
from ftcore.cli import cli
from makers import OWN, Own, Tensors, checkpoint
from safetensors.torch import save_file
from torch import Tensor
from trials import bound

IDS = torch.arange(5, 65).reshape(2, 30)
R, ALPHA = 3, 7


def answers(family: str, own: Own, tensors: Tensors, folder: Path, adapter: Path | None = None) -> Tensor:
    """The logits of the plain checkpoint that these tensors become, with PEFT's adapter on it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    place = checkpoint(own, tensors, folder / "own")
    ftcore.convert(place, model=family, output=folder / "plain", **own.options)
    model = AutoModelForCausalLM.from_pretrained(folder / "plain")
    if adapter is not None:
        ftcore.convert(place, model=family, adapter=adapter, output=folder / "adapter", **own.options)
        model = PeftModel.from_pretrained(model, folder / "adapter")
    with torch.no_grad():
        answer: Tensor = model.eval()(IDS).logits
    return answer


def write(folder: Path, config: Mapping[str, Any], tensors: Tensors, *, pickled: bool = False) -> Path:
    """An adapter as PEFT writes it, for the makers' modules."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    if pickled:
        torch.save(named, folder / "adapter_model.bin")
    else:
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def factors(own: Own, rank: Callable[[str], int] = lambda module: R) -> Tensors:
    """Random A and B for each module that is changed."""
    generator = torch.Generator().manual_seed(1)
    weights, drawn = own.tensors(), Tensors()
    for module in own.modules():
        rows, columns = weights[f"{module}.weight"].shape
        drawn[f"{module}.lora_A.weight"] = torch.randn(rank(module), columns, generator=generator) * 0.3
        drawn[f"{module}.lora_B.weight"] = torch.randn(rows, rank(module), generator=generator) * 0.3
    return drawn


def lora(own: Own, **changes: Any) -> dict[str, Any]:
    """The adapter_config.json of LoRA on the makers' modules."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": R, "lora_alpha": ALPHA, "target_modules": list(own.targets),
        "base_model_name_or_path": "makers/model", "inference_mode": True, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("pickled", [False, True])
def test_lora_changes_the_plain_model_as_it_changed_the_makers(family: str, pickled: bool, tmp_path: Path) -> None:
    """W + (alpha / r) B A, with the makers' fused W, gives the same answers."""
    own = OWN[family]
    weights, drawn = own.tensors(), factors(own)
    base = answers(family, own, weights, tmp_path / "base")
    for module in own.modules():
        update = drawn[f"{module}.lora_B.weight"] @ drawn[f"{module}.lora_A.weight"]
        weights[f"{module}.weight"] += ALPHA / R * update
    wanted = answers(family, own, weights, tmp_path / "merged")
    adapter = write(tmp_path / "adapter", lora(own), drawn, pickled=pickled)
    found = answers(family, own, own.tensors(), tmp_path / "adapted", adapter)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert float((wanted - base).abs().max()) > 0.1


@pytest.mark.parametrize("family", OWN)
def test_ranks_and_alphas_of_single_modules_and_a_head_trained_whole_go_along(family: str, tmp_path: Path) -> None:
    own = OWN[family]
    first, head = (
        own.modules()[0],
        next(n for n in own.outside if own.outside[n] == (300, 32) and "emb" not in n and "wte" not in n),
    )
    rank = lambda module: 5 if module == first else R  # noqa: E731
    weights, drawn = own.tensors(), factors(own, rank)
    drawn[head] = torch.randn(300, 32, generator=torch.Generator().manual_seed(2))
    weights[head] = drawn[head]
    for module in own.modules():
        scale = 11 / 5 if module == first else ALPHA / R
        weights[f"{module}.weight"] += scale * drawn[f"{module}.lora_B.weight"] @ drawn[f"{module}.lora_A.weight"]
    config = lora(
        own,
        rank_pattern={first: 5},
        alpha_pattern={first: 11},
        modules_to_save=[head.removesuffix(".weight").rpartition(".")[2]],
    )
    adapter = write(tmp_path / "adapter", config, drawn)
    wanted = answers(family, own, weights, tmp_path / "merged")
    found = answers(family, own, own.tensors(), tmp_path / "adapted", adapter)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", OWN)
def test_dora_goes_along_row_by_row(family: str, tmp_path: Path) -> None:
    """m (W + s B A) / ||W + s B A||, with a norm for each row (arXiv:2402.09353, equation 5)."""
    own = OWN[family]
    weights, drawn = own.tensors(), factors(own)
    for module in own.modules():
        weight = weights[f"{module}.weight"]
        magnitude = torch.rand(weight.shape[0], generator=torch.Generator().manual_seed(3)) + 0.5
        drawn[f"{module}.lora_magnitude_vector"] = magnitude
        moved = weight + ALPHA / R * drawn[f"{module}.lora_B.weight"] @ drawn[f"{module}.lora_A.weight"]
        weights[f"{module}.weight"] = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    adapter = write(tmp_path / "adapter", lora(own, use_dora=True), drawn)
    wanted = answers(family, own, weights, tmp_path / "merged")
    found = answers(family, own, own.tensors(), tmp_path / "adapted", adapter)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_ia3_scales_the_rows_that_it_scaled(tmp_path: Path) -> None:
    own = OWN["internlm"]
    weights, drawn, generator = own.tensors(), Tensors(), torch.Generator().manual_seed(4)
    for module in [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("attention.wqkv", "feed_forward.w2")]:
        at_input = module.endswith("w2")
        shape = (1, 48) if at_input else (64, 1)
        drawn[f"{module}.ia3_l"] = torch.rand(shape, generator=generator) + 0.5
        weights[f"{module}.weight"] = weights[f"{module}.weight"] * drawn[f"{module}.ia3_l"]
    config = {"peft_type": "IA3", "target_modules": ["wqkv", "w2"], "feedforward_modules": ["w2"]}
    adapter = write(tmp_path / "adapter", config, drawn)
    wanted = answers("internlm", own, weights, tmp_path / "merged")
    found = answers("internlm", own, own.tensors(), tmp_path / "adapted", adapter)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_loha_multiplies_the_rows_that_it_multiplied(tmp_path: Path) -> None:
    """W + (alpha / r) (A1 B1) * (A2 B2), element by element (arXiv:2108.06098)."""
    own = OWN["qwen"]
    weights, drawn, generator = own.tensors(), Tensors(), torch.Generator().manual_seed(5)
    for module in own.modules():
        rows, columns = weights[f"{module}.weight"].shape
        shapes = {"w1_a": (rows, R), "w1_b": (R, columns), "w2_a": (rows, R), "w2_b": (R, columns)}
        one = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
        drawn |= {f"{module}.hada_{name}": tensor for name, tensor in one.items()}
        weights[f"{module}.weight"] += ALPHA / R * (one["w1_a"] @ one["w1_b"]) * (one["w2_a"] @ one["w2_b"])
    config = {"peft_type": "LOHA", "r": R, "alpha": ALPHA, "target_modules": list(own.targets)}
    adapter = write(tmp_path / "adapter", config, drawn)
    wanted = answers("qwen", own, weights, tmp_path / "merged")
    found = answers("qwen", own, own.tensors(), tmp_path / "adapted", adapter)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def refused(family: str, config: Mapping[str, Any], tensors: Tensors, folder: Path) -> str:
    """What is said of an adapter that has no exact counterpart; nothing is left behind."""
    own = OWN[family]
    adapter, place = write(folder / "adapter", config, tensors), checkpoint(own, own.tensors(), folder / "own")
    with pytest.raises(ftcore.Refused) as refusal:
        ftcore.convert(place, model=family, adapter=adapter, output=folder / "out", **own.options)
    assert not (folder / "out").exists()
    return str(refusal.value)


def test_what_has_no_exact_counterpart_is_refused_by_name(tmp_path: Path) -> None:
    own = OWN["baichuan"]
    stray = {"transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(R, 32)}
    assert "for a module that the checkpoint lacks; it is another's" in refused(
        "baichuan", lora(own), stray, tmp_path / "a"
    )
    kron = {"model.layers.0.self_attn.W_pack.lokr_w1": torch.zeros(4, 4)}
    said = refused("baichuan", {"peft_type": "LOKR"}, kron, tmp_path / "b")
    assert "cannot be parted into model.layers.0.self_attn.q_proj, " in said
    short = {"model.layers.0.self_attn.W_pack.lora_B.weight": torch.zeros(90, R)}
    assert "has 90 rows in " in refused("baichuan", lora(own), short, tmp_path / "c")
    unit = {"lm_head.lora_A.weight": torch.zeros(R, 32), "lm_head.lora_B.weight": torch.zeros(300, R)}
    assert "changes 'lm_head', whose rows get length one here" in refused("baichuan", lora(own), unit, tmp_path / "d")


def test_an_adapter_that_is_none_and_a_plain_checkpoint_are_refused(tmp_path: Path) -> None:
    own = OWN["qwen"]
    place = checkpoint(own, own.tensors(), tmp_path / "own")
    with pytest.raises(ftcore.Refused, match=r"cannot be read: .*; name the directory of a published one"):
        ftcore.convert(place, model="qwen", adapter=tmp_path / "none", output=tmp_path / "out")
    ftcore.convert(place, output=tmp_path / "plain")
    with pytest.raises(ftcore.Refused, match="is a plain one already, and so are adapters on it"):
        ftcore.convert(tmp_path / "plain", model="qwen", adapter=tmp_path / "none", output=tmp_path / "out")


def test_the_family_is_told_by_the_type_at_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    own = OWN["chatglm"]
    place = checkpoint(own, own.tensors(), tmp_path / "own")
    adapter = write(tmp_path / "adapter", lora(own), factors(own))
    told = ["convert", str(place), "--chatglm.variant", "chatglm3"]
    done = CliRunner().invoke(cli, [*told, "--output", str(tmp_path / "plain")])
    assert done.exit_code == 0, done.output
    assert "the plain model is in " in done.output
    done = CliRunner().invoke(cli, [*told, "--adapter", str(adapter), "--output", str(tmp_path / "native")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "native" / "adapter_config.json").read_text(encoding="utf-8"))
    modules = ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["target_modules"], config["base_model_name_or_path"]) == (modules, None)
    with pytest.raises(ftcore.Refused, match="is of type 'qwen2', which no family converts; is it plain already"):
        ftcore.convert(_plain(tmp_path / "other"), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "given", "meant"),
    [
        ("qwen", "c_attn,c_proj,w1,w2", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("qwen", "transformer.h.1.attn.c_attn", "model.layers.1.self_attn.{q,k,v}_proj"),
        ("internlm", "wqkv,wo,w1,w2,w3", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("internlm", "w2", "down_proj"),
        ("internlm", "q_proj,wo", "q_proj o_proj"),
        ("chatglm", "query_key_value", "q_proj k_proj v_proj"),
        ("chatglm", "dense,dense_h_to_4h,dense_4h_to_h", "o_proj gate_up_proj down_proj"),
        ("baichuan", "W_pack,o_proj", "q_proj k_proj v_proj o_proj"),
    ],
)
def test_a_makers_names_for_modules_mean_what_holds_them_here(
    family: str, given: str, meant: str, tmp_path: Path
) -> None:
    own = OWN[family]
    said: list[str] = []
    loaded = ftcore.load(family, checkpoint=checkpoint(own, own.tensors(), tmp_path / "own"), **own.options)
    hooks, run = bound("lora", target_modules=given.split(","))
    matched = inject(hooks, replace(run, say=said.append), loaded, None, 10).matched
    if "{" in meant:
        wanted = {f"model.layers.1.self_attn.{name}_proj" for name in "qkv"}
        assert set(matched) == wanted
    else:
        assert {name.rpartition(".")[2] for name in matched} == set(meant.split())
        assert len(matched) == 2 * len(meant.split())
    translated = [target for target in given.split(",") if target not in ("q_proj", "o_proj")]
    for target in translated:
        assert sum(f"'{target}' is the checkpoint's own name" in line for line in said) == 1


def _plain(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}), encoding="utf-8")
    return folder
