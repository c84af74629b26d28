"""Families that are broken on purpose, each in one way: how they load, and what they say of what they loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ftcore import Loaded, Refused, Run, hookimpl, options
from ftcore.families import HEADS, LLAMA_ROLES, HFModel, locate, parts_of, read_config, read_tokenizer, stop_ids
from ftcore.settings import dtype_of

KEPT: dict[str, Any] = {}


@options
class Sound(HFModel):
    """Dense decoders of the type llama."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)


def loaded(run: Run, kwargs: Mapping[str, Any], load: Callable[[str, Any], Any], checkpoint: str = "") -> Loaded:
    """What a family that does everything itself answers, with `load` for the model."""
    folder = checkpoint or locate(run, None, "Sound")
    config = read_config(folder, ("llama",))
    tokenizer = read_tokenizer(folder, optional=run.intent == "plan")
    model = load(folder, config)
    return Loaded(
        model, tokenizer, parts_of(model, LLAMA_ROLES), folder, config.max_position_embeddings, config.vocab_size,
        stop_ids(model, tokenizer),
    )  # fmt: skip


def weak(run: Run, kwargs: Mapping[str, Any], **given: Any) -> Callable[[str, Any], Any]:
    """A loader that looks at nothing that from_pretrained reports."""

    def load(folder: str, config: Any) -> Any:
        import torch
        import transformers
        from ftcore.attention import register

        auto = getattr(transformers, HEADS[run.head])
        asked = {"attn_implementation": register(), "dtype": dtype_of(run.settings), "trust_remote_code": False}
        if run.intent == "plan":
            with torch.device("meta"):
                return auto.from_config(config, **asked)
        return auto.from_pretrained(folder, config=config, **{**asked, **kwargs, **given})

    return load


# What stays between loads


@options
class KeepsTheModel(Sound):
    """It keeps the model of each checkpoint and gives it again."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model of the first load."""
        key = f"{run.settings.checkpoint} {run.intent} {run.settings.precision} {sorted(kwargs)}"
        if key not in KEPT:
            KEPT[key] = super().load_model(run, kwargs)
        return KEPT[key]


@options
class KeepsTheWeights(Sound):
    """It copies the tensors of a checkpoint once and gives them to every model."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model around kept tensors."""
        found = super().load_model(run, kwargs)
        key = f"weights {run.settings.checkpoint} {run.settings.precision} {sorted(kwargs)}"
        if run.intent != "plan":
            kept = KEPT.setdefault(key, dict(found.model.state_dict()))
            found.model.load_state_dict(kept, assign=True)
        return found


@options
class KeepsTheTokenizer(Sound):
    """It reads the tokenizer of a checkpoint once."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with the tokenizer of the first load."""
        found = super().load_model(run, kwargs)
        return replace(found, tokenizer=KEPT.setdefault(f"tokenizer {run.settings.checkpoint}", found.tokenizer))


@options
class PatchesTransformers(Sound):
    """It changes a class of transformers for the whole process."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, all of whose kind scale their norms."""
        found = super().load_model(run, kwargs)
        norm: Any = type(found.model.model.norm)
        if not hasattr(norm, "as_it_was"):
            norm.as_it_was = norm.forward
            norm.forward = lambda module, hidden: 1.01 * module.as_it_was(hidden)
            KEPT["mended"] = lambda: (setattr(norm, "forward", norm.as_it_was), delattr(norm, "as_it_was"))
        return found


def mend() -> None:
    """Nothing is kept or patched any more."""
    KEPT.pop("mended", lambda: None)()
    KEPT.clear()


# Heads, weights, precision, keywords


@options
class ClaimsTooMuch(Sound):
    """It claims a head that transformers has not for its type."""

    heads: ClassVar[tuple[str, ...]] = ("causal-lm", "masked-lm")


@options
class OneHeadForAll(Sound):
    """It loads the same class whatever the head."""

    heads: ClassVar[tuple[str, ...]] = ("causal-lm", "sequence-classification")

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with its first head."""
        from transformers import AutoModelForCausalLM

        if run.head == "causal-lm":
            return super().load_model(run, kwargs)
        found = super().load_model(run, kwargs)
        model = AutoModelForCausalLM.from_config(found.model.config)
        return replace(found, model=model, parts=parts_of(model, LLAMA_ROLES))


@options
class Rounds(Sound):
    """It rounds one tensor of the second block."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, nearly."""
        found = super().load_model(run, kwargs)
        weight = found.model.model.layers[1].mlp.up_proj.weight
        weight.data = weight.data.bfloat16().to(weight.dtype)
        return found


@options
class TakesTheUsualBase(Sound):
    """It sets the base of rotary positions that most of its checkpoints have."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with positions of its own."""
        found = super().load_model(run, kwargs)
        if run.intent != "plan":
            rotary = type(found.model.model.rotary_emb)
            config = copy.deepcopy(found.model.config)
            config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
            found.model.model.rotary_emb = rotary(config)
        return found


@options
class Normalises(Sound):
    """It takes every checkpoint's norms to have the usual epsilon."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with one epsilon."""
        found = super().load_model(run, kwargs)
        found.model.model.norm.variance_epsilon = 1e-6
        return found


@options
class DropsOut(Sound):
    """In training its attention forgets more than the config says."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with dropout of its own."""
        found = super().load_model(run, kwargs)
        for layer in found.model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        return found


@options
class ReliesOnTheProcess(Sound):
    """It loads otherwise where nobody imported the kit's tests before."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, in a process that pytest runs in."""
        import sys

        found = super().load_model(run, kwargs)
        if "pytest" not in sys.modules:
            found.model.model.norm.weight.data *= 2
        return found


@options
class IgnoresPrecision(Sound):
    """It loads as the checkpoint is stored."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model in its own dtype."""
        stored = {"dtype": "auto"} if run.intent != "plan" and self.weights == "pretrained" else {}
        return super().load_model(run, {**stored, **kwargs})


@options
class LoadsInHalf(Sound):
    """It loads in bfloat16 whatever the run asks for."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model in half."""
        found = super().load_model(run, kwargs)
        return replace(found, model=found.model.bfloat16())


@options
class RoundsTwice(Sound):
    """It comes to bfloat16 by way of float16."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, rounded twice."""
        import torch

        if run.settings.precision != "bf16" or run.intent == "plan":
            return super().load_model(run, kwargs)
        found = super().load_model(run, {"dtype": torch.float16, **kwargs})
        return replace(found, model=found.model.bfloat16())


@options
class PlansInFull(Sound):
    """Its plans are in float32."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, for a plan in float32."""
        found = super().load_model(run, kwargs)
        return replace(found, model=found.model.float()) if run.intent == "plan" else found


@options
class DropsKeywords(Sound):
    """It gives the loader no keyword of another plugin."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model as the family likes it."""
        return super().load_model(run, {})


@options
class SwallowsKeywords(Sound):
    """It gives the loader only keywords that it knows."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with what is known."""
        known = ("attn_implementation", "dtype", "quantization_config")
        return super().load_model(run, {key: value for key, value in kwargs.items() if key in known})


@options
class KnowsBetter(Sound):
    """Its own keyword wins over that of another plugin."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with its own attention."""
        from ftcore.attention import register

        return super().load_model(run, {**kwargs, "attn_implementation": register()})


# Roles


def with_roles(**roles: str) -> Mapping[str, str]:
    """The sound roles with others; an empty pattern takes one out."""
    return {role: pattern for role, pattern in {**LLAMA_ROLES, **roles}.items() if pattern}


ATTENTION, MLP = "model.layers.*.self_attn", "model.layers.*.mlp"


@options
class HalfTheKeys(Sound):
    """Its role for keys matches the first block only."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"attention.k": "model.layers.0.self_attn.k_proj"})


@options
class TwoLayers(Sound):
    """Its role for outputs knows two blocks."""

    roles: ClassVar[Mapping[str, str]] = with_roles(
        **{"mlp.down": "model.layers.0.mlp.down_proj model.layers.1.mlp.down_proj"}
    )


@options
class ForgetsOutputs(Sound):
    """It has no role for what attention ends with."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"attention.o": ""})


@options
class ForgetsDown(Sound):
    """It has no role for what an mlp ends with."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"mlp.down": ""})


@options
class ForgetsTheFinalNorm(Sound):
    """Its norms are those of the blocks."""

    roles: ClassVar[Mapping[str, str]] = with_roles(norm="model.layers.*norm")


@options
class OneBlockLess(Sound):
    """Its blocks begin with the second."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with all blocks but the first named."""
        found = super().load_model(run, kwargs)
        return replace(found, parts={**found.parts, "block": found.parts["block"][1:]})


@options
class BlocksAreLists(Sound):
    """Its role for blocks names what holds them."""

    roles: ClassVar[Mapping[str, str]] = with_roles(block="model.layers")


@options
class NamesAParent(Sound):
    """Its role for queries names the whole attention."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"attention.q": ATTENTION})


@options
class NamesWhatIsNot(Sound):
    """A role names a module that does not exist."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a name too many."""
        found = super().load_model(run, kwargs)
        return replace(found, parts={**found.parts, "head": (*found.parts["head"], "model.lm_head")})


@options
class NamesTwice(Sound):
    """A role names its modules twice."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with doubled names."""
        found = super().load_model(run, kwargs)
        return replace(found, parts={**found.parts, "mlp.up": found.parts["mlp.up"] * 2})


@options
class NamesBackwards(Sound):
    """Its blocks come last first."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with its blocks in another order."""
        found = super().load_model(run, kwargs)
        return replace(found, parts={**found.parts, "block": found.parts["block"][::-1]})


@options
class SwapsKeysAndValues(Sound):
    """Its roles for keys and values are each other's."""

    roles: ClassVar[Mapping[str, str]] = with_roles(
        **{"attention.k": f"{ATTENTION}.v_proj", "attention.v": f"{ATTENTION}.k_proj"}
    )


@options
class SwapsQueriesAndKeys(Sound):
    """Its roles for queries and keys are each other's."""

    roles: ClassVar[Mapping[str, str]] = with_roles(
        **{"attention.q": f"{ATTENTION}.k_proj", "attention.k": f"{ATTENTION}.q_proj"}
    )


@options
class SwapsInTheLastBlock(Sound):
    """In the last block its roles for keys and values are each other's."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with two names exchanged."""
        found = super().load_model(run, kwargs)
        (*keys, key), (*values, value) = found.parts["attention.k"], found.parts["attention.v"]
        swapped = {"attention.k": (*keys, value), "attention.v": (*values, key)}
        return replace(found, parts={**found.parts, **swapped})


@options
class CallsItFused(Sound):
    """Every projection into attention is under each of its roles."""

    roles: ClassVar[Mapping[str, str]] = with_roles(
        **dict.fromkeys(("attention.q", "attention.k", "attention.v"), f"{ATTENTION}.*_proj")
    )

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model without the outputs among the inputs."""
        found = super().load_model(run, kwargs)
        kept = {r: tuple(n for n in names if r == "attention.o" or not n.endswith("o_proj")) for r, names in
                found.parts.items()}  # fmt: skip
        return replace(found, parts=kept)


@options
class SwapsGateAndUp(Sound):
    """Its roles for gate and up are each other's."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"mlp.gate": f"{MLP}.up_proj", "mlp.up": f"{MLP}.gate_proj"})


@options
class SwapsUpAndDown(Sound):
    """Its roles for up and down are each other's."""

    roles: ClassVar[Mapping[str, str]] = with_roles(**{"mlp.up": f"{MLP}.down_proj", "mlp.down": f"{MLP}.up_proj"})


@options
class FusedUnderOneRole(HFModel):
    """Its one projection for gate and up is under up only."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    roles: ClassVar[Mapping[str, str]] = with_roles(
        **dict.fromkeys(("attention.q", "attention.k", "attention.v"), f"{ATTENTION}.qkv_proj"),
        **{"mlp.gate": "", "mlp.up": f"{MLP}.gate_up_proj"},
    )


@options
class FusedUnderTwoRoles(HFModel):
    """Its one projection for queries, keys and values is not under values."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    roles: ClassVar[Mapping[str, str]] = with_roles(
        **dict.fromkeys(("attention.q", "attention.k"), f"{ATTENTION}.qkv_proj"),
        **dict.fromkeys(("mlp.gate", "mlp.up"), f"{MLP}.gate_up_proj"),
        **{"attention.v": f"{ATTENTION}.o_proj"},
    )


@options
class WithoutAHead(Sound):
    """It has no role for the output layer."""

    roles: ClassVar[Mapping[str, str]] = with_roles(head="")


@options
class HeadIsTheNorm(Sound):
    """Its role for the head names what comes before it."""

    roles: ClassVar[Mapping[str, str]] = with_roles(head="model.norm")


@options
class EmbedsWithTheHead(Sound):
    """Its role for the embedding names the output layer too."""

    roles: ClassVar[Mapping[str, str]] = with_roles(embedding="model.embed_tokens lm_head")


# Tokens


@options
class CountsTheTokenizer(Sound):
    """Its vocabulary is as large as the tokenizer's."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with too small a vocabulary."""
        found = super().load_model(run, kwargs)
        return replace(found, vocab_size=found.vocab_size if found.tokenizer is None else len(found.tokenizer))


@options
class AddsTokens(Sound):
    """It gives the tokenizer a token that the model has no place for."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a larger tokenizer."""
        found = super().load_model(run, kwargs)
        if found.tokenizer is not None:
            found.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|tool|>"]})
        return found


@options
class TakesTheUsualLength(Sound):
    """It takes every checkpoint to read 128 tokens."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with fewer positions."""
        return replace(super().load_model(run, kwargs), max_positions=128)


@options
class TakesTheTokenizersLength(Sound):
    """It believes the tokenizer about positions."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with positions without end."""
        found = super().load_model(run, kwargs)
        tokenizer: Any = found.tokenizer
        return found if tokenizer is None else replace(found, max_positions=int(tokenizer.model_max_length))


@options
class PadsWithAWord(Sound):
    """Its tokenizer pads with a word."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a tokenizer that pads with a letter."""
        found = super().load_model(run, kwargs)
        tokenizer: Any = found.tokenizer
        if tokenizer is not None:
            tokenizer._special_tokens_map["pad_token"] = "e"
        return found


@options
class ReadsLowerCase(Sound):
    """Its tokenizer reads lower case."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a tokenizer of its own."""
        from tokenizers import normalizers

        found = super().load_model(run, kwargs)
        tokenizer: Any = found.tokenizer
        if tokenizer is not None:
            tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        return found


@options
class NeverStops(Sound):
    """It knows no token that ends an answer."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model without stops."""
        return replace(super().load_model(run, kwargs), stop_ids=())


@options
class StopsAtAWord(Sound):
    """A word ends its answers too."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a stop too many."""
        found = super().load_model(run, kwargs)
        return replace(found, stop_ids=(*found.stop_ids, 42))


@options
class StopsAtItsOwnOnly(Sound):
    """It does not look at the generation config."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with the tokenizer's end token."""
        found = super().load_model(run, kwargs)
        tokenizer: Any = found.tokenizer
        return found if tokenizer is None else replace(found, stop_ids=(tokenizer.eos_token_id,))


OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def templated(found: Loaded, template: str) -> Loaded:
    """The same with another chat template."""
    if found.tokenizer is not None:
        found.tokenizer.chat_template = template
    return found


@options
class TrimsAnswers(Sound):
    """Its template takes blanks away from what is said."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template that trims."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}" + OPENING,
        )


@options
class EscapesAnswers(Sound):
    """Its template writes what is said for a page."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template that escapes."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | e }}<|im_end|>\n{% endfor %}" + OPENING,
        )


@options
class ForgetsTheLastStop(Sound):
    """Its template ends an answer only where another turn follows."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template that separates."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
            "{% if not loop.last or m.role != 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}" + OPENING,
        )


@options
class ForgetsEarlierAnswers(Sound):
    """Its template shortens the answers before the last."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template that looks ahead."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}<|im_start|>{{ m.role }}{% if loop.last %} (last){% endif %}\n"
            "{{ m.content }}<|im_end|>\n{% endfor %}" + OPENING,
        )


@options
class OpensAnswersOtherwise(Sound):
    """Its template puts a word before answers that its prompt does not end with."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template that says more in training."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}Well: {% endif %}"
            "{{ m.content }}<|im_end|>\n{% endfor %}" + OPENING,
        )


@options
class JoinsPromptAndAnswer(Sound):
    """Its template ends a prompt with the blank that an answer's first token swallows."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a template of words."""
        return templated(
            super().load_model(run, kwargs),
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}\n"
            "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        )


@options
class LosesTheTemplate(Sound):
    """It takes the chat template away."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a tokenizer that renders nothing."""
        found = super().load_model(run, kwargs)
        if found.tokenizer is not None:
            found.tokenizer.chat_template = None
        return found


# Without a checkpoint, and without weights


@options
class LoadsAnything(Sound):
    """It draws a model when no checkpoint is named."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint, or what comes to mind."""
        from ftcore.testing.stage import tiny_checkpoint

        if run.settings.checkpoint is None:
            return loaded(run, kwargs, weak(run, kwargs), str(tiny_checkpoint("llama")))
        return super().load_model(run, kwargs)


@options
class ForgetsItsSizes(Sound):
    """It has a usual checkpoint and does not ask for it."""

    sizes: ClassVar[Mapping[str, str]] = {"1b": "makers/model-1b"}

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint that is named."""
        if run.settings.checkpoint is None:
            raise Refused("no checkpoint is named; name one with --checkpoint")
        return super().load_model(run, kwargs)


@options
class PlansWithWeights(Sound):
    """Its plans are real."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with random weights for a plan."""
        from transformers import AutoModelForCausalLM

        found = super().load_model(run, kwargs)
        if run.intent != "plan":
            return found
        return replace(found, model=AutoModelForCausalLM.from_config(found.model.config))


@options
class PlansFromWeights(Sound):
    """Its plans need the weights."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, once the weights were looked at."""
        if run.intent == "plan" and not list(Path(str(run.settings.checkpoint)).glob("*.safetensors")):
            raise Refused(f"there are no weights in '{run.settings.checkpoint}'; add them")
        return super().load_model(run, kwargs)


@options
class PlansWithoutParts(Sound):
    """Its plans know half of the roles."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, for a plan without the mlp."""
        found = super().load_model(run, kwargs)
        if run.intent != "plan":
            return found
        return replace(found, parts={r: n for r, n in found.parts.items() if not r.startswith("mlp.")})


@options
class PlansWithoutTokenizer(Sound):
    """Its plans never have a tokenizer."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, for a plan alone."""
        found = super().load_model(run, kwargs)
        return replace(found, tokenizer=None) if run.intent == "plan" else found


@options
class PlansUntied(Sound):
    """Its plans have two tensors where the run has one."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, for a plan with a head of its own."""
        from torch import nn

        found = super().load_model(run, kwargs)
        if run.intent == "plan":
            found.model.lm_head.weight = nn.Parameter(found.model.lm_head.weight.detach().clone())
        return found


@options
class PlansByTheWay(Sound):
    """Its plans are made of real weights that are thrown away."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, for a plan as the shadow of a real one."""
        from transformers import AutoModelForCausalLM

        found = super().load_model(run, kwargs)
        if run.intent != "plan":
            return found
        model = AutoModelForCausalLM.from_config(found.model.config, dtype=dtype_of(run.settings)).to("meta")
        model.tie_weights()
        return replace(found, model=model)


@options
class TiesAlways(Sound):
    """Its head is the embedding, whatever the config says."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with one tensor for two."""
        found = super().load_model(run, kwargs)
        found.model.lm_head.weight = found.model.model.embed_tokens.weight
        return found


@options
class Unties(Sound):
    """It gives the head a tensor of its own."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with two tensors for one."""
        from torch import nn

        found = super().load_model(run, kwargs)
        if run.intent != "plan":
            found.model.lm_head.weight = nn.Parameter(found.model.lm_head.weight.detach().clone())
        return found


@options
class ForgetsTheTie(Sound):
    """Its models are tied, and their config says that they are not."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with another config."""
        found = super().load_model(run, kwargs)
        found.model.config.tie_word_embeddings = False
        return found


@options
class DrawsAlike(Sound):
    """Its random weights are those of one seed."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with what the first seed gives."""
        import torch

        if self.weights != "random":
            return super().load_model(run, kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().load_model(run, kwargs)


@options
class DrawsAnew(Sound):
    """Its random weights are never the same."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with what comes."""
        found = super().load_model(run, kwargs)
        if self.weights == "random" and run.intent != "plan":
            KEPT["drawn"] = KEPT.get("drawn", 0) + 1
            found.model.lm_head.weight.data += KEPT["drawn"]
        return found


@options
class DrawsNothing(Sound):
    """Its random weights are the checkpoint's, where there are some."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model of the checkpoint, or one drawn."""
        there = run.settings.checkpoint and Path(run.settings.checkpoint, "model.safetensors").exists()
        return (Sound() if there else super()).load_model(run, kwargs)
