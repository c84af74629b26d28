"""Talking to a model in turns, by the same chat template as in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore import api
from ftcore.directory import RUN_FILE
from ftcore.discovery import declared_datum, sound
from ftcore.errors import Refused
from ftcore.generation import generate
from ftcore.problems import BadRow
from ftcore.shapes import Conversation, Message
from ftcore.templates import Template

if TYPE_CHECKING:
    from ftcore.hooks import Loaded


def opened(where: str, family: str | None) -> Loaded:
    """A run with its adapter, or a plain checkpoint of `family`, ready to answer."""
    if (Path(where) / RUN_FILE).exists():
        return _talking(api.attach(where), where)
    loaded = api.load(family or _family(where), checkpoint=where)
    if loaded.tokenizer is None:
        raise Refused(f"the checkpoint '{where}' has no tokenizer; add the files of its vocabulary")
    return loaded


def _talking(loaded: Loaded, where: str) -> Loaded:
    """The run as it is; Refused when its model says no texts."""
    if getattr(loaded.model, "generation_config", None) is None:
        raise Refused(f"the run in '{where}' answers with numbers and says no texts; ask it with 'ftcore predict'")
    return loaded


def _family(where: str) -> str:
    """The installed family that loads the model type of a checkpoint directory."""
    file = Path(where) / "config.json"
    if not file.is_file():
        raise Refused(f"'{where}' is neither a run nor a checkpoint directory; for a hub id name the --model too")
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    for offer in sound("model"):
        family = offer.load()
        native = declared_datum(family, "model_types")
        if model_type in (*native, *(one.model_type for one in declared_datum(family, "originals"))):
            return offer.name
    raise Refused(f"no installed family loads the model type '{model_type}' of '{where}'; name one with --model")


def converse(
    loaded: Loaded,
    asked: Iterator[str],
    heard: Callable[[str], None],
    *,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
) -> list[dict[str, str]]:
    """A conversation of several turns, each answered with all that was said before; the messages, at the end."""
    tokenizer: Any = loaded.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise Refused("the tokenizer has no chat template; chat with a run of an instruction task, or with its merge")
    template = Template.of(loaded, None, heard)
    messages = [{"role": "system", "content": system}] if system else []
    for question in asked:
        messages.append({"role": "user", "content": question})
        prompt = _prompt(template, messages)
        room = loaded.max_positions - len(prompt)
        if room < 1:
            raise Refused(f"the conversation fills all {loaded.max_positions} positions of the model; begin a new one")
        answer = generate(
            loaded.model, tokenizer, prompt, loaded.stop_ids, min(max_new_tokens, room), temperature, heard
        )
        heard("\n")
        messages.append({"role": "assistant", "content": answer})
    return messages


def _prompt(template: Template, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens of the messages as training has them, with the opening of an answer; Refused where it refuses them."""
    said = tuple(Message(message["role"], message["content"]) for message in messages)
    try:
        return template.prompt(Conversation(said, "the conversation"))
    except BadRow as bad:
        raise Refused(f"the conversation {bad.problem.found}; {bad.problem.remedy}") from None
