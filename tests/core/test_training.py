"""A step depends on the rows and not on how they are cut, its rate follows a known schedule, its numbers are finite."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import ftcore
import pytest
import torch
from ftcore.checkpoints import Store
from ftcore.hooks import Batch, Data, Loaded, Run, hookimpl
from ftcore.settings import Settings
from ftcore.training import adam_settings, adamw, learning_rate, parameter_groups
from ftcore_causal import Causal
from ftcore_full import Full
from safetensors.torch import load_file, save_file
from torch import nn


def losses(output: Path) -> list[float]:
    """The logged loss of every step."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four rows whose answers have from one word to sixty."""
    file = tmp_path_factory.mktemp("uneven") / "rows.jsonl"
    words = [1, 60, 2, 5, 30, 1, 1, 45]
    with file.open("w", encoding="utf-8") as out:
        for i in range(64):
            answer = " ".join(["rain", "ball", "door"][(i + j) % 3] for j in range(words[i % len(words)]))
            out.write(json.dumps({"instruction": f"Say {i}", "output": answer}) + "\n")
    return file


@pytest.mark.parametrize(
    ("packing", "whole", "size", "accumulate"),
    [("auto", 32, 4, 8), ("auto", 32, 1, 32), ("off", 64, 4, 16)],
)
def test_one_large_batch_trains_as_many_small_ones(
    packing: str, whole: int, size: int, accumulate: int, checkpoint: Callable[..., Path], uneven: Path, tmp_path: Path
) -> None:
    for name, cut in (("whole", {"batch_size": whole}), ("parts", {"batch_size": size, "accumulate": accumulate})):
        ftcore.run(
            method="lora", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=uneven, steps=5,
            output=tmp_path / name, lr=1e-3, log_every=1, packing=packing, warmup_steps=0, **cut,
        )  # fmt: skip
    at_once, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert len(losses(tmp_path / "whole")) == 5
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    for name, tensor in at_once.items():
        assert torch.allclose(parts[name], tensor, rtol=0, atol=1e-6), name


def test_recomputed_activations_change_no_number(checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    for recomputed in (True, False):
        ftcore.run(
            method="lora", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=4,
            output=tmp_path / str(recomputed), lr=1e-3, log_every=1, gradient_checkpointing=recomputed,
            lora={"dropout": 0.2},
        )  # fmt: skip
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-6)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("True", "False"))
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in other)


def test_in_bfloat16_the_adapter_trains_in_float32_and_learns_the_same(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    for precision in ("bf16", "fp32"):
        ftcore.run(
            method="lora", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=8,
            output=tmp_path / precision, lr=3e-3, log_every=1, precision=precision,
        )  # fmt: skip
    tensors = load_file(tmp_path / "bf16" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=2e-2)


def rates(settings: Settings, peak: float, steps: int) -> list[float]:
    """ftcore's learning rate at each step."""
    return [learning_rate(settings, peak, step, steps) for step in range(1, steps + 1)]


def rates_of_transformers(kind: str, peak: float, warmup: int, steps: int, **more: float) -> list[float]:
    """The learning rate with which HF Trainer takes each step."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_scheduler(kind, optimizer, warmup, steps, scheduler_specific_kwargs=more)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("steps", [1, 40, 53])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_a_schedule_is_that_of_transformers_at_every_step(kind: str, warmup: int, steps: int) -> None:
    theirs = "constant_with_warmup" if kind == "constant" else kind
    settings = Settings(schedule=kind, warmup_steps=warmup)
    found = rates(settings, 3e-4, steps)
    assert found == pytest.approx(rates_of_transformers(theirs, 3e-4, warmup, steps), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_cosine_ends_near_the_smallest_rate_as_in_transformers(ratio: float) -> None:
    found = rates(Settings(schedule="cosine", warmup_steps=5, min_lr_ratio=ratio), 3e-4, 60)
    wanted = rates_of_transformers("cosine_with_min_lr", 3e-4, 5, 60, min_lr_rate=ratio)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert min(found[5:]) >= ratio * 3e-4


def test_a_linear_schedule_falls_in_equal_steps_to_the_smallest_rate() -> None:
    found = rates(Settings(schedule="linear", warmup_steps=0, min_lr_ratio=0.2), 1.0, 10)
    assert found == pytest.approx([1 - 0.8 * step / 10 for step in range(10)])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (33, 0), (34, 1), (100, 3), (1000, 30)])
def test_without_a_number_the_warm_up_takes_at_most_three_percent_of_the_steps(steps: int, warmup: int) -> None:
    asked = Settings(schedule="cosine", warmup_steps=warmup)
    assert rates(Settings(schedule="cosine"), 1.0, steps) == rates(asked, 1.0, steps)


def test_the_rate_of_a_step_that_is_logged_is_the_rate_it_was_taken_with(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    ftcore.run(
        method="lora", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=6, output=tmp_path,
        lr=1e-3, log_every=1, warmup_steps=2,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line] == rates(Settings(warmup_steps=2), 1e-3, 6)


def test_only_tensors_of_two_or_more_dimensions_are_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2).requires_grad_(False))
    optimizer = adamw(model, Settings(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[id(p)] for name, p in model.named_parameters() if id(p) in decay}
    assert names == {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.95), 1e-6)}


def test_a_step_is_adamw_by_the_formula_with_clipping(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    """The first step of Adam moves each weight by lr · g / (|g| + eps) after decay; g is clipped to norm 1."""
    folder, rate, decay, eps = checkpoint("qwen2"), 1e-3, 0.1, 1e-3
    ftcore.run(
        method="full", task="causal", model="qwen", checkpoint=folder, data=rows, steps=1, output=tmp_path, lr=rate,
        weight_decay=decay, adam_epsilon=eps, schedule="constant", warmup_steps=0, batch_size=40,
    )  # fmt: skip
    loaded = ftcore.load("qwen", checkpoint=folder)
    data = Causal().prepare_data(Run(Settings(data=(str(rows),)), "train", "causal-lm"), loaded)
    batch = data.collate(data.train)
    (data.loss(loaded.model, batch) / batch.weight).backward()
    gradients = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert norm > 1
    trained = load_file(tmp_path / "adapter_model.safetensors")
    for name, before in loaded.model.named_parameters():
        clipped = gradients[name] / norm
        kept = 1 - rate * decay if before.ndim >= 2 else 1.0
        wanted = kept * before.detach() - rate * clipped / (clipped.abs() + eps)
        assert torch.allclose(trained[name], wanted, rtol=0, atol=2e-6), name


class Poisoned(Causal):
    """A third party's task whose loss stops being a number at one row."""

    @ftcore.hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """The rows of causal, with a loss of their own."""
        data = super().prepare_data(run, loaded)
        bad = data.train[17].place

        def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            return data.loss(model, batch) * (math.nan if bad in batch.places else 1.0)

        return replace(data, loss=loss)


def last_finite_step(output: Path) -> int:
    """The number of the last step saved; everything saved is finite."""
    found = Store(output / "checkpoints", 9).latest(lambda line: None)
    for group in found.tensors.values() if found else ():
        assert all(bool(tensor.isfinite().all()) for tensor in group.values())
    assert not (output / "README.md").exists()
    assert not (output / "adapter_model.safetensors").exists()
    return found.step if found else 0


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ftcore.FtcoreError, match=r"loss nan") as stopped:
        ftcore.run(
            method="lora", task=Poisoned(), model="qwen", checkpoint=checkpoint("qwen2"), data=rows, epochs=1,
            output=tmp_path, batch_size=2, save_every=1,
        )  # fmt: skip
    assert f"{rows}:18" in str(stopped.value)
    step = int(str(stopped.value).split()[1])
    assert last_finite_step(tmp_path) == step - 1
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_weight_stops_the_first_step_and_saves_nothing(
    value: float, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    poisoned = tmp_path / "base"
    shutil.copytree(checkpoint("qwen2"), poisoned)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, poisoned / "model.safetensors", {"format": "pt"})
    with pytest.raises(ftcore.FtcoreError, match=r"step 1 gave loss .*rows\.jsonl:\d+"):
        ftcore.run(
            method="lora", task="causal", model="qwen", checkpoint=poisoned, data=rows, steps=3,
            output=tmp_path / "out", save_every=1,
        )  # fmt: skip
    assert last_finite_step(tmp_path / "out") == 0


class Idle(Full):
    """A third party's method with a tensor that the forward pass never reaches."""

    @ftcore.hookimpl
    def inject_adapter(self, model: nn.Module) -> nn.Module:
        """The last norm trains, and so does one tensor too many."""
        model.model.norm.requires_grad_(True)
        model.model.layers[1].forgotten = nn.Parameter(torch.zeros(3))
        return model


def test_a_trainable_tensor_without_gradient_is_refused_by_name_after_step_one(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ftcore.Refused, match=r"no gradient in step 1, the first is 'model\.layers\.1\.forgotten'"):
        ftcore.run(
            method=Idle(), task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=3,
            output=tmp_path, save_every=1,
        )  # fmt: skip
    assert last_finite_step(tmp_path) == 0


def test_a_parameters_learning_rate_may_be_a_multiple_of_the_schedules() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    groups = parameter_groups(model, Settings(weight_decay=0.1), lambda name: 16.0 if name.startswith("1") else 1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr_ratio"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {"0.weight": (1.0, 0.1), "0.bias": (1.0, 0.0), "1.weight": (16.0, 0.0), "1.bias": (16.0, 0.0)}


class OwnOptimizer(Full):
    """A third party's method that brings plain gradient descent, with a rate of its own for the head."""

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> torch.optim.Optimizer:
        """Gradient descent without momentum."""
        groups = parameter_groups(model, run.settings, lambda name: 0.0 if name.startswith("lm_head") else 1.0)
        return torch.optim.SGD(groups, lr=adam_settings(run.settings)["lr"])


def test_a_method_may_bring_its_optimizer_and_the_schedule_still_holds(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    """One step of gradient descent moves a weight by the rate times its gradient, here clipped to norm 1."""
    ftcore.run(
        method=OwnOptimizer(), task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=1,
        output=tmp_path, lr=0.5, schedule="constant", warmup_steps=0,
    )  # fmt: skip
    files = (checkpoint("qwen2") / "model.safetensors", tmp_path / "adapter_model.safetensors")
    before, after = map(load_file, files)
    moved = {name: (after[name] - before[name]).double() for name in before}
    assert not moved["lm_head.weight"].any()
    length = math.sqrt(sum(float(change.square().sum()) for change in moved.values()))
    assert 0.1 < length <= 0.5 + 1e-6


class OtherOptimizer(OwnOptimizer):
    """Another one."""

    alone = ""


def test_two_optimizers_are_refused_by_name(checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    class Extension:
        """An extension that brings an optimizer too."""

        @hookimpl
        def create_optimizer(self, run: Run, model: nn.Module) -> torch.optim.Optimizer:
            """AdamW."""
            return adamw(model, run.settings)

    with pytest.raises(ftcore.Refused, match=r"'ownoptimizer' and extension 'extension' each bring an optimizer"):
        ftcore.run(
            method=OwnOptimizer(), task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=1,
            output=tmp_path, **{"with": [Extension()]},
        )  # fmt: skip


class Unpackable(Full):
    """A third party's method under which rows cannot be laid end to end."""

    unpackable = "it puts something before every row"

    @hookimpl(wrapper=True)
    def train_step(self, batches: Sequence[Batch]) -> Generator[None, float, float]:
        """What it gets is padded."""
        assert all({"attention_mask", "input_ids"} <= batch.inputs.keys() for batch in batches)
        assert all("cu_seq_lens_q" not in batch.inputs for batch in batches)
        return (yield)


def test_a_method_that_says_so_gets_padded_rows(checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    keys = {"task": "causal", "model": "qwen", "checkpoint": checkpoint("qwen2"), "data": rows, "steps": 2}
    assert not ftcore.plan(method=Unpackable(), **keys).packed
    assert ftcore.plan(method=Full(), **keys).packed
    ftcore.run(method=Unpackable(), output=tmp_path, **keys)


class Unfit(Full):
    """A third party's method that finds out when it injects that it cannot adapt the model."""

    @hookimpl
    def inject_adapter(self, model: nn.Module) -> nn.Module:
        """Refused always."""
        raise ftcore.Refused("this model has no such thing; use another method")


def test_what_cannot_be_adapted_is_refused_before_a_weight_is_read(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "base"))
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ftcore.Refused, match="this model has no such thing; use another method"):
        ftcore.run(method=Unfit(), task="causal", model="qwen", checkpoint=folder, data=rows, output=tmp_path / "run")
    with pytest.raises(ftcore.Refused, match="cannot be read"):
        ftcore.run(method="full", task="causal", model="qwen", checkpoint=folder, data=rows, output=tmp_path / "run")
