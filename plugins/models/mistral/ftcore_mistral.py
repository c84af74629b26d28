"""Mistral (Jiang et al. 2023, arXiv:2310.06825) and Mixtral (arXiv:2401.04088), in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import DECODES, LLAMA_ROLES, SCORES, HFModel

SIZES: Mapping[str, str] = {
    "7b": "mistralai/Mistral-7B-v0.3",
    "7b-chat": "mistralai/Mistral-7B-Instruct-v0.3",
    "7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "7b-v0.1-chat": "mistralai/Mistral-7B-Instruct-v0.1",
    "7b-v0.2-chat": "mistralai/Mistral-7B-Instruct-v0.2",
    "nemo-12b": "mistralai/Mistral-Nemo-Base-2407",
    "nemo-12b-chat": "mistralai/Mistral-Nemo-Instruct-2407",
    "8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "8x7b-chat": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "8x22b": "mistralai/Mixtral-8x22B-v0.1",
    "8x22b-chat": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "zephyr-7b": "HuggingFaceH4/zephyr-7b-beta",
    "zephyr-7b-alpha": "HuggingFaceH4/zephyr-7b-alpha",
}


@options
class Mistral(HFModel):
    """Decoders of the types mistral and mixtral.

    Mixtral's experts are tensors of three dimensions in one module: a role of their own names it, and none of an mlp.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral", "mixtral")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(model_types, DECODES[:1])
    sizes: ClassVar[Mapping[str, str]] = SIZES
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {"mixtral": {"num_local_experts": 4}}
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        "experts": "model.layers.*.mlp.experts",
        "router": "model.layers.*.mlp.gate",
    }
