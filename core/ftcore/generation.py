"""What a model says after a prompt: greedy or sampled, up to a stop token, piece by piece when somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


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
