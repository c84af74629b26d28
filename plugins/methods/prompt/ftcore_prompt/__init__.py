"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691), and what methods with virtual tokens share."""

from __future__ import annotations

from ftcore_prompt.method import PrefixMethod, Prompt, PromptMethod, VirtualTokenMethod

__all__ = ["PrefixMethod", "Prompt", "PromptMethod", "VirtualTokenMethod"]
