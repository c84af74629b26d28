"""What families that transformers implements share: strict loading, parts by role, no code from a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ftcore.converting import Fields, Original, native, places_of, shapes_of
from ftcore.declaring import nearest, options
from ftcore.discovery import Offer, declared_datum, sound
from ftcore.errors import Refused
from ftcore.hooks import Loaded, Run, hookimpl
from ftcore.settings import Settings, dtype_of
from ftcore.weights import without_pickles

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Info = Mapping[str, Any]  # what transformers says of the names that a checkpoint and a model do not share

UNLIMITED = 2**20  # positions, where a family computes them from distances
LABELS = ("num_labels", "id2label", "label2id", "problem_type")  # fields of a config that a task decides

# What a task may ask for, and the class of transformers that has it.
HEADS: Mapping[str, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}

LLAMA_ROLES: Mapping[str, str] = {
    "block": "model.layers.*",
    "attention.q": "model.layers.*.self_attn.q_proj",
    "attention.k": "model.layers.*.self_attn.k_proj",
    "attention.v": "model.layers.*.self_attn.v_proj",
    "attention.o": "model.layers.*.self_attn.o_proj",
    "mlp.gate": "model.layers.*.mlp.gate_proj",
    "mlp.up": "model.layers.*.mlp.up_proj",
    "mlp.down": "model.layers.*.mlp.down_proj",
    "norm": "model.*norm",
    "embedding": "model.embed_tokens",
    "head": "lm_head score",
}
# What decoders can be given: the head that they were published with, or one that scores a whole text.
DECODES, SCORES = ("causal-lm", "sequence-classification"), ("sequence-classification",)
# What files hold for the head of a language model, where another one is asked for.
LANGUAGE_HEAD = r"(lm_head|embed_out)\..*"


@options
class HFModel:
    """A family that transformers implements: `model_types` it loads, `roles` as module patterns, perhaps a `starter`.

    In a pattern `*` stands for any run of characters, a block's number or more; blanks separate several patterns.
    `originals` say how checkpoints of other names and shapes become native. `leftovers` are expressions for tensors
    that files hold and the model asked for does not need; `drawn_heads` those heads that a checkpoint may lack, or
    have for other labels: the modules with the role `head`, and what pools for them, then train whole beside any
    method. `unpackable` is why rows are padded, for all types or by type. `sizes` are published checkpoints by their
    names for short, the first of them taken where none is named and there is no starter.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    originals: ClassVar[tuple[Original, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, str]] = LLAMA_ROLES
    starter: ClassVar[Path | None] = None
    sizes: ClassVar[Mapping[str, str]] = {}
    leftovers: ClassVar[tuple[str, ...]] = ()
    drawn_heads: ClassVar[tuple[str, ...]] = ()
    unpackable: ClassVar[str | Mapping[str, str]] = ""
    starter_lr_scale: ClassVar[float] = 20.0

    weights: Annotated[
        Literal["pretrained", "random"],
        Field(description="Read the checkpoint's weights, or start from random ones with its config and tokenizer."),
    ] = "pretrained"
    size: Annotated[
        str,
        Field(description="Published weights by the name of their size instead of --checkpoint; the README has them."),
    ] = ""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class, every weight filled from the checkpoint and none left over."""
        folder = self.folder(run)
        original = self.original(read_fields(folder)) if self.originals else None
        if original is not None:
            return self._converted(run, folder, original, kwargs)
        config = read_config(folder, self.model_types, self.known_types)
        tokenizer = read_tokenizer(folder, optional=run.intent == "plan")
        spare = partial(self._spared, run)
        model = self._model(
            run, config, kwargs, lambda auto, given: strictly_loaded(auto, folder, config, given, spare)
        )
        return self._loaded(run, folder, model, tokenizer, stop_ids(model, tokenizer))

    def folder(self, run: Run) -> str:
        """The directory of the weights, downloaded where a hub id or a size is asked for."""
        place = locate(sized(run, self), self.starter, type(self).__name__)
        return without_adapter(place)

    @property
    def known_types(self) -> tuple[str, ...]:
        """The model types that it loads as they are, and those that it makes native."""
        return tuple(dict.fromkeys((*(one.model_type for one in self.originals), *self.model_types)))

    def original(self, fields: Fields) -> Original | None:
        """What says how a checkpoint with this config.json becomes native; None when it is native already."""
        kind = fields.get("model_type")
        return next((one for one in self.originals if one.model_type == kind and one.recognises(fields)), None)

    def _converted(self, run: Run, folder: str, original: Original, kwargs: Mapping[str, Any]) -> Loaded:
        """A checkpoint of other names and shapes in transformers' own class, with a tokenizer built from its files."""
        import torch

        fields = read_fields(folder)
        refuse_quantised(folder, fields)
        config = native_config(folder, original, fields)
        with torch.device("meta"):
            empty = class_with(run.head, config).from_config(config)
        rules, shapes, unused = original.rules(fields), shapes_of(empty), ""
        if run.head in self.drawn_heads:
            shapes, unused = _without_head(shapes, empty), LANGUAGE_HEAD
        tensors = partial(native, folder, rules, shapes, original.zeros(fields), unused)
        read = tensors() if run.intent != "plan" and self.weights == "pretrained" else None
        tokenizer = built_tokenizer(folder, original, fields, optional=run.intent != "train")
        model = self._model(run, config, kwargs, lambda _, given: filled(type(empty), config, read or {}, given))
        original.finish(model, read)
        if unused and run.intent == "train":
            run.say(f"the checkpoint has no head for {run.head}: a new one is drawn")
        if note := original.note(fields) if run.intent != "plan" else "":
            run.say(note)
        known = tokenizer.get_vocab() if tokenizer else {}
        stops = (*stop_ids(model, tokenizer), *(known[stop] for stop in original.stops if stop in known))
        loaded = self._loaded(run, folder, model, tokenizer, tuple(dict.fromkeys(stops)))
        return replace(loaded, tensors=tensors, places=places_of(rules, shapes))

    def _loaded(
        self,
        run: Run,
        folder: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        stops: tuple[int, ...],
    ) -> Loaded:
        config: Any = model.config
        if run.head in self.drawn_heads:
            _know_padding(config, tokenizer)
        parts = parts_of(model, self.roles)
        return Loaded(
            model=model,
            tokenizer=tokenizer,
            parts=parts,
            checkpoint=folder,
            max_positions=int(getattr(config, "max_position_embeddings", None) or UNLIMITED),
            vocab_size=int(config.vocab_size),
            stop_ids=stops,
            unpackable=self._why_padded(config),
            trained=self._trained(model) if run.head in self.drawn_heads else (),
            lr_scale=self.starter_lr_scale if folder == str(self.starter) else 1.0,
        )

    def _model(
        self,
        run: Run,
        config: PreTrainedConfig,
        kwargs: Mapping[str, Any],
        pretrained: Callable[[Any, Mapping[str, Any]], PreTrainedModel],
    ) -> PreTrainedModel:
        import torch

        from ftcore.attention import register

        auto = class_with(run.head, config)
        given = {"attn_implementation": register(), "dtype": dtype_of(run.settings), "trust_remote_code": False}
        if self._why_padded(config):
            given.pop("attn_implementation")
        given |= {name: value for name, value in kwargs.items() if name not in LABELS}
        for name in (label for label in LABELS if label in kwargs):
            setattr(config, name, kwargs[name])
        if run.intent == "plan":
            with torch.device("meta"):
                return auto.from_config(config, **given)  # type: ignore[no-any-return]
        if self.weights == "random":
            return auto.from_config(config, **given)  # type: ignore[no-any-return]
        if run.head in self.drawn_heads and "quantization_config" in given:
            with torch.device("meta"):
                trained = self._trained(auto.from_config(config))
            given["quantization_config"] = _sparing(given["quantization_config"], trained)
        return pretrained(auto, given)

    def _trained(self, model: PreTrainedModel) -> tuple[str, ...]:
        """The modules that train beside any method: the head, and what pools for it."""
        return (*parts_of(model, self.roles).get("head", ()), *_poolers(model))

    def _why_padded(self, config: PreTrainedConfig) -> str:
        said = self.unpackable
        return said if isinstance(said, str) else said.get(config.model_type, "")

    def _spared(self, run: Run, model: PreTrainedModel, info: Info) -> Info:
        """What is missing and unexpected without a head to be drawn and without leftovers, which both are said."""
        unexpected, missing, other = set(info["unexpected_keys"]), set(info["missing_keys"]), _misshapen(info)
        unused = (*self.leftovers, *([LANGUAGE_HEAD] if run.head in self.drawn_heads else []))
        left = {name for name in unexpected if any(re.fullmatch(pattern, name) for pattern in unused)}
        drawn = missing | other if run.head in self.drawn_heads and _of_the_head(missing, other, model) else set()
        if run.intent == "train" and drawn:
            why = "has no head" if drawn == missing else "has a head of another size"
            run.say(f"the checkpoint {why} for {run.head}: a new one is drawn ({_modules_of(drawn)})")
        if run.intent == "train" and left:
            many = f"{len(left)} tensors of the checkpoint have" if len(left) > 1 else "1 tensor of the checkpoint has"
            run.say(f"{many} no use here and {'are' if len(left) > 1 else 'is'} left out ({_modules_of(left)})")
        return {
            **info,
            "unexpected_keys": unexpected - left,
            "missing_keys": missing - drawn,
            "mismatched_keys": other - drawn,
        }


def _sparing(quantised: Any, modules: Sequence[str]) -> Any:
    """The quantisation with these modules left as they are, in whichever field of transformers' it names them."""
    kept = copy(quantised)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if modules and hasattr(kept, field):  # an empty list would take transformers' own exceptions away
            setattr(kept, field, [*(getattr(kept, field) or ()), *modules])
    return kept


def converting_family(checkpoint: str) -> str:
    """The installed family that makes such a checkpoint plain; Refused unless there is exactly one."""
    run = Run(Settings(checkpoint=checkpoint), "plan", "")
    kind = read_fields(locate(run, None, "")).get("model_type")
    found = [offer.name for offer in sound("model") if _converts(offer, kind)]
    if not found:
        raise Refused(
            f"the checkpoint '{checkpoint}' is of type '{kind}', which no family converts; is it plain already?"
        )
    if len(found) > 1:
        raise Refused(
            f"checkpoints of type '{kind}' are converted by {', '.join(found)}; name one of them with --model"
        )
    return found[0]


def _converts(offer: Offer, kind: Any) -> bool:
    return any(original.model_type == kind for original in declared_datum(offer.load(), "originals") or ())


def sized(run: Run, family: HFModel) -> Run:
    """The run with the checkpoint that the family's option `size` names, or the usual one where there is no starter."""
    asked, size, name = run.settings.checkpoint, family.size, type(family).__name__
    if size and asked is not None:
        raise Refused(f"the size '{size}' and the checkpoint '{asked}' are both given; leave one of them out")
    if size and size not in family.sizes:
        known = f"it has {', '.join(family.sizes)}" if family.sizes else "name base weights with --checkpoint"
        raise Refused(f"the family {name} knows no size '{size}'; {known}")
    if asked is not None or not family.sizes or (family.starter is not None and not size):
        return run
    chosen = family.sizes[size] if size else next(iter(family.sizes.values()))
    if not size and run.intent in ("train", "plan"):
        run.say(f"no --checkpoint given: '{chosen}' is used, from the hub; pass --checkpoint PATH|HUB_ID for another")
    return replace(run, settings=replace(run.settings, checkpoint=chosen))


def locate(run: Run, starter: Path | None, family: str) -> str:
    """The directory of the base weights; Refused when a path does not hold a checkpoint."""
    asked = run.settings.checkpoint
    if asked is None:
        if starter is None:
            raise Refused(f"the family {family} ships no starter; name base weights with --checkpoint PATH|HUB_ID")
        if run.intent in ("train", "plan"):
            run.say("no --checkpoint given: the family's built-in starter is used; pass --checkpoint PATH|HUB_ID")
        return str(starter)
    path = Path(asked).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Refused(f"the checkpoint '{asked}' has no config.json; pass the directory that holds one")
        return str(path.resolve())
    if path.exists() or asked.startswith((".", "/", "~")) or asked.count("/") > 1:
        siblings = {p.name for p in path.parent.glob("*") if p.is_dir()} if path.parent.is_dir() else set()
        near = nearest(path.name, siblings)
        hint = f"did you mean '{path.parent / near}'?" if near else "pass a directory with config.json or a hub id"
        raise Refused(f"the checkpoint '{asked}' is no directory; {hint}")
    return _snapshot(asked, weights=run.intent != "plan")


def without_adapter(folder: str) -> str:
    """The folder; Refused when an adapter lies beside its weights, which transformers would put in unasked."""
    if Path(folder, "adapter_config.json").exists():
        raise Refused(f"the checkpoint '{folder}' holds an adapter beside its weights; merge it, or take the file out")
    return folder


def _snapshot(hub_id: str, *, weights: bool) -> str:
    """The local copy of a hub checkpoint, with its weights or without; pickled ones where there are no others."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        folder = str(snapshot_download(hub_id, allow_patterns=wanted))
        if weights and not any(Path(folder).glob("*.safetensors")):
            return str(snapshot_download(hub_id, allow_patterns=[*wanted, "*.bin"]))
        return folder
    except Exception as unreachable:
        reason = str(unreachable).strip().splitlines()[0]
        raise Refused(f"the checkpoint '{hub_id}' is no directory and the hub did not give it ({reason})") from None


def read_fields(folder: str) -> Fields:
    """The fields of a checkpoint's config.json, as they are written."""
    try:
        fields = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as unreadable:
        raise Refused(f"the config.json in '{folder}' cannot be read: {unreadable}") from None
    if not isinstance(fields, dict):
        raise Refused(f"the config.json in '{folder}' cannot be read: it is no object")
    return fields


def refuse_quantised(folder: str, fields: Fields) -> None:
    """Refused when the weights are not the numbers that the model computes with."""
    kind = fields.get("quantization_config")
    if kind:
        method = kind.get("quant_method", "some method") if isinstance(kind, dict) else kind
        raise Refused(f"the checkpoint '{folder}' is quantised by {method}; use the unquantised one it was made from")


def native_config(folder: str, original: Original, fields: Fields) -> PreTrainedConfig:
    """The native config of an original checkpoint; Refused when its own lacks a field or has one that means nothing."""
    try:
        return original.config(fields)
    except (KeyError, TypeError, ValueError) as unfit:
        what = f"it lacks {unfit}" if isinstance(unfit, KeyError) else " ".join(str(unfit).split())[:200]
        raise Refused(f"the config.json in '{folder}' cannot be read: {what}; use the published one") from None


def built_tokenizer(
    folder: str, original: Original, fields: Fields, *, optional: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer made from a checkpoint's own vocabulary; None where it may be absent and there is no file."""
    if any(any(Path(folder).glob(pattern)) for pattern in ("*.model", "*.tiktoken")):
        return original.tokenizer(Path(folder), fields)
    if optional:
        return None
    raise Refused(f"the tokenizer in '{folder}' cannot be read: there is no vocabulary; add its tokenizer.model")


def read_config(folder: str, model_types: tuple[str, ...], known: tuple[str, ...] = ()) -> PreTrainedConfig:
    """The configuration of a checkpoint whose model type is one of `model_types`; no code beside it is ever run.

    A refusal names the types that are `known`, where the family makes others native too.
    """
    from transformers import AutoConfig

    loads = ", ".join(known or model_types)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as unreadable:
        kind = read_fields(folder).get("model_type")
        reason = _why_unread(unreadable, "use a checkpoint of a type that transformers has")
        foreign = f"it is of type '{kind}', and this family loads {loads}; 'ftcore plugins' lists the families"
        why = reason if kind in model_types else foreign
        raise Refused(f"the config.json in '{folder}' cannot be read: {why}") from None
    if config.model_type not in model_types:
        raise Refused(
            f"the checkpoint '{folder}' is of type '{config.model_type}', and this family loads {loads}; "
            "'ftcore plugins' lists the families"
        )
    config._attn_implementation = None  # a file may name a kernel of the hub there, which is code
    return config


def read_tokenizer(folder: str, *, optional: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a checkpoint, with exact character offsets; None where it may be absent and is."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_ids) + 2:  # what some classes make of a folder without files
            raise ValueError("it has no vocabulary; add its tokenizer.json")
    except Exception as unreadable:
        if optional:
            return None
        reason = _why_unread(unreadable, "name a tokenizer_class of transformers in its tokenizer_config.json")
        raise Refused(f"the tokenizer in '{folder}' cannot be read: {reason}") from None
    if not tokenizer.is_fast:
        raise Refused(f"the tokenizer in '{folder}' gives no character offsets; add its tokenizer.json")
    return tokenizer


def _why_unread(fault: Exception, remedy: str) -> str:
    """What transformers says of a file that it does not read; not that it would run code for it, but the `remedy`."""
    said = " ".join(str(fault).split()) or type(fault).__name__
    if "custom code" in said:
        return f"only code that comes with it could, and no such code is ever run; {remedy}"
    return said[:200]


def strictly_loaded(
    auto: Any,
    folder: str,
    config: PreTrainedConfig,
    given: Mapping[str, Any],
    spared: Callable[[PreTrainedModel, Info], Info] = lambda model, info: info,
) -> PreTrainedModel:
    """The model with every tensor of the checkpoint in its place; a missing or unexpected one is refused by name.

    `spared` answers what of the names that do not fit is still to be refused.
    """
    from safetensors import SafetensorError

    try:
        with without_pickles(Path(folder)) as place:
            model, info = auto.from_pretrained(
                place,
                config=config,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                **given,
            )
    except (OSError, RuntimeError, LookupError, SafetensorError) as unreadable:
        reason = " ".join(str(unreadable).split())[:200] or type(unreadable).__name__
        raise Refused(f"the weights in '{folder}' cannot be read: {reason}") from None
    model.name_or_path = model.config.name_or_path = folder
    info = spared(model, info)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            name = min(key if isinstance(key, str) else key[0] for key in info[kind])
            raise Refused(
                f"the weights in '{folder}' do not fill the model: {len(info[kind])} {kind.replace('_keys', '')} "
                f"tensors, the first is '{name}'; the checkpoint is incomplete or of another architecture"
            )
    return model  # type: ignore[no-any-return]


def class_with(head: str, config: PreTrainedConfig) -> Any:
    """Transformers' class for a head; Refused when models of the config's type have none."""
    import transformers

    auto = getattr(transformers, HEADS[head])
    if type(config) not in auto._model_mapping:
        raise Refused(
            f"models of type '{config.model_type}' have no head for {head} in transformers; use a checkpoint of "
            "another type, or a task that needs another head"
        )
    return auto


def _without_head(shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    inside = f"{model.base_model_prefix}."
    return {name: shape for name, shape in shapes.items() if name.startswith(inside)}


def _know_padding(config: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """A head that reads the last token before the padding knows what the padding is."""
    known = getattr(config, "pad_token_id", None)
    if tokenizer is not None and (known is None or known < 0):
        own = tokenizer.pad_token_id
        config.pad_token_id = tokenizer.eos_token_id if own is None else own


def _poolers(model: PreTrainedModel) -> list[str]:
    """What sums a row up for its head, which checkpoints without that head lack too."""
    return [name for name, _ in model.named_modules() if name == f"{model.base_model_prefix}.pooler"]


def _misshapen(info: Info) -> set[str]:
    return {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}


def _of_the_head(missing: set[str], misshapen: set[str], model: PreTrainedModel) -> bool:
    """Whether the head of `model` is missing whole, maybe with what pools for it, or has layers of another size."""
    inside = f"{model.base_model_prefix}."
    head = {name for name, _ in model.named_parameters() if not name.startswith(inside)}
    pooling = {f"{inside}pooler.dense.weight", f"{inside}pooler.dense.bias"}
    layers = {name.rpartition(".")[0] for name in misshapen}
    resized = {name for name in head if name.rpartition(".")[0] in layers} == misshapen
    whole = head <= missing <= head | pooling if missing else bool(misshapen)
    return bool(head) and whole and resized


def _modules_of(names: set[str]) -> str:
    """The modules that tensors are in, one for all blocks."""
    return ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] for name in names}))


def filled(
    cls: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> PreTrainedModel:
    """The model made of exactly these tensors, in the precision asked for."""
    state = {name: tensor.to(given["dtype"]) for name, tensor in tensors.items()}
    return cls.from_pretrained(None, config=config, state_dict=state, **given)


def parts_of(model: nn.Module, roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The module names behind each role; a role that matches nothing in this model is left out."""
    names = [name for name, _ in model.named_modules()]
    found = {role: tuple(filter(_expression(pattern).fullmatch, names)) for role, pattern in roles.items()}
    return {role: matched for role, matched in found.items() if matched}


def _expression(patterns: str) -> re.Pattern[str]:
    """A name that is `*` stands for a block's number, any other `*` for a run of characters."""
    return re.compile("|".join(map(_alternative, patterns.split())))


def _alternative(pattern: str) -> str:
    parts = [r"\d+" if part == "*" else re.escape(part).replace(r"\*", ".*") for part in pattern.split(".")]
    return r"\.".join(parts)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The tokens that end an answer, by generation config and tokenizer; a model that generates nothing has none."""
    generates = getattr(model, "generation_config", None)
    if generates is None:
        return ()
    configured = generates.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    own = tokenizer.eos_token_id if tokenizer is not None else None
    return tuple(dict.fromkeys(token for token in (own, *listed) if token is not None))
