"""What only ftcore-tinylora can get wrong: how it begins, what trains, and what is merged or refused."""

from __future__ import annotations

import pytest
import torch
from ftcore import Loaded, Refused
from torch import nn

from ftcore_tinylora import TinyLoRA


def adapted() -> tuple[nn.Sequential, nn.Sequential]:
    """A model and what tinylora makes of a copy of it, on its first layer."""
    torch.manual_seed(0)
    plain, model = (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    model.requires_grad_(False)
    loaded = Loaded(model, None, {"mlp": ("0",)}, "", 0, 0)
    TinyLoRA(rank=2, parts=("mlp",)).inject_adapter(model=model, loaded=loaded)
    return plain, model


def test_the_adapted_model_begins_as_its_base() -> None:
    plain, model = adapted()
    x = torch.randn(3, 6)
    assert torch.equal(plain(x), model(x))


def test_only_the_update_trains() -> None:
    _, model = adapted()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (6 + 5)


def test_the_merged_model_is_plain_and_answers_the_same() -> None:
    plain, model = adapted()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    x = torch.randn(3, 6)
    wanted = model(x)
    assert not torch.equal(wanted, plain(x))
    merged = TinyLoRA().merge(model=model)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert type(merged.get_submodule("0")) is nn.Linear
    assert torch.allclose(merged(x), wanted, atol=1e-6)


@pytest.mark.parametrize("part", ["shared", "norm"])
def test_a_weight_that_could_not_be_merged_is_refused(part: str) -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 7))
    model[2].weight = model[0].weight
    loaded = Loaded(model, None, {"shared": ("2",), "norm": ("1",)}, "", 0, 0)
    with pytest.raises(Refused, match="choose parts without its role"):
        TinyLoRA(parts=(part,)).inject_adapter(model=model, loaded=loaded)
