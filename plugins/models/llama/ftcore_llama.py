"""Llama 1, 2 and 3 and what shares their architecture, in transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ftcore import options
from ftcore.families import DECODES, SCORES, HFModel

SIZES: Mapping[str, str] = {
    "1.1b-chat": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "1.1b": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "3.2-1b": "meta-llama/Llama-3.2-1B",
    "3.2-1b-chat": "meta-llama/Llama-3.2-1B-Instruct",
    "3.2-3b": "meta-llama/Llama-3.2-3B",
    "3.2-3b-chat": "meta-llama/Llama-3.2-3B-Instruct",
    "3.3-70b-chat": "meta-llama/Llama-3.3-70B-Instruct",
    "3.1-8b": "meta-llama/Llama-3.1-8B",
    "3.1-8b-chat": "meta-llama/Llama-3.1-8B-Instruct",
    "3.1-70b": "meta-llama/Llama-3.1-70B",
    "3.1-70b-chat": "meta-llama/Llama-3.1-70B-Instruct",
    "3.1-405b": "meta-llama/Llama-3.1-405B",
    "3.1-405b-chat": "meta-llama/Llama-3.1-405B-Instruct",
    "3-8b": "meta-llama/Meta-Llama-3-8B",
    "3-8b-chat": "meta-llama/Meta-Llama-3-8B-Instruct",
    "3-70b": "meta-llama/Meta-Llama-3-70B",
    "3-70b-chat": "meta-llama/Meta-Llama-3-70B-Instruct",
    "2-7b": "meta-llama/Llama-2-7b-hf",
    "2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "2-13b": "meta-llama/Llama-2-13b-hf",
    "2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "2-70b": "meta-llama/Llama-2-70b-hf",
    "2-70b-chat": "meta-llama/Llama-2-70b-chat-hf",
    "1-7b": "huggyllama/llama-7b",
    "1-13b": "huggyllama/llama-13b",
    "1-30b": "huggyllama/llama-30b",
    "1-65b": "huggyllama/llama-65b",
    "yi-1.5-6b": "01-ai/Yi-1.5-6B",
    "yi-1.5-6b-chat": "01-ai/Yi-1.5-6B-Chat",
    "yi-1.5-9b": "01-ai/Yi-1.5-9B",
    "yi-1.5-9b-chat": "01-ai/Yi-1.5-9B-Chat",
    "yi-1.5-34b": "01-ai/Yi-1.5-34B",
    "yi-1.5-34b-chat": "01-ai/Yi-1.5-34B-Chat",
    "yi-6b": "01-ai/Yi-6B",
    "yi-9b": "01-ai/Yi-9B",
    "yi-34b": "01-ai/Yi-34B",
    "yi-6b-chat": "01-ai/Yi-6B-Chat",
    "yi-34b-chat": "01-ai/Yi-34B-Chat",
    "vicuna-7b": "lmsys/vicuna-7b-v1.5",
    "vicuna-13b": "lmsys/vicuna-13b-v1.5",
    "code-7b": "codellama/CodeLlama-7b-hf",
    "code-7b-chat": "codellama/CodeLlama-7b-Instruct-hf",
    "code-13b": "codellama/CodeLlama-13b-hf",
    "code-13b-chat": "codellama/CodeLlama-13b-Instruct-hf",
    "code-34b": "codellama/CodeLlama-34b-hf",
    "code-34b-chat": "codellama/CodeLlama-34b-Instruct-hf",
    "code-70b": "codellama/CodeLlama-70b-hf",
    "code-70b-chat": "codellama/CodeLlama-70b-Instruct-hf",
}


@options
class Llama(HFModel):
    """Decoders of the type llama: Llama, Vicuna, Yi, CodeLlama."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    sizes: ClassVar[Mapping[str, str]] = SIZES
