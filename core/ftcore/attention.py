"""Attention inside each row of a packed batch, without a mask and without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "ftcore"


def register() -> str:
    """The name under which transformers finds packed attention; registering twice changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Autoregressive attention of (1, heads, tokens, d) inside each segment of `cu_seq_lens_q`, if given.

    The result has the shape (1, tokens, heads, d).
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    segments = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    answers = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            _window(q.shape[2], sliding_window, q),
            dropout,
            scale=scaling,
            is_causal=not _narrow(q.shape[2], sliding_window),
        )
        for q, k, v in segments
    ]
    return torch.cat(answers, dim=2).transpose(1, 2).contiguous(), None


def _narrow(length: int, sliding_window: int | None) -> bool:
    return sliding_window is not None and length > sliding_window


def _window(length: int, sliding_window: int | None, like: Tensor) -> Tensor | None:
    """The mask of a segment longer than the sliding window; shorter ones need none."""
    import torch

    if not _narrow(length, sliding_window):
        return None
    distance = torch.arange(length, device=like.device)[:, None] - torch.arange(length, device=like.device)
    return (distance >= 0) & (distance < (sliding_window or 0))
