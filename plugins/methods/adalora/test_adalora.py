"""AdaLoRA lets ranks fall over the run's own steps, remembers across interruptions, and leaves a smaller adapter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.testing import method_checks
from ftcore_adalora import AdaLoRA, counted, distance_from_orthogonal, layers, tuner_of
from safetensors.torch import load_file
from trials import injected, on_a_layer, trainable

STEPS = 10
OPTIONS: dict[str, Any] = {"init_r": 6, "target_r": 2, "tinit": 3, "tfinal": 3, "parts": ("attention.q", "mlp.down")}


def run(folder: Path, rows: Path, output: Path, **keys: Any) -> Path:
    """A run in `output`, a checkpoint after each step."""
    given = {"steps": STEPS, "lr": 1e-2, "batch_size": 4, "save_every": 1, "keep": 99, "precision": "fp32"}
    ftcore.run(
        method=AdaLoRA(**OPTIONS), task="causal", model="qwen", checkpoint=folder, data=rows, output=output,
        **(given | keys),
    )  # fmt: skip
    return output


@pytest.fixture(scope="module")
def finished(checkpoint: Callable[..., Path], rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    return run(checkpoint("qwen2"), rows, tmp_path_factory.mktemp("adalora") / "run")


def test_the_update_is_the_published_formula() -> None:
    """h = W x + b + (alpha / init_r) B (E * A) x; PEFT divides by init_r + 1e-5."""
    model, weight, bias = on_a_layer("adalora", init_r=4, target_r=2, alpha=6)
    trained = {name.split(".")[-2]: p for name, p in trainable(model).items()}
    assert {name: tuple(p.shape) for name, p in trained.items()} == {
        "lora_A": (4, 5), "lora_B": (7, 4), "lora_E": (4, 1),
    }  # fmt: skip
    given = torch.randn(3, 5)
    assert torch.equal(model(given), given @ weight.T + bias)
    torch.nn.init.normal_(trained["lora_E"])
    update = trained["lora_B"] @ torch.diag(trained["lora_E"].flatten()) @ trained["lora_A"]
    assert torch.allclose(model(given), given @ (weight + 6 / 4 * update).T + bias, atol=1e-5)


def test_the_distance_from_orthogonal_is_the_published_regulariser() -> None:
    model, _, _ = on_a_layer("adalora", init_r=3, target_r=1)
    p = {name.split(".")[-2]: p.detach() for name, p in trainable(model).items()}
    a, b = p["lora_A"], p["lora_B"]
    squares = [sum(((m - torch.eye(3)) ** 2).flatten().tolist()) for m in (a @ a.T, b.T @ b)]
    assert distance_from_orthogonal(tuner_of(model)).item() == pytest.approx(sum(map(math.sqrt, squares)) / 2, rel=1e-5)


def test_triplets_train_in_every_chosen_module(checkpoint: Callable[..., Path]) -> None:
    found = injected("adalora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **OPTIONS)
    assert found.trainable == 2 * 6 * ((32 + 32 + 1) + (64 + 32 + 1))


def test_the_schedule_runs_over_the_steps_of_the_run(checkpoint: Callable[..., Path]) -> None:
    model = injected("adalora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), steps=200).model
    config = tuner_of(model).peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (200, 20, 100)
    assert [counted(0.25, 10), counted(0.0, 10), counted(1.0, 10), counted(7, 10)] == [2, 0, 1, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 12}, r"adalora\.target_r is 12 and adalora\.init_r 12"),
        ({"tinit": 4, "tfinal": 6}, r"take 4 \+ 6 of 10 steps, and ranks fall in none"),
        ({"tinit": 0.5, "tfinal": 0.5}, r"take 5 \+ 5 of 10 steps"),
        ({"beta1": 1.0}, r"option 'beta1' is 1"),
        ({"parts": ["embedding"]}, r"PEFT's ADALORA does not fit this model"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected("adalora", ftcore.load("qwen", checkpoint=checkpoint("qwen2")), **options)


def kept(folder: Path, step: int) -> int:
    """Ranks with an entry of E that is not zero, in the checkpoint after `step`."""
    (file,) = folder.glob(f"checkpoints/*{step}/adapter.safetensors")
    return sum(int(tensor.count_nonzero()) for name, tensor in load_file(file).items() if "lora_E" in name)


def test_ranks_stay_fall_and_stay_again(finished: Path) -> None:
    """Four modules of rank 6 are allowed 24 ranks for three steps, then fewer, and 8 from step 7 on."""
    found = [kept(finished, step) for step in range(1, STEPS + 1)]
    assert found[:3] == [24, 24, 24]
    assert found[3:7] == sorted(found[3:7], reverse=True)
    assert found[3] < 24
    assert found[6:] == [8, 8, 8, 8]


@pytest.mark.parametrize("cut", [2, 5, 7, 9], ids=["before", "between", "at the end of falling", "after"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    cut: int, finished: Path, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    (found,) = finished.glob(f"checkpoints/*{cut}")
    shutil.copytree(found, tmp_path / "run/checkpoints" / found.name)
    shutil.copy(finished / "ftcore.json", tmp_path / "run")
    resumed = run(checkpoint("qwen2"), rows, tmp_path / "run", resume=True)
    for file in ("adapter_model.safetensors", f"checkpoints/{found.name.replace(str(cut), str(STEPS))}"):
        wanted = finished / file
        for one in [wanted] if wanted.is_file() else wanted.glob("*.safetensors"):
            whole, broken = load_file(one), load_file(resumed / one.relative_to(finished))
            assert whole.keys() == broken.keys()
            assert [name for name, tensor in whole.items() if not torch.equal(tensor, broken[name])] == []
    assert (resumed / "adapter_config.json").read_bytes() == (finished / "adapter_config.json").read_bytes()


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT does not know its own pattern there
def test_the_adapter_holds_the_kept_ranks_and_loads_in_peft(finished: Path, checkpoint: Callable[..., Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tensors = load_file(finished / "adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_A", "lora_B", "lora_E"}
    assert sum(tensor.numel() for name, tensor in tensors.items() if "lora_E" in name) == 8
    ids = torch.arange(5, 25)[None]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint("qwen2")), finished)
    with torch.no_grad():
        wanted = ftcore.attach(finished).model(ids).logits
        assert torch.allclose(plain.eval()(input_ids=ids).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_it_merges_whole_and_by_blocks(
    stream: bool, finished: Path, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 25)[None]
    merged = AutoModelForCausalLM.from_pretrained(ftcore.merge(finished, output=tmp_path / "merged", stream=stream))
    with torch.no_grad():
        wanted = ftcore.attach(finished).model(ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-5)


def test_every_adapted_layer_remembers_in_buffers_that_checkpoints_hold() -> None:
    model, _, _ = on_a_layer("adalora", init_r=3, target_r=1)
    (layer,) = layers(tuner_of(model)).values()
    names = [f"{what}_{letter}" for letter in "ABE" for what in ("sensitivity", "uncertainty")]
    assert {f"base_model.model.0.{name}" for name in [*names, "kept"]} <= model.state_dict().keys()
    assert layer.kept.all()


@method_checks(AdaLoRA())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
