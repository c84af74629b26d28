"""Any architecture that transformers knows, with the roles that can be told by looking at its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import Refused, hookimpl, options
from ftcore.discovery import Offer, declared_datum, offers, sound
from ftcore.families import (
    HEADS,
    UNLIMITED,
    HFModel,
    read_config,
    read_fields,
    read_tokenizer,
    stop_ids,
    strictly_loaded,
)
from ftcore.hooks import Loaded, Run
from ftcore.settings import dtype_of

from ftcore_auto.roles import Found, inspected

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Auto"]


@options
class Auto(HFModel):
    """Checkpoints of any type that transformers implements, their parts found by inspection and said at the start."""

    heads: ClassVar[tuple[str, ...]] = tuple(HEADS)
    tried_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "olmo2": ("causal-lm",),
        "phi3": ("causal-lm",),
        "rembert": ("token-classification",),
        "m2m_100": ("seq2seq-lm",),
    }
    tiny: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "m2m_100": {"decoder_start_token_id": 2, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    }
    unpackable: ClassVar[str] = "nobody has looked whether this architecture keeps rows apart that are laid end to end"

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class, with parts for the roles that names, shapes and places tell."""
        folder = self.folder(run)
        config = read_config(folder, (str(read_fields(folder).get("model_type")),))
        self._is_for(config, run.head)
        tokenizer = read_tokenizer(folder, optional=run.intent == "plan")
        model = self._built(run, folder, config, dict(kwargs))
        _fits(model, run)
        found = inspected(model)
        if not found.parts.get("block"):
            raise Refused(
                f"no repeated blocks can be told in a {type(model).__name__}; use a family plugin for its type, of "
                f"which there are {', '.join(offer.name for offer in sound('model'))}"
            )
        if run.intent in ("train", "plan"):
            for line in (*_better(config.model_type), *_told(found, type(model).__name__)):
                run.say(line)
        return Loaded(
            model=model,
            tokenizer=tokenizer,
            parts=found.parts,
            checkpoint=folder,
            max_positions=_positions(model),
            vocab_size=int(model.get_input_embeddings().weight.shape[0]),
            stop_ids=stop_ids(model, tokenizer),
            unpackable=self.unpackable,
        )

    def _is_for(self, config: PreTrainedConfig, head: str) -> None:
        """Refused when transformers has no such head for the type, or one that does not do what the head is for."""
        if head not in _heads(config):
            has = ", ".join(_heads(config)) or "none that a task asks for"
            raise Refused(f"transformers has no head '{head}' for the type '{config.model_type}'; it has {has}")
        if head == "causal-lm" and "masked-lm" in _heads(config) and not getattr(config, "is_decoder", False):
            raise Refused(
                f"a model of type '{config.model_type}' sees what comes after a token and is no causal-lm; "
                "use a task for one of its other heads"
            )

    def _built(self, run: Run, folder: str, config: PreTrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
        import torch
        import transformers

        auto = getattr(transformers, HEADS[run.head])
        given = {"dtype": dtype_of(run.settings), "trust_remote_code": False} | kwargs
        if run.intent == "plan":
            with torch.device("meta"):
                return auto.from_config(config, **given).to("meta")  # type: ignore[no-any-return]
        if self.weights == "random":
            return auto.from_config(config, **given)  # type: ignore[no-any-return]
        return strictly_loaded(auto, folder, config, given)


def _heads(config: PreTrainedConfig) -> tuple[str, ...]:
    """The heads that transformers has for a type."""
    import transformers
    from ftcore.scaffold.architectures import MAPPINGS

    return tuple(head for head in HEADS if type(config) in getattr(transformers, MAPPINGS[head]))


def _fits(model: PreTrainedModel, run: Run) -> None:
    """Refused when the model cannot do what the run asks of it."""
    if run.settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise Refused(f"a {type(model).__name__} cannot recompute activations; leave gradient_checkpointing out")
    if run.intent == "train" and run.head == "causal-lm" and not _is_causal(model.eval()):
        raise Refused(f"a {type(model).__name__} with this config sees what comes after a token and is no causal-lm")


def _is_causal(model: Any) -> bool:
    """Whether what is said after a token is the same whatever comes next."""
    import torch

    tokens = torch.tensor([[3, 4], [3, 5]], device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        first, other = model(input_ids=tokens, use_cache=False).logits[:, 0].float()
    return bool(torch.allclose(first, other, rtol=1e-2, atol=1e-3 * float(first.abs().max())))


def _better(model_type: str) -> Iterator[str]:
    """A line for each installed family that is made for the type."""
    for family, types in _families(offers("model")):
        if model_type in types:
            yield f"the family '{family}' is made for the type '{model_type}'; pass --model {family}"


@cache
def _families(offered: tuple[Offer, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The types that each installed family is made for; looking at them all takes a while."""
    return tuple((offer.name, declared_datum(offer.load(), "model_types")) for offer in sound("model"))


def _told(found: Found, name: str) -> Iterator[str]:
    """What was found, and what was not."""
    for role, where in found.summary.items():
        yield f"found by inspection of {name}: {role} is {where}"
    if found.untold:
        yield f"no role could be told for {', '.join(found.untold)}, which methods that ask for roles leave alone"


def _positions(model: Any) -> int:
    """How many tokens a row may have; a table of positions with a place for padding counts from the one after it."""
    from torch import nn

    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    most = said if isinstance(said, int) and said > 0 else UNLIMITED
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.num_embeddings == most:
            return most - (0 if module.padding_idx is None else module.padding_idx + 1)
    return most
