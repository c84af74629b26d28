"""Talking to a model: the same template as in training, greedy or sampled, one token at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.discovery import declared_datum, offers
from ftcore.errors import Refused

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ftcore.hooks import Loaded


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    input_ids: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    heard: Callable[[str], None] | None = None,
) -> str:
    """What the model says after `input_ids`, up to a stop token; `heard` gets the text piece by piece."""
    import torch
    from transformers import GenerationConfig

    assert tokenizer is not None
    sampled: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    stops = sorted(set(stop_ids))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        **sampled,
    )
    device = next(model.parameters()).device
    prompt = torch.tensor([list(input_ids)], device=device)
    streamer = _Listener(tokenizer, heard) if heard else None
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=streamer
        )
    answer = tokenizer.decode(out[0, len(input_ids) :], skip_special_tokens=True)
    return str(answer).strip()


class _Listener:
    """Hands on text as tokens arrive, holding back characters that are not complete yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, heard: Callable[[str], None]) -> None:
        self.tokenizer, self.heard = tokenizer, heard
        self.tokens: list[int] = []
        self.said = 0
        self.prompt = True

    def put(self, value: Any) -> None:
        """Called by generate: first with the prompt, then with each new token."""
        if self.prompt:
            self.prompt = False
            return
        self.tokens.extend(value.reshape(-1).tolist())
        text = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))
        if not text.endswith("�"):
            self._hand_on(text)

    def end(self) -> None:
        """Called by generate when it has stopped."""
        self._hand_on(str(self.tokenizer.decode(self.tokens, skip_special_tokens=True)))

    def _hand_on(self, text: str) -> None:
        if len(text) > self.said:
            self.heard(text[self.said :])
            self.said = len(text)


def opened(where: str, family: str | None) -> Loaded:
    """A run with its adapter, or a plain checkpoint of `family`, ready to answer."""
    from ftcore import api, pipeline

    if (Path(where) / pipeline.RUN_FILE).exists():
        return api.attach(where)
    return api.load(family or _family(where), checkpoint=where)


def _family(where: str) -> str:
    """The installed family that loads the model type of a checkpoint directory."""
    file = Path(where) / "config.json"
    if not file.is_file():
        raise Refused(f"'{where}' is neither a run nor a checkpoint directory; for a hub id name the --model too")
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    for offer in offers("model"):
        if model_type in declared_datum(offer.load(), "model_types"):
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
    messages = [{"role": "system", "content": system}] if system else []
    for question in asked:
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = loaded.max_positions - len(prompt)
        if room < 1:
            raise Refused(f"the conversation fills all {loaded.max_positions} positions of the model; begin a new one")
        answer = generate(
            loaded.model, tokenizer, prompt, loaded.stop_ids, min(max_new_tokens, room), temperature, heard
        )
        heard("\n")
        messages.append({"role": "assistant", "content": answer})
    return messages
