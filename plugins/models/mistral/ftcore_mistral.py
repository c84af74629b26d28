"""Mistral (Jiang et al. 2023, arXiv:2310.06825) and Mixtral (arXiv:2401.04088), in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import LLAMA_ROLES, HFModel


@options
class Mistral(HFModel):
    """Decoders of the types mistral and mixtral.

    Mixtral's experts are tensors of three dimensions in one module: a role of their own names it, and none of an mlp.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral", "mixtral")
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {"mixtral": {"num_local_experts": 4}}
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        "experts": "model.layers.*.mlp.experts",
        "router": "model.layers.*.mlp.gate",
    }
