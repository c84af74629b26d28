"""A conversation as tokens with an exact mask, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

from ftcore.batches import IGNORED, TokenRow
from ftcore.errors import Refused
from ftcore.hooks import Loaded, Piece
from ftcore.problems import BadRow, Problem
from ftcore.rendering import PLAIN, Rendered, Renderer, Turn, template_in
from ftcore.shapes import Conversation, Message

ROLES = ("system", "user", "assistant", "tool")
Taught = Literal["all-turns", "last-turn"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Turns(TokenRow):
    """One conversation ready to train on; `merged` counts answers whose first token begins in the prompt.

    `stop_id` is what ends an answer, `stopped` whether the row still holds it, `cut` whether it was longer. `roles`
    tell of each token whose turn it is in, as a number of `ROLES`. The last answer that is learned follows the first
    `asked` tokens and ends before token `said`; `said` is 0 where it was cut. A token that is learned and stands in no
    answer counts `prompt_weight`.
    """

    roles: Array
    stop_id: int
    stopped: bool
    cut: bool
    merged: int
    asked: int
    said: int
    prompt_weight: float = 0.0

    @property
    def weights(self) -> Array | None:
        """1 in an answer and `prompt_weight` elsewhere, where that is asked for."""
        if self.prompt_weight in (0.0, 1.0):
            return None
        return np.where(self.roles == ROLES.index("assistant"), 1, self.prompt_weight).astype(np.float32)

    def identity(self) -> bytes:
        """The tokens, the labels, the borders and the weights."""
        weights = self.weights
        return super().identity() + (b"" if weights is None else weights.tobytes())

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        of_role = np.bincount(self.roles, minlength=len(ROLES)).tolist()
        return {
            "rows_cut": int(self.cut),
            "tokens": self.size,
            "supervised_tokens": self.supervised,
            "merged_with_prompt": self.merged,
            **{f"tokens_{role}": count for role, count in zip(ROLES, of_role, strict=True)},
        }


@dataclass(frozen=True)
class Region:
    """Where an answer stands in the rendered text: from after the prompt, what is said, to the end of its stop."""

    start: int
    said: int
    end: int
    stop: str


@dataclass(frozen=True)
class Template:
    """How conversations become rows: which of their answers are learned, and what the loss of their prompts counts."""

    renderer: Renderer
    train_on: Taught = "all-turns"
    prompt_weight: float = 0.0

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        file: str | None,
        say: Callable[[str], None],
        train_on: Taught = "all-turns",
        prompt_weight: float = 0.0,
    ) -> Template:
        """The tokenizer's template, the one in `file`, or a plain one that is announced."""
        tokenizer = loaded.tokenizer
        if tokenizer is None:
            raise Refused(f"the checkpoint '{loaded.checkpoint}' has no tokenizer; add its tokenizer.json")
        if file is not None:
            tokenizer.chat_template = template_in(file)
        elif not tokenizer.chat_template:
            say("the tokenizer has no chat template: a plain one ('User: …', 'Assistant: …') is used and saved")
            tokenizer.chat_template = PLAIN
        added = tokenizer.added_tokens_decoder.values()
        specials = tuple(token.content for token in added if token.special)
        return cls(Renderer(tokenizer, specials), train_on, prompt_weight)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.renderer.tokenizer

    def question(self, text: str) -> list[int]:
        """The tokens of one user turn and the opening of its answer."""
        return self.prompt(Conversation((Message("user", text),), ""))

    def prompt(self, conversation: Conversation) -> list[int]:
        """The tokens of a conversation and the opening of the answer that it waits for, or BadRow."""
        self._refuse_specials(conversation)
        rendered = self.renderer.rendered(conversation, prompt=True)
        ids: list[int] = self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        return ids

    def unanswered(self, conversation: Conversation, length: int) -> Turns:
        """A row that waits for its answer, or BadRow where `length` does not hold it."""
        ids = np.asarray(self.prompt(conversation), dtype=np.int32)
        if len(ids) > length:
            found = f"has {len(ids)} tokens before its answer, and {length} are read"
            raise BadRow(Problem(conversation.place, "row", found, "shorten it or raise --max-length"))
        nothing, whose = np.full_like(ids, IGNORED), np.full(len(ids), ROLES.index("user"), dtype=np.int8)
        return Turns(ids, nothing, (len(ids),), conversation.place, whose, -1, False, False, 0, len(ids), 0)

    def encode(self, conversation: Conversation, length: int) -> Turns:
        """Tokens of the rendered text, labelled where an answer stands, cut after `length`; BadRow if none is left."""
        self._refuse_specials(conversation)
        rendered = self.renderer.rendered(conversation)
        taught = self._taught(rendered.turns)
        regions = {number: self._region(rendered, number) for number in taught}
        read = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(read["input_ids"], dtype=np.int32)
        spans = np.asarray(read["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        numbers = np.searchsorted(self._ends(rendered, regions), spans[:, 0], side="right")
        numbers = np.minimum(numbers, len(rendered.turns) - 1)
        inside = _inside(spans, list(regions.values()))
        if not inside[:length].any():
            raise BadRow(_unlearned(conversation, len(ids), length, bool(taught)))
        learned = inside | _prompts(rendered.turns)[numbers] if self.prompt_weight else inside
        labels = np.where(learned, ids, IGNORED).astype(np.int32)[:length]
        last = [region for region in regions.values() if (spans[:length, 0] >= region.start).any()][-1]
        asked, said = (int(np.searchsorted(spans[:, 0], at)) for at in (last.start, last.said))
        stop_id = self.tokenizer.convert_tokens_to_ids(last.stop)
        return Turns(
            input_ids=ids[:length],
            labels=labels,
            lengths=(len(labels),),
            place=conversation.place,
            roles=np.array([ROLES.index(turn.role) for turn in rendered.turns], dtype=np.int8)[numbers[:length]],
            stop_id=stop_id,
            stopped=bool((ids[:length][inside[:length]] == stop_id).any()),
            cut=len(ids) > length,
            merged=sum(int(((spans[:, 0] < one.start) & (one.start < spans[:, 1])).sum()) for one in regions.values()),
            asked=asked,
            said=said if said < len(labels) else 0,
            prompt_weight=self.prompt_weight,
        )

    def pieces(self, row: TokenRow) -> tuple[Piece, ...]:
        """The row token by token, which of them are learned, and whose they are."""
        return pieces(self.tokenizer, row)

    def _taught(self, turns: Sequence[Turn]) -> list[int]:
        """The numbers of the answers to learn."""
        first = 0
        if self.train_on == "last-turn":
            first = max(number for number, turn in enumerate(turns) if turn.role == "user")
        return [number for number, turn in enumerate(turns) if turn.learned and number >= first]

    def _refuse_specials(self, conversation: Conversation) -> None:
        """A special token written out in a message would steer the model; such a row is refused."""
        texts = [(f"messages[{n}] ({one.role})", one.text) for n, one in enumerate(conversation.messages)]
        for field, text in [*texts, ("tools", conversation.tools)]:
            for special in self.renderer.specials:
                if special in text:
                    found = f"holds the special token '{special}' as text"
                    raise BadRow(Problem("", field, found, "write it differently or take the row out"))

    def _region(self, rendered: Rendered, number: int) -> Region:
        """Where an answer stands in the text; Refused when the template does not say so exactly."""
        text, turn = rendered.text, rendered.turns[number]
        prompt = self.renderer.written(rendered.turns[:number], rendered.tools, prompt=True)
        whole = self._until(rendered, number + 1)
        if not turn.said:
            return self._worded(rendered, number, prompt, whole)
        at = text.find(turn.said.strip(), len(prompt), len(whole))
        if not text.startswith(prompt) or at < 0:
            raise _otherwise(number)
        said = at + len(turn.said.strip())
        found = [(text.find(special, said), special) for special in self.renderer.specials]
        position, stop = min(((at, special) for at, special in found if at >= 0), default=(-1, ""))
        if position < 0 or text[said:position].strip():
            raise _endless()
        return Region(len(prompt), position, position + len(stop), stop)

    def _until(self, rendered: Rendered, count: int) -> str:
        """The first turns as text; of the whole conversation it is there already."""
        if count == len(rendered.turns):
            return rendered.text
        return self.renderer.written(rendered.turns[:count], rendered.tools)

    def _worded(self, rendered: Rendered, number: int, prompt: str, whole: str) -> Region:
        """Where an answer stands that the template words itself: all it writes up to its last special token."""
        if not rendered.text.startswith(prompt) or not rendered.text.startswith(whole):
            raise _otherwise(number)
        found = [(whole.rfind(special, len(prompt)), special) for special in self.renderer.specials]
        position, stop = max(found, default=(-1, ""))
        if position < 0 or whole[position + len(stop) :].strip():
            raise _endless()
        return Region(len(prompt), position, position + len(stop), stop)

    def _ends(self, rendered: Rendered, regions: dict[int, Region]) -> list[int]:
        """Where each turn ends in the text."""
        ends = [0]
        for number, turn in enumerate(rendered.turns[:-1]):
            whole = self.renderer.opened(rendered.turns[: number + 1], rendered.tools)
            if whole is None or not rendered.text.startswith(whole):
                found = rendered.text.find(turn.said.strip(), ends[-1])
                whole = rendered.text[: found + len(turn.said.strip())] if found >= 0 else ""
            end = regions[number].end if number in regions else 0
            ends.append(max(ends[-1], len(whole), end))
        return ends[1:]


def pieces(tokenizer: Any, row: TokenRow) -> tuple[Piece, ...]:
    """The row token by token; tokens that are no whole character stand together with those that complete it."""
    whose = [ROLES[role] for role in row.roles.tolist()] if isinstance(row, Turns) else [""] * row.size
    learned = (row.labels != IGNORED).tolist()
    made = []
    for (role, taught), group in groupby(zip(row.input_ids.tolist(), whose, learned, strict=True), lambda one: one[1:]):
        waiting: list[int] = []
        for token, *_ in group:
            waiting.append(token)
            text = tokenizer.decode(waiting)
            if not text.endswith("\ufffd"):
                made.append(Piece(text, taught, role))
                waiting = []
        if waiting:
            made.append(Piece(tokenizer.decode(waiting), taught, role))
    return tuple(made)


def _prompts(turns: Sequence[Turn]) -> Array:
    """Which turns a model may learn to write although they are no answers."""
    return np.array([turn.role in ("system", "user") for turn in turns])


def _inside(spans: Array, regions: Sequence[Region]) -> Array:
    """Which tokens are written in an answer, from its first character to its stop token."""
    found = np.zeros(len(spans), dtype=np.bool_)
    for region in regions:
        found |= (spans[:, 0] >= region.start) & (spans[:, 1] <= region.end)
    return found & (spans[:, 1] > spans[:, 0])


def _unlearned(conversation: Conversation, size: int, length: int, taught: bool) -> Problem:
    if not taught:
        return Problem(conversation.place, "row", "has no answer to learn", "take it out, or learn all its turns")
    found = f"has {size} tokens, and its first {length} hold no answer"
    return Problem(conversation.place, "row", found, "shorten the prompt or raise --max-length")


def _otherwise(number: int) -> Refused:
    return Refused(
        f"the chat template renders turn {number + 1} of a conversation otherwise when more follows, so that no exact "
        "mask exists; learn the last turn only (the task's option 'train_on' as last-turn), use single-turn rows, or "
        "give another with the task's option 'template'"
    )


def _endless() -> Refused:
    return Refused(
        "the chat template ends an answer without a special token, so the model would never learn to stop; "
        "give another with the task's option 'template'"
    )
