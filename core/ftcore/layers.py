"""What methods put in the place of a base's layers and weights; imported where torch is in use already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from ftcore.errors import Refused

Made = TypeVar("Made", bound=nn.Module)


class Around(nn.Module):
    """A module in the place of a linear layer, which is its `base`."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base

    @property
    def weight(self) -> Tensor:
        """The base's weight, which some models look at for its number format."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = self.base.bias
        return bias


def own_matrix(model: nn.Module, name: str, act: str, acted: str) -> Tensor:
    """The weight matrix of module `name`; refused when it has none, shares it, or keeps it quantised.

    `act` and `acted` say what the method does to it: `change` and `changed`.
    """
    held = dict(model.get_submodule(name).named_parameters())
    weight = held.get("weight", held.get("parametrizations.weight.original"))
    if weight is None or weight.ndim != 2:
        raise Refused(f"module '{name}' has no weight matrix to {act}; choose parts or target_modules without it")
    if not weight.is_floating_point():
        raise Refused(f"module '{name}' keeps its weight quantised ({weight.dtype}); take a base that is not quantised")
    places = [other for other, one in model.named_parameters(remove_duplicate=False) if one is weight]
    if len(places) > 1:
        other = next(place for place in places if not place.startswith(f"{name}."))
        raise Refused(f"module '{name}' shares its weight with '{other}', so it cannot be {acted}; leave it out")
    return weight


def makers(model: nn.Module, kind: type[Made]) -> Iterator[tuple[str, Made]]:
    """Every parametrization of that kind, by the name of the module whose weight it makes."""
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name.rpartition(".parametrizations.")[0], module


def settle(model: nn.Module, kind: type[nn.Module]) -> None:
    """Every weight that such a parametrization makes is a plain one, with the values it has in evaluation."""
    for name, maker in list(makers(model, kind)):
        module = model.get_submodule(name)
        maker.eval()
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight")
