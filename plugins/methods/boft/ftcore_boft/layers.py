"""A layer of BOFT in plain torch operations, in place of PEFT's, which compiles a CUDA kernel when it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft import BOFTConfig
from peft.tuners.boft import layer, model
from torch import Tensor, nn


class Butterfly(layer.Linear):  # type: ignore[misc]
    """h = s * (W (R x)) + bias with R = B_m … B_1."""

    def update_layer(self, adapter_name: str, config: BOFTConfig, **kwargs: Any) -> None:
        """The layer has its blocks, and each permutation as the order of its numbers instead of a square matrix."""
        super().update_layer(adapter_name, config, **kwargs)
        self.register_buffer("boft_P", self.boft_P.argmax(-1).to(self.boft_s[adapter_name].device), persistent=False)

    def rotation(self, adapter: str, dropout: nn.Module) -> Tensor:
        """R, of which `dropout` may have made blocks the identity."""
        blocks = self.boft_R[adapter]
        turned = dropout(self.cayley_batch(blocks.flatten(0, 1)).view_as(blocks))
        product = torch.eye(self.in_features, device=blocks.device)
        for order, factor in zip(self.boft_P, turned, strict=True):
            product = torch.block_diag(*factor)[order][:, order] @ product
        return product

    def get_delta_weight(self, adapter: str) -> tuple[Tensor, Tensor]:
        """R, and s as a column."""
        return self.rotation(adapter, nn.Identity()), self.boft_s[adapter]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's answer to what R makes of `x`, scaled by s before the bias is added."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (adapter,) = self.active_adapters
        rotation, scale = self.rotation(adapter, self.boft_dropout[adapter]), self.boft_s[adapter]
        answer = self.base_layer(x @ rotation.to(x.dtype), *args, **kwargs)
        bias = 0 if self.base_layer.bias is None else self.base_layer.bias
        return ((answer - bias) * scale.squeeze(-1) + bias).to(x.dtype)


@contextmanager
def butterflies() -> Iterator[None]:
    """Inside, PEFT makes these layers, with as many factors as were asked for, and compiles nothing."""
    with patch.object(model, "Linear", Butterfly), patch.object(layer, "get_fbd_cuda", return_value=True):
        yield
