"""GPT-2 and the open models after GPT-3: GPT-Neo, GPT-J, GPT-NeoX and Pythia, in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ftcore import options
from ftcore.families import HFModel

H, NEOX = "transformer.h.*", "gpt_neox.layers.*"
FUSED = f"{H}.attn.c_attn {NEOX}.attention.query_key_value"
NO_BORDERS = "its attention takes no borders between rows"


@options
class GPT(HFModel):
    """Decoders of the types gpt2 and gpt_neox, whose q, k and v are one projection, and gpt_neo and gptj."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2", "gpt_neo", "gptj", "gpt_neox")
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
        "head": "lm_head",
    }
