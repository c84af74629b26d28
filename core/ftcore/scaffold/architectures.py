"""What a new family has to say of an architecture of transformers, found out by building it with two layers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftcore.attention import register
from ftcore.batches import TokenRow, pack, pad, token_loss, token_row
from ftcore.errors import Refused
from ftcore.families import HEADS, parts_of
from ftcore.hooks import Batch
from ftcore.scaffold.roles import Roles, inspected, roles_of
from ftcore.seeds import mix
from ftcore.testing.stage import tiny_config, tiny_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

LARGEST = 30_000_000  # parameters of two narrow layers with which an architecture can be tried in seconds
LIKE = 1e-4  # what rounding makes of a loss as a share of it is 1e-6; a row that sees another changes by a hundredth
# Fields that some types want beside those that the kit gives to all.
TINY: Sequence[Mapping[str, Any]] = (
    {},
    {"bos_token_id": 0},
    {"rotary_dim": 4},
    {"head_dim": 64, "num_key_value_heads": 4},
    {"decoder_start_token_id": 0, "num_decoder_layers": 2},
)
# Where transformers lists the configurations that have a head.
MAPPINGS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
}


@dataclass(frozen=True)
class Architecture:
    """A model type: its heads, the roles of its modules, why rows of it cannot be packed, and how it is made small."""

    model_type: str
    heads: tuple[str, ...]
    roles: Roles
    unpackable: str
    tiny: Mapping[str, Any] = field(default_factory=dict)


def model_type_of(name: str, asked: str | None) -> str:
    """The model type that a family of this name is for; Refused with what it may have meant."""
    from transformers import CONFIG_MAPPING

    known = set(CONFIG_MAPPING.keys())
    for spelled in [asked] if asked else [name, name.replace("-", "_")]:
        if spelled in known:
            return spelled
    near = difflib.get_close_matches(asked or name, sorted(known), n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else "see a checkpoint's config.json"
    meant += "; name it with --type"
    raise Refused(f"the installed transformers has no model type '{asked or name}'; {meant}")


def architecture(model_type: str) -> Architecture:
    """All that a family says of a model type; Refused when it has no head or no small model of it runs."""
    small = running(model_type)
    heads = small.usable_heads()
    roles = roles_of(small.skeleton(heads[0]))
    fitting = tuple(head for head in heads if fits(roles, small.skeleton(head)))
    return Architecture(model_type, fitting, roles, unpackable(small, heads[0]), small.fields)


def running(model_type: str) -> Small:
    """A small model of that type that can be asked something; Refused with the reason when none can."""
    reasons = []
    for fields in TINY:
        small = Small(model_type, fields)
        try:
            small.try_it()
            return small
        except Refused:
            raise
        except Exception as unfit:  # whatever transformers makes of a config that its authors did not think of
            reasons.append(" ".join(str(unfit).split())[:200] or type(unfit).__name__)
    raise Refused(
        f"no model of type '{model_type}' runs with two layers and the fields that most types have ({reasons[0]}); "
        "write the family by hand and declare its fields in 'tiny'"
    )


@dataclass(frozen=True)
class Small:
    """Models of two layers of one type."""

    model_type: str
    fields: Mapping[str, Any]

    def config(self) -> PreTrainedConfig:
        """A config for each model, as some write into theirs."""
        return tiny_config(self.model_type, **self.fields)

    def heads(self) -> tuple[str, ...]:
        """The heads that transformers has for it."""
        import transformers

        return tuple(head for head in HEADS if type(self.config()) in getattr(transformers, MAPPINGS[head]))

    def skeleton(self, head: str) -> Any:
        """The model without weights."""
        import torch

        with torch.device("meta"):
            return tiny_model(self.config(), head)

    def model(self, head: str, attention: str = "eager") -> Any:
        """The model, by default with the attention that its authors wrote."""
        return tiny_model(self.config(), head, attn_implementation=attention).eval()

    def try_it(self) -> None:
        """It has a head, it is small, and it answers; Refused when no fields would help."""
        heads = self.heads()
        if not heads:
            raise Refused(f"the type '{self.model_type}' has none of the heads {', '.join(HEADS)}; give another --type")
        size = max(self.skeleton(head).num_parameters() for head in heads)
        if size > LARGEST:
            raise Refused(
                f"two narrow layers of the model type '{self.model_type}' have {size:,} parameters, too many to try; "
                "its text model may have a type of its own: name that with --type"
            )
        usable = self.usable_heads()
        if "causal-lm" in usable:
            _alone(self.model("causal-lm"), _rows())
        if "seq2seq-lm" in usable:
            _answers(self.model("seq2seq-lm"))

    def usable_heads(self) -> tuple[str, ...]:
        """The heads that are what a task expects of them: a causal one sees nothing of what comes later."""
        heads = self.heads()
        if self.config().is_encoder_decoder and "seq2seq-lm" in heads:
            return ("seq2seq-lm",)
        if "causal-lm" in heads and not is_causal(self.model("causal-lm")):
            return tuple(head for head in heads if head != "causal-lm") or heads
        return heads


def fits(roles: Roles, model: Any) -> bool:
    """Whether the patterns mean in this model what its own modules say, apart from the head."""
    own = {role: names for role, names in inspected(model).items() if role in roles.patterns and role != "head"}
    found = parts_of(model, {role: one for role, one in roles.patterns.items() if role != "head"})
    return own == found


def is_causal(model: Any) -> bool:
    """Whether no answer changes with the token after it."""
    import torch

    tokens = torch.tensor([_tokens(0, 12)])
    other = tokens.clone()
    other[0, -1] += 1
    with torch.no_grad():
        before, after = (model(input_ids=one, use_cache=False).logits[0, :-1] for one in (tokens, other))
    return _alike(before, after)


def unpackable(small: Small, head: str) -> str:
    """Why rows laid end to end would not be read as rows alone; empty when they are."""
    if head == "seq2seq-lm":
        return "it reads a row in one stack and writes it in another"
    if head != "causal-lm":
        return "its tokens look at what comes after them"
    wanted = _alone(small.model(head), _rows())
    try:
        model = small.model(head, register())
        alone, together = _alone(model, _rows()), _loss(model, pack(_rows()))
    except Exception:  # whatever an architecture makes of arguments that it was not written for
        return "it does not take rows that are laid end to end"
    alike = _alike(alone, wanted) and _alike(together, wanted)
    return "" if alike else "rows that are laid end to end are not read as rows alone"


def _answers(model: Any) -> None:
    """The model writes on from a row, and learns what to write."""
    import torch

    tokens = torch.tensor([_tokens(0, 12)])
    with torch.no_grad():
        model(input_ids=tokens, labels=tokens)
        model.generate(input_ids=tokens, max_new_tokens=1)


def _alone(model: Any, rows: Sequence[TokenRow]) -> Tensor:
    losses = [_loss(model, pad([row], 0)) for row in rows]
    return sum(losses[1:], losses[0])


def _loss(model: Any, batch: Batch) -> Tensor:
    import torch

    with torch.no_grad():
        return token_loss(model, batch)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    apart = float((found - wanted).abs().max())
    return apart <= LIKE * max(1.0, float(wanted.abs().max()))


def _rows() -> list[TokenRow]:
    return [token_row(ids, [-100, *ids[1:]], "") for ids in (_tokens(1, 7), _tokens(2, 12), _tokens(3, 5))]


def _tokens(row: int, count: int) -> list[int]:
    """Tokens of the kit's tokenizer, none of them special."""
    return [10 + mix(row, "token", place) % 300 for place in range(count)]
