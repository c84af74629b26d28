"""A conversation as tokens with an exact mask, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from ftcore.batches import IGNORED, TokenRow, token_row
from ftcore.conversations import Conversation, Message
from ftcore.errors import Refused
from ftcore.hooks import Loaded, Piece
from ftcore.problems import BadRow, Problem

# For tokenizers that bring none: the roles in words, each answer ended by the tokenizer's own end token.
PLAIN = (
    "{% if bos_token %}{{ bos_token }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Turns(TokenRow):
    """One conversation ready to train on; `merged` counts answers whose first token begins in the prompt.

    `stop_id` is what ends an answer, `stopped` whether the row still holds it, `cut` whether it was longer.
    """

    stop_id: int
    stopped: bool
    cut: bool
    merged: int

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        return {
            "rows_cut": int(self.cut),
            "tokens": self.size,
            "supervised_tokens": self.supervised,
            "merged_with_prompt": self.merged,
        }


@dataclass(frozen=True)
class Region:
    """Where an answer stands in the rendered text, from after the prompt to the end of its stop token."""

    start: int
    end: int
    stop: str


@dataclass(frozen=True)
class Template:
    """A tokenizer with a chat template, and the texts that are special to it."""

    tokenizer: Any
    specials: tuple[str, ...]

    @classmethod
    def of(cls, loaded: Loaded, file: str | None, say: Callable[[str], None]) -> Template:
        """The tokenizer's template, the one in `file`, or a plain one that is announced."""
        tokenizer = loaded.tokenizer
        if tokenizer is None:
            raise Refused(f"the checkpoint '{loaded.checkpoint}' has no tokenizer; add its tokenizer.json")
        if file is not None:
            tokenizer.chat_template = _text(file)
        elif not tokenizer.chat_template:
            say("the tokenizer has no chat template: a plain one ('User: …', 'Assistant: …') is used and saved")
            tokenizer.chat_template = PLAIN
        added = tokenizer.added_tokens_decoder.values()
        return cls(tokenizer, tuple(token.content for token in added if token.special))

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The messages as text, with the opening of an answer when `prompt`."""
        plain = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
        return str(text)

    def question(self, text: str) -> list[int]:
        """The tokens of one user turn and the opening of its answer."""
        rendered = self.render([Message("user", text)], prompt=True)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids

    def encode(self, conversation: Conversation, length: int, first: int = 0) -> Turns:
        """Tokens of the rendered text, labelled where an answer stands, cut after `length`; BadRow if none is left.

        An answer before the message with the number `first` is not labelled.
        """
        self._refuse_specials(conversation.messages)
        text = self.render(conversation.messages)
        regions = self._regions(conversation.messages, text, first)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = read["input_ids"], read["offset_mapping"]
        labels = [token if _within(span, regions) else IGNORED for token, span in zip(ids, offsets, strict=True)]
        merged = sum(_straddles(span, region) for region in regions for span in offsets)
        row = token_row(ids[:length], labels[:length], conversation.place)
        if not row.supervised:
            raise BadRow(
                Problem(
                    conversation.place,
                    "row",
                    f"has {len(ids)} tokens, and its first {length} hold no answer",
                    "shorten the prompt or raise --max-length",
                )
            )
        stop_id = self.tokenizer.convert_tokens_to_ids(regions[-1].stop)
        facts = (stop_id, stop_id in row.labels, len(ids) > length, merged)
        return Turns(row.input_ids, row.labels, row.lengths, row.place, *facts)

    def pieces(self, row: TokenRow) -> tuple[Piece, ...]:
        """The row token by token, and which of them are learned."""
        return pieces(self.tokenizer, row)

    def _refuse_specials(self, messages: Sequence[Message]) -> None:
        """A special token written out in a message would steer the model; such a row is refused."""
        for number, message in enumerate(messages):
            for special in self.specials:
                if special in message.content:
                    raise BadRow(
                        Problem(
                            "",
                            f"messages[{number}] ({message.role})",
                            f"holds the special token '{special}' as text",
                            "write it differently or take the row out",
                        )
                    )

    def _regions(self, messages: Sequence[Message], text: str, first: int) -> list[Region]:
        """Where each answer from `first` on stands in `text`; Refused when the template does not say so exactly."""
        regions = []
        for number, message in enumerate(messages):
            if message.role != "assistant" or number < first:
                continue
            prompt = self.render(messages[:number], prompt=True)
            at = text.find(message.content.strip(), len(prompt), len(self.render(messages[: number + 1])))
            if not text.startswith(prompt) or at < 0:
                raise Refused(
                    f"the chat template renders turn {number + 1} of a conversation otherwise when more follows, so "
                    "no exact mask exists; use single-turn rows or give another with the task's option 'template'"
                )
            regions.append(self._region(text, len(prompt), at + len(message.content.strip())))
        return regions

    def _region(self, text: str, start: int, said: int) -> Region:
        """From the prompt to the end of the first special token after what was said."""
        found = [(text.find(special, said), special) for special in self.specials]
        position, stop = min(((at, s) for at, s in found if at >= 0), default=(-1, ""))
        if position < 0 or text[said:position].strip():
            raise Refused(
                "the chat template ends an answer without a special token, so the model would never learn to stop; "
                "give another with the task's option 'template'"
            )
        return Region(start, position + len(stop), stop)


def pieces(tokenizer: Any, row: TokenRow) -> tuple[Piece, ...]:
    """The row token by token; tokens that are no whole character stand together with those that complete it."""
    tokens = zip(row.input_ids.tolist(), (row.labels != IGNORED).tolist(), strict=True)
    made = []
    for learned, group in groupby(tokens, key=itemgetter(1)):
        waiting: list[int] = []
        for token, _ in group:
            waiting.append(token)
            text = tokenizer.decode(waiting)
            if not text.endswith("\ufffd"):
                made.append(Piece(text, learned))
                waiting = []
        if waiting:
            made.append(Piece(tokenizer.decode(waiting), learned))
    return tuple(made)


def _within(span: tuple[int, int], regions: Sequence[Region]) -> bool:
    return any(region.start <= span[0] and span[1] <= region.end and span[1] > span[0] for region in regions)


def _straddles(span: tuple[int, int], region: Region) -> bool:
    return span[0] < region.start < span[1]


def _text(file: str) -> str:
    path = Path(file)
    if not path.is_file():
        raise Refused(f"there is no chat template file '{file}'; check the task's option 'template'")
    return path.read_text(encoding="utf-8")
