"""GPT-2 and the open models after GPT-3: GPT-Neo, GPT-J, GPT-NeoX and Pythia, in transformers' own classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import hookimpl, options
from ftcore.families import HFModel, locate, read_config
from ftcore.hooks import Loaded, Run

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

H, NEOX = "transformer.h.*", "gpt_neox.layers.*"
FUSED = f"{H}.attn.c_attn {NEOX}.attention.query_key_value"
PADDED = ("gpt_neo", "gptj")
MASK = re.compile(r"transformer\.h\.\d+\.attn(\.attention)?\.(masked_)?bias")


@options
class GPT(HFModel):
    """Decoders of the types gpt2 and gpt_neox, whose q, k and v are one projection, and gpt_neo and gptj."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2", "gpt_neo", "gptj", "gpt_neox")
    tiny: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt_neo": {"num_hidden_layers": 3, "attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
        "gptj": {"rotary_dim": 4},
    }
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

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class; rows of a type whose attention takes no borders are padded."""
        folder = locate(run, self.starter, type(self).__name__)
        padded = read_config(folder, self.model_types).model_type in PADDED
        return HFModel.load_model(Padded(weights=self.weights) if padded else self, run, kwargs)


@options
class Padded(GPT):
    """Those of the family whose attention takes no borders between rows."""

    unpackable: ClassVar[str] = "its attention takes no borders between rows"

    def _model(
        self,
        run: Run,
        config: PreTrainedConfig,
        kwargs: Mapping[str, Any],
        pretrained: Callable[[Any, Mapping[str, Any]], PreTrainedModel],
    ) -> PreTrainedModel:
        return HFModel._model(self, run, config, kwargs, lambda auto, given: pretrained(WithoutMasks(auto), given))


@dataclass(frozen=True)
class WithoutMasks:
    """A class of transformers that leaves out the masks which published files hold beside the weights."""

    auto: Any

    def from_pretrained(self, folder: str, **given: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model, and which names of the file and of the model have no counterpart."""
        model, info = self.auto.from_pretrained(folder, **given)
        return model, {**info, "unexpected_keys": {n for n in info["unexpected_keys"] if not MASK.fullmatch(n)}}
