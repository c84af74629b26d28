"""BERT (Devlin et al. 2018, arXiv:1810.04805) and the encoders after it, in transformers' own classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import hookimpl, options
from ftcore.families import HFModel
from ftcore.hooks import Loaded, Run

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LAYER, DISTILLED = "encoder.layer.*", "distilbert.transformer.layer.*"
# What files hold for heads other than the one asked for, and a buffer that former versions saved.
OTHERS = re.compile(
    r"(cls|lm_head|classifier|pre_classifier|qa_outputs|discriminator_predictions|generator_predictions"
    r"|generator_lm_head|vocab_transform|vocab_layer_norm|vocab_projector)\..*"
    r"|(\w+\.)?pooler\.dense\.(weight|bias)|(\w+\.)?embeddings\.position_ids"
)


def _inside(layer: str, distilled: str) -> str:
    """Patterns of a place in a block, for the types that share names and for distilbert."""
    return " ".join(
        [*(f"{base}.{LAYER}.{layer}" for base in ("bert", "roberta", "electra")), f"{DISTILLED}.{distilled}"]
    )


@options
class Bert(HFModel):
    """Encoders of the types bert, roberta, xlm-roberta, electra and distilbert.

    A checkpoint without the head of a classification gets a new one; what it has for other heads is left out.
    """

    model_types: ClassVar[tuple[str, ...]] = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
    heads: ClassVar[tuple[str, ...]] = (
        "masked-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
    )
    unpackable: ClassVar[str] = "its tokens look at what comes after them, whatever row it is of"
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

    def _model(
        self,
        run: Run,
        config: PreTrainedConfig,
        kwargs: Mapping[str, Any],
        pretrained: Callable[[Any, Mapping[str, Any]], PreTrainedModel],
    ) -> PreTrainedModel:
        return HFModel._model(self, run, config, kwargs, lambda auto, given: pretrained(AnyHead(auto, run), given))


@dataclass(frozen=True)
class AnyHead:
    """A class of transformers that takes a checkpoint with another head, and says what it makes of it."""

    auto: Any
    run: Run

    def from_pretrained(self, folder: str, **given: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model, and which names of the file and of the model have no counterpart and should have."""
        model, info = self.auto.from_pretrained(folder, **given)
        unexpected, missing = set(info["unexpected_keys"]), set(info["missing_keys"])
        others = {name for name in unexpected if OTHERS.fullmatch(name)}
        if self.run.head != "masked-lm" and _is_the_head(missing, model):
            self._say(f"the checkpoint has no head for {self.run.head}: a new one is drawn ({_tops(missing)})")
            missing = set()
        if others:
            self._say(f"what the checkpoint has for other heads is left out ({_tops(others)})")
        return model, {**info, "unexpected_keys": unexpected - others, "missing_keys": missing}

    def _say(self, line: str) -> None:
        if self.run.intent == "train":
            self.run.say(line)


def _is_the_head(missing: set[str], model: PreTrainedModel) -> bool:
    """Whether exactly the head of `model` is missing, with or without what pools for it."""
    inside = f"{model.base_model_prefix}."
    head = {name for name, _ in model.named_parameters() if not name.startswith(inside)}
    pooling = {f"{inside}pooler.dense.weight", f"{inside}pooler.dense.bias"}
    return bool(head) and head <= missing <= head | pooling


def _tops(names: set[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[0] for name in names}))
