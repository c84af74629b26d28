"""A low-rank update of chosen weights, from scratch: the whole of a method that somebody else publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Loaded, Refused, hookimpl, options
from ftcore.adapters import select
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor, nn


@options
class TinyLoRA:
    """W + B A with A of shape (rank, in) and B of shape (out, rank), held by torch's own parametrizations."""

    suggested_lr: ClassVar[float] = 1e-3

    rank: Annotated[int, Field(ge=1, description="Rank of the update.")] = 4
    parts: Annotated[tuple[str, ...], Field(description="Roles to adapt, such as attention.q or mlp.")] = ("attention",)

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with every chosen weight parametrized; it answers as before, because B is zero."""
        from torch.nn.utils.parametrize import register_parametrization

        every = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
        for name in select(loaded.parts, self.parts):
            weight = model.get_parameter(f"{name}.weight")
            if weight.ndim != 2 or every.count(id(weight)) > 1:
                raise Refused(f"'{name}' has no matrix of its own to update; choose parts without its role")
            register_parametrization(model.get_submodule(name), "weight", low_rank(weight, self.rank))
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model with every updated weight in place of the parametrized one."""
        from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

        for module in [module for module in model.modules() if is_parametrized(module, "weight")]:
            remove_parametrizations(module, "weight")
        return model


def low_rank(weight: Tensor, rank: int) -> nn.Module:
    """A module that adds B A to `weight`; A is random and B is zero."""
    import torch

    class LowRank(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.nn.init.kaiming_uniform_(weight.new_empty(rank, weight.shape[1]).float()))
            self.b = torch.nn.Parameter(weight.new_zeros(weight.shape[0], rank).float())

        def forward(self, weight: Tensor) -> Tensor:
            return weight + (self.b @ self.a).to(weight.dtype)

    return LowRank()
