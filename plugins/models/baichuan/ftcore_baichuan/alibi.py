"""Llama whose heads prefer near tokens, each by a slope of its own, instead of turning (Press, arXiv:2108.12409)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "ftcore_alibi"


class AlibiLlamaConfig(LlamaConfig):
    """Llama's fields; those about rotary positions mean nothing."""

    model_type = "alibi_llama"


class AlibiLlamaForCausalLM(LlamaForCausalLM):
    """Llama whose attention has a bias that falls with distance instead of turned queries and keys."""

    config_class = AlibiLlamaConfig

    def __init__(self, config: AlibiLlamaConfig) -> None:
        super().__init__(config)
        self.config._attn_implementation = NAME  # no other knows the bias
        self.model.rotary_emb = Unturned()


class Unturned(nn.Module):
    """In the place of rotary positions: every angle is zero."""

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines that leave queries and keys as they are."""
        one = hidden.new_ones((*position_ids.shape, 1))
        return one, torch.zeros_like(one)


def slopes(heads: int) -> Tensor:
    """How fast each head's preference falls: powers of 2, those between the powers where `heads` is none."""
    whole = 2 ** math.floor(math.log2(heads))
    base = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    between = [2 ** (-4 * (head + 1) / whole) for head in range(0, 2 * (heads - whole), 2)]
    return torch.tensor(base + between, dtype=torch.float32)


def alibi_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Autoregressive attention with the bias, inside each segment of `cu_seq_lens_q` where rows lie end to end."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if cu_seq_lens_q is None:
        found = _biased(query, key, value, attention_mask, dropout, scaling)
        return found.transpose(1, 2).contiguous(), None
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    segments = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    found = torch.cat([_biased(q, k, v, None, dropout, scaling) for q, k, v in segments], dim=2)
    return found.transpose(1, 2).contiguous(), None


def _biased(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention with a bias by distance, of the last tokens asked among all those held."""
    asked, held = query.shape[2], key.shape[2]
    places = torch.arange(held, device=query.device)
    distance = places - places[held - asked :, None]
    bias = slopes(query.shape[1]).to(query.device)[:, None, None] * distance
    least = torch.finfo(query.dtype).min
    hidden = torch.where(distance > 0, least, 0.0) if mask is None else mask.float()
    both = (bias + hidden).clamp(min=least).to(query.dtype)
    both = both.expand(query.shape[0], -1, -1, -1)
    return scaled_dot_product_attention(query, key, value, both, dropout, scale=scaling)


def register() -> None:
    """transformers finds config, class and attention by their names; registering twice changes nothing."""
    AttentionInterface.register(NAME, alibi_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    AutoConfig.register("alibi_llama", AlibiLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(AlibiLlamaConfig, AlibiLlamaForCausalLM, exist_ok=True)
