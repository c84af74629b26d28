"""T5 (Raffel et al. 2020, arXiv:1910.10683), mT5 (arXiv:2010.11934), UMT5, in transformers' own classes; a starter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ftcore import hookimpl, options
from ftcore.families import HFModel
from ftcore.hooks import Loaded, Run

STACK = "*coder.block.*"
ATTENTION, MLP = f"{STACK}.layer.*.*Attention", f"{STACK}.layer.*.DenseReluDense"
SHAPE = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
TINY = {**SHAPE, "decoder_start_token_id": 0}
SIZES: Mapping[str, str] = {
    "small": "google-t5/t5-small",
    "base": "google-t5/t5-base",
    "large": "google-t5/t5-large",
    "3b": "google-t5/t5-3b",
    "11b": "google-t5/t5-11b",
    "1.1-small": "google/t5-v1_1-small",
    "1.1-base": "google/t5-v1_1-base",
    "1.1-large": "google/t5-v1_1-large",
    "1.1-xl": "google/t5-v1_1-xl",
    "1.1-xxl": "google/t5-v1_1-xxl",
    "flan-small": "google/flan-t5-small",
    "flan-base": "google/flan-t5-base",
    "flan-large": "google/flan-t5-large",
    "flan-xl": "google/flan-t5-xl",
    "flan-xxl": "google/flan-t5-xxl",
    "mt5-small": "google/mt5-small",
    "mt5-base": "google/mt5-base",
    "mt5-large": "google/mt5-large",
    "mt5-xl": "google/mt5-xl",
    "mt5-xxl": "google/mt5-xxl",
    "umt5-small": "google/umt5-small",
    "umt5-base": "google/umt5-base",
    "umt5-xl": "google/umt5-xl",
    "umt5-xxl": "google/umt5-xxl",
}


@options
class T5(HFModel):
    """Encoder-decoders of the types t5, mt5 and umt5."""

    model_types: ClassVar[tuple[str, ...]] = ("t5", "mt5", "umt5")
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    heads: ClassVar[tuple[str, ...]] = ("seq2seq-lm",)
    unpackable: ClassVar[str] = "a row is read in one stack and written in another, and positions are biases"
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = dict.fromkeys(model_types, TINY)
    roles: ClassVar[Mapping[str, str]] = {
        "block": STACK,
        "attention.q": f"{ATTENTION}.q",
        "attention.k": f"{ATTENTION}.k",
        "attention.v": f"{ATTENTION}.v",
        "attention.o": f"{ATTENTION}.o",
        "mlp.gate": f"{MLP}.wi_0",
        "mlp.up": f"{MLP}.wi_1 {MLP}.wi",
        "mlp.down": f"{MLP}.wo",
        "norm": "*layer_norm",
        "embedding": "shared",
        "head": "lm_head",
    }

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class; a head that config.json unties is apart in a plan too."""
        loaded = HFModel.load_model(self, run, kwargs)
        if (run.intent == "plan" or self.weights == "random") and _is_untied(Path(loaded.checkpoint, "config.json")):
            _untie(loaded.model)
        return loaded


def _is_untied(config: Path) -> bool:
    """Whether a published config.json says so, of which transformers' own config keeps nothing."""
    return json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings") is False


def _untie(model: Any) -> None:
    """The head is a tensor of its own, as it is once weights are read that differ from the embedding's."""
    from torch import nn

    model.lm_head.weight = nn.Parameter(nn.init.normal_(model.lm_head.weight.detach().clone()))
    model.all_tied_weights_keys.pop("lm_head.weight", None)
