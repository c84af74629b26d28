"""What families that transformers implements share: strict loading, parts by role, no code from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ftcore.declaring import nearest, options
from ftcore.errors import Refused
from ftcore.hooks import Loaded, Run, hookimpl
from ftcore.settings import dtype_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 2**20  # positions, where a family computes them from distances

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
    "head": "lm_head",
}


@options
class HFModel:
    """A family that transformers implements: `model_types` it loads, `roles` as module patterns, perhaps a `starter`.

    In a pattern `*` stands for any run of characters, a block's number or more; blanks separate several patterns.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, str]] = LLAMA_ROLES
    starter: ClassVar[Path | None] = None
    unpackable: ClassVar[str] = ""
    starter_lr_scale: ClassVar[float] = 20.0

    weights: Annotated[
        Literal["pretrained", "random"],
        Field(description="Read the checkpoint's weights, or start from random ones with its config and tokenizer."),
    ] = "pretrained"

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class, every weight filled from the checkpoint and none left over."""
        folder = without_adapter(locate(run, self.starter, type(self).__name__))
        config = read_config(folder, self.model_types)
        tokenizer = read_tokenizer(folder, optional=run.intent == "plan")
        model = self._model(run, folder, config, dict(kwargs))
        return Loaded(
            model=model,
            tokenizer=tokenizer,
            parts=parts_of(model, self.roles),
            checkpoint=folder,
            max_positions=int(getattr(config, "max_position_embeddings", None) or UNLIMITED),
            vocab_size=int(config.vocab_size),
            stop_ids=stop_ids(model, tokenizer),
            unpackable=self.unpackable,
            lr_scale=self.starter_lr_scale if run.settings.checkpoint is None else 1.0,
        )

    def _model(self, run: Run, folder: str, config: PreTrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
        import torch
        import transformers

        from ftcore.attention import register

        auto = getattr(transformers, HEADS[run.head])
        given = {"attn_implementation": register(), "dtype": dtype_of(run.settings), "trust_remote_code": False}
        if self.unpackable:
            given.pop("attn_implementation")
        given |= kwargs
        if run.intent == "plan":
            with torch.device("meta"):
                return auto.from_config(config, **given)  # type: ignore[no-any-return]
        if self.weights == "random":
            return auto.from_config(config, **given)  # type: ignore[no-any-return]
        return strictly_loaded(auto, folder, config, given)


def locate(run: Run, starter: Path | None, family: str) -> str:
    """The directory or hub id of the base weights; Refused when a path does not hold a checkpoint."""
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
    """The local copy of a hub checkpoint, with its weights or without."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return str(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as unreachable:
        reason = str(unreachable).strip().splitlines()[0]
        raise Refused(f"the checkpoint '{hub_id}' is no directory and the hub did not give it ({reason})") from None


def read_config(folder: str, model_types: tuple[str, ...]) -> PreTrainedConfig:
    """The configuration of a checkpoint whose model type is one of `model_types`; no code beside it is ever run."""
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as unreadable:
        reason = " ".join(str(unreadable).split())[:200] or type(unreadable).__name__
        raise Refused(f"the config.json in '{folder}' cannot be read: {reason}") from None
    if config.model_type not in model_types:
        raise Refused(
            f"the checkpoint '{folder}' is of type '{config.model_type}', and this family loads "
            f"{', '.join(model_types)}; 'ftcore plugins' lists the families"
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
        reason = (str(unreadable).strip() or type(unreadable).__name__).splitlines()[0]
        raise Refused(f"the tokenizer in '{folder}' cannot be read: {reason}") from None
    if not tokenizer.is_fast:
        raise Refused(f"the tokenizer in '{folder}' gives no character offsets; add its tokenizer.json")
    return tokenizer


def strictly_loaded(auto: Any, folder: str, config: PreTrainedConfig, given: Mapping[str, Any]) -> PreTrainedModel:
    """The model with every tensor of the checkpoint in its place; a missing or unexpected one is refused by name."""
    from safetensors import SafetensorError

    try:
        model, info = auto.from_pretrained(
            folder, config=config, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **given
        )
    except (OSError, RuntimeError, LookupError, SafetensorError) as unreadable:
        reason = " ".join(str(unreadable).split())[:200] or type(unreadable).__name__
        raise Refused(f"the weights in '{folder}' cannot be read: {reason}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            name = min(key if isinstance(key, str) else key[0] for key in info[kind])
            raise Refused(
                f"the weights in '{folder}' do not fill the model: {len(info[kind])} {kind.replace('_keys', '')} "
                f"tensors, the first is '{name}'; the checkpoint is incomplete or of another architecture"
            )
    return model  # type: ignore[no-any-return]


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
