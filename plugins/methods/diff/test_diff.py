"""Diff pruning adds a sparse difference, gated by hard-concrete gates while it trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from accelerate import Accelerator
from ftcore import Adapter
from ftcore.hooks import Batch, Run
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore_diff import Diff
from ftcore_diff.layers import expected_count
from safetensors.torch import load_file
from torch import Tensor, nn
from trials import WITHOUT_A_MATRIX, awkward, check_a_copy_is_its_own, injected, on_a_layer, trainable

GAMMA, ZETA = -1.5, 1.5
RUN = Run(Settings(max_grad_norm=0), "train", "")


def changed(rows: int = 7, columns: int = 5, **options: Any) -> tuple[nn.Sequential, Tensor, dict[str, nn.Parameter]]:
    """A linear layer with a difference, its pretrained weight, and what trains, by the last part of its name."""
    model, weight, _ = on_a_layer("diff", columns, rows, **options)
    return model, weight, by_last_word(model)


def by_last_word(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains in the only layer."""
    return {name.rpartition(".")[2]: parameter for name, parameter in trainable(model).items()}


def gate(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The published hard-concrete gate, with temperature 1."""
    s = 1 / (1 + torch.exp(-(torch.log(uniform) - torch.log(1 - uniform) + log_alpha)))
    return torch.clamp(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def grid(size: int = 200_001) -> Tensor:
    """Evenly spread numbers in (0, 1), over which a mean is an integral."""
    return (torch.arange(size, dtype=torch.float64) + 0.5) / size


@torch.no_grad()
def scattered(trained: dict[str, nn.Parameter]) -> None:
    """Whatever trains is random, and gates are open, shut and in between."""
    for parameter in trained.values():
        parameter.normal_(std=2.0)


@pytest.mark.parametrize("structured", [False, True])
def test_in_evaluation_the_weight_is_the_published_sum(structured: bool) -> None:
    model, weight, trained = changed(structured=structured)
    scattered(trained)
    wanted = weight.double().clone()
    group = 1.0
    if structured:
        s = 1 / (1 + math.exp(-float(trained["group_gate"].detach())))
        group = min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA))
    for row in range(7):
        for column in range(5):
            s = 1 / (1 + math.exp(-float(trained["gates"][row * 5 + column].detach())))
            z = min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA))
            wanted[row, column] += group * z * float(trained["difference"][row, column].detach())
    given = torch.randn(3, 5)
    said = model.eval()(given)
    assert torch.allclose(said.double(), given.double() @ wanted.T + model[0].bias.double(), atol=1e-5)
    assert torch.equal(model(given), said)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.0, 5.0])
def test_drawn_gates_are_distributed_as_published(log_alpha: float) -> None:
    """The shares of zeros and ones, and the mean, of 160,000 drawn gates, against integrals over u."""
    model, weight, trained = changed(400, 400)
    with torch.no_grad():
        trained["gates"].fill_(log_alpha)
        trained["difference"].fill_(1.0)
        z = (model.train()[0].weight - weight).double()
    wanted = gate(torch.tensor(log_alpha, dtype=torch.float64), grid())
    for found, integral in [
        (z < 1e-5, wanted == 0), (z > 1 - 1e-5, wanted == 1), (z, wanted), (z**2, wanted**2),
    ]:  # fmt: skip
        assert abs(float(found.double().mean()) - float(integral.double().mean())) < 5e-3


def test_the_expected_number_of_changes_is_the_integral_of_open_gates() -> None:
    model, _, trained = changed()
    scattered(trained)
    gates = trained["gates"].detach().double()
    wanted = sum(float((gate(one, grid()) > 0).double().mean()) for one in gates)
    assert float(expected_count(model).detach()) == pytest.approx(wanted, abs=1e-3)
    assert wanted == pytest.approx(float(torch.sigmoid(gates - math.log(-GAMMA / ZETA)).sum()), abs=1e-3)


def test_with_a_gate_for_the_matrix_the_expected_number_is_that_of_both_open() -> None:
    model, weight, trained = changed(structured=True)
    scattered(trained)
    with torch.no_grad():
        trained["group_gate"].fill_(0.5)
        trained["difference"].fill_(1.0)
        model.train()
        drawn = [float(((model[0].weight - weight).abs() > 1e-6).sum()) for _ in range(4000)]
    mean = sum(drawn) / len(drawn)
    assert float(expected_count(model).detach()) == pytest.approx(mean, rel=0.05)


def test_gates_and_differences_get_the_gradient_of_the_drawn_sum() -> None:
    model, _, trained = changed()
    scattered(trained)
    torch.manual_seed(3)
    pull = torch.randn(7, 5)
    torch.manual_seed(4)
    (model.train()[0].weight * pull).sum().backward()
    torch.manual_seed(4)
    uniform = torch.rand(35).double().clamp(1e-4, 1 - 1e-4)
    gates = trained["gates"].detach().double().requires_grad_()
    difference = trained["difference"].detach().double().requires_grad_()
    (gate(gates, uniform).reshape(7, 5) * difference * pull).sum().backward()
    for mine, wanted in [(trained["gates"], gates), (trained["difference"], difference)]:
        assert mine.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(mine.grad.double(), wanted.grad, atol=1e-4)
    s = torch.sigmoid(torch.logit(uniform) + gates.detach())
    between = (gate(gates.detach(), uniform) > 0) & (gate(gates.detach(), uniform) < 1)
    by_hand = between * (ZETA - GAMMA) * s * (1 - s) * (difference.detach() * pull).flatten()
    assert torch.allclose(gates.grad, by_hand)


def square_sum(model: nn.Module, batch: Batch) -> Tensor:
    """A loss that is a sum over the rows of a batch."""
    return model(batch.inputs["x"]).square().sum()


def batch_of(rows: int) -> Batch:
    """Rows of random numbers."""
    return Batch({"x": torch.randn(rows, 5)}, {}, float(rows), rows)


def step(plugin: Diff, model: nn.Module, number: int, batches: list[Batch], run: Run = RUN) -> float:
    """One step with the plugin's own optimizer, and its gradients kept."""
    optimizer = plugin.create_optimizer(run, model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group["lr_ratio"]
    accelerator = Accelerator(cpu=True)
    return plugin.train_step(run, number, model.train(), batches, square_sum, optimizer, accelerator)


def test_the_penalty_pulls_at_the_gates_and_is_not_in_the_reported_loss() -> None:
    plugin = Diff(target_modules=("0",), l0_weight=0.5)
    model, _, trained = changed()
    batches = [batch_of(2), batch_of(6)]
    plain = sum(float(square_sum(model, batch).detach()) for batch in batches) / 8
    assert step(plugin, model, 5, batches) == pytest.approx(plain)
    assert trained["gates"].grad is not None
    open_at = 1 / (1 + math.exp(-5))
    assert torch.allclose(trained["gates"].grad, torch.full((35,), 0.5 * open_at * (1 - open_at)), rtol=1e-4)


def test_all_micro_batches_of_a_step_see_the_same_gates_and_the_next_step_others() -> None:
    plugin = Diff(target_modules=("0",))
    whole, halves, later = (copy.deepcopy(one) for one in [_shaken_model()] * 3)
    one, other = batch_of(4), batch_of(4)
    both = Batch({"x": torch.cat([one.inputs["x"], other.inputs["x"]])}, {}, 8.0, 8)
    step(plugin, whole, 2, [both])
    step(plugin, halves, 2, [one, other])
    step(plugin, later, 3, [both])
    gradients = [dict(model.named_parameters())["0.parametrizations.weight.0.gates"].grad for model in
                 (whole, halves, later)]  # fmt: skip
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)
    assert not torch.allclose(gradients[0], gradients[2], atol=1e-4)


def _shaken_model() -> nn.Module:
    model, _, trained = changed()
    scattered(trained)
    return model


@pytest.mark.parametrize("structured", [False, True])
def test_the_start_is_the_base_bit_for_bit(structured: bool) -> None:
    model, weight, _ = changed(structured=structured)
    assert torch.equal(model.train()[0].weight, weight)
    assert torch.equal(model.eval()[0].weight, weight)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)),
        ({"structured": True}, 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 14),
        ({"parts": ["mlp.up", "attention.k"]}, 2 * 2 * (32 * 64 + 32 * 16)),
        ({"target_modules": ["layers.1.self_attn.q_proj"]}, 2 * 32 * 32),
    ],
)
def test_two_numbers_train_for_each_chosen_weight(
    options: dict[str, Any], count: int, checkpoint: Callable[..., Path]
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    assert injected("diff", loaded, **options).trainable == count


def test_the_gates_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    model, _, trained = changed(structured=True)
    run = Run(Settings(weight_decay=0.1), "train", "")
    groups = Diff(gate_lr_ratio=7.0).create_optimizer(run, model).param_groups
    told = {id(p): (group["lr_ratio"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert told[id(trained["difference"])] == (1.0, 0.1)
    assert told[id(trained["gates"])] == told[id(trained["group_gate"])] == (7.0, 0.0)


def test_pruning_keeps_the_largest_changes_of_all_matrices_and_no_other_comes_back() -> None:
    base = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 5, bias=False))
    loaded = ftcore.Loaded(base.requires_grad_(False), None, {}, "", 0, 0)
    plugin = Diff(target_modules=("0", "1"), density=0.1, fixed_share=0.5)
    model = plugin.inject_adapter(RUN, base, loaded, 4)
    named = trainable(model)
    with torch.no_grad():
        for name, parameter in named.items():
            if name.endswith("difference"):
                parameter.normal_(std=0.5 if name.startswith("0") else 1.0)
    step(plugin, model, 1, [batch_of(3)])
    assert all((layer.effective() != 0).all() for layer in layers(model))
    before = torch.cat([layer.effective().abs() for layer in layers(model)])
    step(plugin, model, 2, [batch_of(3)])
    kept = torch.cat([layer.effective() != 0 for layer in layers(model)])
    assert int(kept.sum()) == 6
    moved = before[kept].min() - before[~kept].max()
    assert float(moved) > -0.05  # the step before the pruning moves each by 0.01
    step(plugin, model, 3, [batch_of(3)])
    step(plugin, model, 4, [batch_of(3)])
    after = torch.cat([layer.effective() for layer in layers(model)])
    assert torch.equal(after != 0, kept)
    assert torch.equal(model.train()[0].weight, model.eval()[0].weight)


def layers(model: nn.Module) -> list[Any]:
    """What holds the differences."""
    return [module for module in model.modules() if type(module).__name__ == "WeightDiff"]


def test_a_run_keeps_indices_and_values_and_merges_to_their_sum(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2")
    ftcore.run(
        method="diff", task="causal", model="qwen", checkpoint=folder, data=rows, steps=4, lr=1e-3, output=tmp_path,
        diff={"density": 0.01},
    )  # fmt: skip
    saved, base = load_file(tmp_path / "adapter_model.safetensors"), load_file(folder / "model.safetensors")
    places = {name.removesuffix(".indices"): t for name, t in saved.items() if name.endswith(".indices")}
    assert {f"{name}.{kind}" for name in places for kind in ("indices", "values")} == saved.keys()
    assert {t.dtype for t in places.values()} == {torch.int32}
    total = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert sum(len(t) for t in places.values()) == round(0.01 * total)
    ids = torch.arange(5, 25)[None]
    model = ftcore.attach(tmp_path).model
    ftcore.merge(tmp_path, output=tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in base.items():
        wanted = tensor.clone()
        module = name.removesuffix(".weight")
        if module in places:
            wanted.view(-1)[places[module].long()] += saved[f"{module}.values"]
        assert torch.equal(merged[name], wanted)
    assert not torch.equal(model(ids).logits, ftcore.load("qwen", checkpoint=folder).model.eval()(ids).logits)


def test_loaded_again_it_answers_the_same_whether_pruned_or_not() -> None:
    model, weight, trained = changed(structured=True)
    scattered(trained)
    with torch.no_grad():
        trained["group_gate"].fill_(1.0)
    adapter = Diff().save_adapter(model)
    again, _, _ = changed()
    assert Diff().load_adapter(again, adapter) == {"0.indices", "0.values"}
    given = torch.randn(3, 5)
    assert torch.equal(again.eval()(given), model.eval()(given))
    assert torch.equal(again.train()(given), model.eval()(given))
    merged = Diff().merge(model.train())
    assert type(merged[0]) is nn.Linear
    assert torch.equal(merged(given), again(given))
    assert not torch.equal(merged[0].weight, weight)


@pytest.mark.parametrize(
    ("shape", "changes", "indices", "values", "message"),
    [
        ([5, 7], 2, [0, 1], [1.0, 2.0], r"changes no '0' of shape \(7, 5\)"),
        ([7, 5], 2, None, [1.0, 2.0], r"has no '0\.indices' of 2 numbers"),
        ([7, 5], 2, [0, 1], [1.0], r"has no '0\.values' of 2 numbers"),
        ([7, 5], 2, [0, 35], [1.0, 2.0], r"'0\.indices' of the saved adapter point outside"),
        ([7, 5], 2, [-1, 3], [1.0, 2.0], r"point outside"),
    ],
)
def test_another_adapter_is_refused(
    shape: list[int], changes: int, indices: list[int] | None, values: list[float], message: str
) -> None:
    model, _, _ = changed()
    tensors = {"0.values": torch.tensor(values)}
    if indices is not None:
        tensors["0.indices"] = torch.tensor(indices, dtype=torch.int32)
    with pytest.raises(ftcore.Refused, match=message):
        Diff().load_adapter(model, Adapter({"matrices": {"0": {"shape": shape, "changes": changes}}}, tensors))


def test_in_half_precision_what_trains_is_float32_and_the_sum_is_rounded_once() -> None:
    model, weight, _ = on_a_layer("diff", dtype=torch.bfloat16)
    trained = by_last_word(model)
    with torch.no_grad():
        trained["difference"].normal_()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert torch.equal(model.eval()[0].weight, (weight.float() + trained["difference"]).bfloat16())


def test_a_copy_of_the_model_has_its_own_differences() -> None:
    model, _, trained = changed()
    scattered(trained)
    check_a_copy_is_its_own(model, trained["difference"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["2"]}, r"'2' shares its weight with '0\.weight', so it cannot be changed"),
        *WITHOUT_A_MATRIX,
        ({"density": 0}, r"option 'density' is 0"),
        ({"density": 1.5}, r"option 'density' is 1\.5"),
        ({"fixed_share": 1.0}, r"option 'fixed_share' is 1\.0"),
        ({"l0_weight": "inf"}, r"option 'l0_weight' is"),
        ({"gate_lr_ratio": -1}, r"option 'gate_lr_ratio' is -1"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        ftcore.inject(awkward(), method="diff", **options)


@method_checks(Diff())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
