"""Diff pruning (Guo, Rush and Kim 2020, arXiv:2012.07463): a sparse difference to the pretrained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Adapter, Loaded, OnModules, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from accelerate import Accelerator
    from ftcore.hooks import Batch
    from torch import Tensor, nn
    from torch.optim import Optimizer


@options
class Diff(OnModules):
    """W' = W + z * w: hard-concrete gates z in [0, 1] and differences w train, and the largest z * w are kept."""

    suggested_lr: ClassVar[float] = 1e-3
    excused: ClassVar[Mapping[str, str]] = {
        "check_reports_its_loss": "each step draws its gates anew, so that the same rows have another loss in it"
    }

    parts: Annotated[
        tuple[str, ...], Field(description="Roles to change, such as attention.q or mlp; ignored with target_modules.")
    ] = ("attention", "mlp")
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules to change by name or ending, instead of by role.")
    ] = ()
    density: Annotated[
        float, Field(gt=0, le=1, description="Share of the weights in the chosen modules that end up changed.")
    ] = 0.005
    structured: Annotated[
        bool,
        Field(description="Multiply the gates of a matrix by one more, so that all of it can be left out."),
    ] = False
    l0_weight: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Weight of the expected number of changes in the loss.")
    ] = 1.25e-7
    gate_lr_ratio: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Learning rate of the gates over that of the differences.")
    ] = 100.0
    fixed_share: Annotated[
        float, Field(ge=0, lt=1, description="Share of the steps, the last ones, that train what is kept and no other.")
    ] = 0.75

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, steps: int) -> nn.Module:
        """The model with a difference, still zero, added to every chosen weight."""
        from ftcore.layers import own_matrix

        from ftcore_diff.layers import attach

        fixed_after = steps - int(self.fixed_share * steps)
        names = self.targets(run, model, loaded)
        weights = {name: own_matrix(model, name, "change", "changed") for name in names}
        for name, weight in weights.items():
            attach(model.get_submodule(name), weight, self.structured, fixed_after)
        return model

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer:
        """AdamW with a learning rate of their own for the gates."""
        import torch
        from ftcore.training import adam_settings, parameter_groups

        def ratio(name: str) -> float:
            return self.gate_lr_ratio if name.endswith((".gates", ".group_gate")) else 1.0

        return torch.optim.AdamW(parameter_groups(model, run.settings, ratio), **adam_settings(run.settings))

    @hookimpl
    def train_step(
        self,
        run: Run,
        step: int,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: Optimizer,
        accelerator: Accelerator,
    ) -> float:
        """One step on the loss with its L0 penalty, with one draw of the gates; what is small is pruned when due."""
        from ftcore.seeds import mix
        from ftcore.training import Core

        from ftcore_diff.layers import differences, expected_count, prune

        def penalised(model: nn.Module, batch: Batch) -> Tensor:
            count = expected_count(model)
            return loss(model, batch) + self.l0_weight * batch.weight * (count - count.detach())

        layers = [layer for _, layer in differences(model)]
        for number, layer in enumerate(layers):
            layer.seed = mix(run.settings.seed, "gates", step, number)
        mean = Core().train_step(run, step, model, batches, penalised, optimizer, accelerator)
        if step == layers[0].fixed_after:
            prune(model, self.density)
        return mean

    @hookimpl
    def save_adapter(self, model: nn.Module) -> Adapter:
        """Where each weight is changed, in the flattened matrix, and by how much."""
        from ftcore_diff.layers import differences

        tensors: dict[str, Tensor] = {}
        matrices: dict[str, object] = {}
        for name, layer in differences(model):
            places, values = changes(layer.effective())
            matrices[name] = {"shape": list(layer.difference.shape), "changes": len(places)}
            if len(places):
                tensors |= {f"{name}.indices": places, f"{name}.values": values}
        return Adapter({"ftcore_methods": ["diff"], "matrices": matrices}, tensors)

    @hookimpl
    def load_adapter(self, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        """Every weight is changed as saved; what is missing or of another shape is refused by name."""
        from ftcore_diff.layers import differences

        taken = set[str]()
        for name, layer in differences(model):
            places, values = saved_changes(adapter, name, layer.difference)
            layer.give(places, values)
            taken |= {f"{name}.indices", f"{name}.values"}
        return frozenset(taken)

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model with the differences added to its weights."""
        from ftcore_diff.layers import detach

        detach(model)
        return model


def changes(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values of what is not zero, the places in the smallest integers that hold them."""
    import torch

    places = difference.nonzero().flatten()
    small = difference.numel() <= torch.iinfo(torch.int32).max
    return places.to(torch.int32 if small else torch.int64), difference[places]


def saved_changes(adapter: Adapter, name: str, difference: Tensor) -> tuple[Tensor, Tensor]:
    """The saved places and values of module `name`; refused when they are missing or do not fit its weight."""
    import torch

    matrix = adapter.config.get("matrices", {}).get(name, {})
    if matrix.get("shape") != list(difference.shape):
        raise Refused(f"the saved adapter changes no '{name}' of shape {tuple(difference.shape)}; its options differ")
    if not matrix["changes"]:
        return torch.empty(0, dtype=torch.int64, device=difference.device), difference.new_empty(0)
    found = [adapter.tensors.get(f"{name}.{kind}") for kind in ("indices", "values")]
    for kind, tensor in zip(("indices", "values"), found, strict=True):
        if tensor is None or tuple(tensor.shape) != (matrix["changes"],):
            raise Refused(f"the saved adapter has no '{name}.{kind}' of {matrix['changes']} numbers; it is damaged")
    places, values = (tensor.to(difference.device) for tensor in found if tensor is not None)
    if places.min() < 0 or places.max() >= difference.numel():
        raise Refused(f"'{name}.indices' of the saved adapter point outside of its weight; it is damaged")
    return places.long(), values.to(difference.dtype)
