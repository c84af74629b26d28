"""GPT-2 and the open models after GPT-3: GPT-Neo, GPT-J, GPT-NeoX and Pythia, in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ftcore import options
from ftcore.families import DECODES, SCORES, HFModel

H, NEOX = "transformer.h.*", "gpt_neox.layers.*"
FUSED = f"{H}.attn.c_attn {NEOX}.attention.query_key_value"
NO_BORDERS = "its attention takes no borders between rows"
SIZES: Mapping[str, str] = {
    "124m": "openai-community/gpt2",
    "355m": "openai-community/gpt2-medium",
    "774m": "openai-community/gpt2-large",
    "1.5b": "openai-community/gpt2-xl",
    "neo-125m": "EleutherAI/gpt-neo-125m",
    "neo-1.3b": "EleutherAI/gpt-neo-1.3B",
    "neo-2.7b": "EleutherAI/gpt-neo-2.7B",
    "j-6b": "EleutherAI/gpt-j-6b",
    "neox-20b": "EleutherAI/gpt-neox-20b",
    "pythia-70m": "EleutherAI/pythia-70m",
    "pythia-160m": "EleutherAI/pythia-160m",
    "pythia-410m": "EleutherAI/pythia-410m",
    "pythia-1b": "EleutherAI/pythia-1b",
    "pythia-1.4b": "EleutherAI/pythia-1.4b",
    "pythia-2.8b": "EleutherAI/pythia-2.8b",
    "pythia-6.9b": "EleutherAI/pythia-6.9b",
    "pythia-12b": "EleutherAI/pythia-12b",
}


@options
class GPT(HFModel):
    """Decoders of the types gpt2 and gpt_neox, whose q, k and v are one projection, and gpt_neo and gptj."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2", "gpt_neo", "gptj", "gpt_neox")
    heads: ClassVar[tuple[str, ...]] = DECODES
    drawn_heads: ClassVar[tuple[str, ...]] = SCORES
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = {**dict.fromkeys(model_types, DECODES[:1]), "gpt2": DECODES}
    sizes: ClassVar[Mapping[str, str]] = SIZES
    tiny: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt_neo": {"num_hidden_layers": 3, "attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
        "gptj": {"rotary_dim": 4},
    }
    unpackable: ClassVar[Mapping[str, str]] = {"gpt_neo": NO_BORDERS, "gptj": NO_BORDERS}
    leftovers: ClassVar[tuple[str, ...]] = (r"transformer\.h\.\d+\.attn(\.attention)?\.(masked_)?bias",)
    roles: ClassVar[Mapping[str, str]] = {
        "block": f"{H} {NEOX}",
        **{f"attention.{of}": f"{FUSED} {H}.attn.{of}_proj {H}.attn.attention.{of}_proj" for of in "qkv"},
        "attention.o": f"{H}.attn.c_proj {H}.attn.out_proj {H}.attn.attention.out_proj {NEOX}.attention.dense",
        "mlp.up": f"{H}.mlp.c_fc {H}.mlp.fc_in {NEOX}.mlp.dense_h_to_4h",
        "mlp.down": f"{H}.mlp.c_proj {H}.mlp.fc_out {NEOX}.mlp.dense_4h_to_h",
        "norm": "transformer.*ln_* gpt_neox.*norm",
        "embedding": "transformer.wte gpt_neox.embed_in",
        "head": "lm_head score",
    }
