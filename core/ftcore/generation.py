"""What a model says after a prompt: greedy or sampled, up to a stop token, piece by piece when somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase


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
    assert tokenizer is not None
    streamer = _Listener(tokenizer, heard) if heard else None
    return _said(model, tokenizer, [input_ids], _settings(stop_ids, max_new_tokens, temperature), streamer)[0]


def generate_all(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    positions: int,
    batch_size: int = 16,
) -> list[str]:
    """What the model, which has so many positions, says after each prompt, greedily.

    Prompts of one length are read together, so that none needs padding, and a prompt that fills all positions has no
    answer.
    """
    assert tokenizer is not None
    answers = [""] * len(prompts)
    for numbers in _alike(prompts, batch_size):
        room = min(max_new_tokens, positions - len(prompts[numbers[0]]))
        if room > 0:
            said = _said(model, tokenizer, [prompts[number] for number in numbers], _settings(stop_ids, room))
            for number, answer in zip(numbers, said, strict=True):
                answers[number] = answer
    return answers


def _alike(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """The numbers of prompts of one length, no more than `most` together."""
    of_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        of_length.setdefault(len(prompt), []).append(number)
    for numbers in of_length.values():
        yield from (numbers[start : start + most] for start in range(0, len(numbers), most))


def _settings(stop_ids: Sequence[int], max_new_tokens: int, temperature: float = 0.0) -> GenerationConfig:
    from transformers import GenerationConfig

    sampled: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    stops = sorted(set(stop_ids))
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        **sampled,
    )


def _said(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    streamer: _Listener | None = None,
) -> list[str]:
    """What follows prompts of one length."""
    import torch

    read = torch.tensor([list(prompt) for prompt in prompts], device=next(model.parameters()).device)
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            input_ids=read, attention_mask=torch.ones_like(read), generation_config=settings, streamer=streamer
        )
    apart = model.config.is_encoder_decoder  # type: ignore[union-attr]  # what is said follows the decoder's start alone
    answers = [_stopped(ids, settings.eos_token_id or ()) for ids in out[:, 1 if apart else read.shape[1] :].tolist()]
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]


def _stopped(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens up to the first that stops; what follows it fills up a batch."""
    return ids[: next((at for at, token in enumerate(ids) if token in stop_ids), len(ids)) + 1]


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
