"""Pretrained-weight masking (Zhao et al. 2020, arXiv:2004.12406; Mallya et al. 2018, arXiv:1801.06519)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Adapter, Loaded, OnModules, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor, nn


@options
class Mask(OnModules):
    """W' = W * M with M = 1[S >= threshold]: scores S learn which frozen weights stay, dL/dS = dL/dM."""

    suggested_lr: ClassVar[float] = 1e-4

    parts: Annotated[
        tuple[str, ...], Field(description="Roles to mask, such as attention.q or mlp; ignored with target_modules.")
    ] = ("attention", "mlp")
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules to mask by name or ending, instead of by role.")
    ] = ()
    threshold: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="A weight is kept where its score is at least this.")
    ] = 1e-2
    initial_sparsity: Annotated[
        float, Field(ge=0, lt=1, description="Share of the weights, the smallest first, that start masked.")
    ] = 0.0

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with every chosen weight masked; with no initial sparsity it answers as before."""
        from ftcore.layers import own_matrix

        from ftcore_mask.layers import attach

        names = self.targets(run, model, loaded)
        weights = {name: own_matrix(model, name, "mask", "masked") for name in names}
        for name, weight in weights.items():
            attach(model.get_submodule(name), self.scores(run, weight), self.threshold)
        return model

    @hookimpl
    def save_adapter(self, model: nn.Module) -> Adapter:
        """The masks as packed bits, and the shape of each."""
        from ftcore_mask.layers import masked

        masks = dict(masked(model))
        shapes = {name: list(mask.scores.shape) for name, mask in masks.items()}
        tensors = {f"{name}.mask": mask.packed() for name, mask in masks.items()}
        return Adapter({"ftcore_methods": ["mask"], "shapes": shapes}, tensors)

    @hookimpl
    def load_adapter(self, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        """Every masked weight has the saved mask; one that is missing or of another shape is refused by name."""
        from ftcore_mask.layers import masked

        taken = set()
        for name, mask in masked(model):
            shape = tuple(mask.scores.shape)
            mask.unpack(saved_bits(adapter, name, shape))
            taken.add(f"{name}.mask")
        return frozenset(taken)

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model with zeros where its weights were masked, and nothing else changed."""
        from ftcore_mask.layers import detach

        detach(model)
        return model

    def scores(self, run: Run, weight: Tensor) -> Tensor:
        """Where the scores of a weight start; a plan has no weights to sort."""
        from ftcore_mask.layers import above, with_smallest_off

        scores = above(weight, self.threshold)
        if run.intent == "plan" or not self.initial_sparsity:
            return scores
        return with_smallest_off(scores, weight, self.initial_sparsity, self.threshold)


def saved_bits(adapter: Adapter, name: str, shape: tuple[int, ...]) -> Tensor:
    """The packed mask of module `name`; refused when it is missing or of another shape."""
    import math

    bits = adapter.tensors.get(f"{name}.mask")
    if bits is None:
        raise Refused(f"the saved adapter lacks tensor '{name}.mask'; it was made with other options")
    kept = tuple(adapter.config.get("shapes", {}).get(name, ()))
    if kept != shape or tuple(bits.shape) != (math.ceil(math.prod(shape) / 8),):
        raise Refused(f"tensor '{name}.mask' of the saved adapter is of a weight of shape {kept}, not {shape}")
    return bits
