"""BERT (Devlin et al. 2018, arXiv:1810.04805) and the encoders after it, in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ftcore import hookimpl, options
from ftcore.families import HFModel
from ftcore.hooks import Loaded, Run

LAYER, DISTILLED = "encoder.layer.*", "distilbert.transformer.layer.*"
CLASSIFY = ("sequence-classification", "token-classification", "question-answering")
# What files hold for heads other than the one asked for, and a buffer that former versions saved.
OTHERS = (
    r"(cls|lm_head|classifier|pre_classifier|qa_outputs)\..*",
    r"(discriminator_predictions|generator_predictions|generator_lm_head)\..*",
    r"(vocab_transform|vocab_layer_norm|vocab_projector)\..*",
    r"(\w+\.)?pooler\.dense\.(weight|bias)",
    r"(\w+\.)?embeddings\.position_ids",
)


def _inside(layer: str, distilled: str) -> str:
    """Patterns of a place in a block, for the types that share names and for distilbert."""
    return " ".join(
        [*(f"{base}.{LAYER}.{layer}" for base in ("bert", "roberta", "electra")), f"{DISTILLED}.{distilled}"]
    )


SIZES: Mapping[str, str] = {
    "base": "google-bert/bert-base-uncased",
    "base-cased": "google-bert/bert-base-cased",
    "large": "google-bert/bert-large-uncased",
    "base-chinese": "google-bert/bert-base-chinese",
    "base-multilingual": "google-bert/bert-base-multilingual-cased",
    "chinese-wwm": "hfl/chinese-bert-wwm-ext",
    "chinese-roberta": "hfl/chinese-roberta-wwm-ext",
    "chinese-roberta-large": "hfl/chinese-roberta-wwm-ext-large",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "xlm-roberta-large": "FacebookAI/xlm-roberta-large",
    "electra-small": "google/electra-small-discriminator",
    "electra-base": "google/electra-base-discriminator",
    "electra-large": "google/electra-large-discriminator",
    "distil": "distilbert/distilbert-base-uncased",
    "distil-cased": "distilbert/distilbert-base-cased",
}


@options
class Bert(HFModel):
    """Encoders of the types bert, roberta, xlm-roberta, electra and distilbert.

    A checkpoint without the head of a classification gets a new one; what it has for other heads is left out.
    """

    model_types: ClassVar[tuple[str, ...]] = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
    sizes: ClassVar[Mapping[str, str]] = SIZES
    starter: ClassVar[Path | None] = Path(__file__).parent / "starter"
    heads: ClassVar[tuple[str, ...]] = ("masked-lm", *CLASSIFY)
    drawn_heads: ClassVar[tuple[str, ...]] = CLASSIFY
    leftovers: ClassVar[tuple[str, ...]] = OTHERS
    unpackable: ClassVar[str] = "its tokens look at what comes after them, whatever row it is of"
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bert": ("masked-lm", *CLASSIFY),
        "roberta": ("masked-lm", "sequence-classification"),
        "xlm-roberta": ("token-classification",),
        "electra": ("sequence-classification",),
        "distilbert": ("question-answering",),
    }
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "electra": {"embedding_size": 16},
        "distilbert": {"hidden_dim": 64},
    }
    roles: ClassVar[Mapping[str, str]] = {
        "block": f"bert.{LAYER} roberta.{LAYER} electra.{LAYER} {DISTILLED}",
        "attention.q": _inside("attention.self.query", "attention.q_lin"),
        "attention.k": _inside("attention.self.key", "attention.k_lin"),
        "attention.v": _inside("attention.self.value", "attention.v_lin"),
        "attention.o": _inside("attention.output.dense", "attention.out_lin"),
        "mlp.up": _inside("intermediate.dense", "ffn.lin1"),
        "mlp.down": _inside("output.dense", "ffn.lin2"),
        "norm": "*LayerNorm *layer_norm",
        "embedding": "*bert*.word_embeddings electra.embeddings.word_embeddings",
        "head": "cls.predictions.decoder lm_head.decoder generator_lm_head vocab_projector classifier qa_outputs",
    }

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class; RoBERTa counts positions from the one after its padding's."""
        loaded = HFModel.load_model(self, run, kwargs)
        config: Any = loaded.model.config
        if "roberta" not in config.model_type:
            return loaded
        return replace(loaded, max_positions=loaded.max_positions - (config.pad_token_id or 0) - 1)
