"""What tasks read: conversations, pairs, preferences, judgements, questions, labels and tags, each with its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """What one speaker said: the role is `system`, `user`, `assistant` or `tool`.

    `learned` is what the row says of the turn (None: nothing, so that the task decides; a tool's is always False), and
    `calls` are the functions that an assistant calls after its `content`, which may then be empty.
    """

    role: str
    content: str
    learned: bool | None = None
    calls: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that the turn says, with its calls a line each."""
        return "\n".join(part for part in (self.content, *self.calls) if part)


@dataclass(frozen=True)
class Conversation:
    """Messages that may open with a system turn, go on with the user, and end with the assistant.

    User and assistant alternate; where tools are used, turns of the assistant and of tools may follow each other.
    `tools` is the JSON text that describes them.
    """

    messages: tuple[Message, ...]
    place: str
    tools: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says and the row does not keep from being learnt."""
        said = (message for message in self.messages if message.role == "assistant")
        return tuple(message.text for message in said if message.learned is not False)


@dataclass(frozen=True)
class Pair:
    """A text and what it is to become: the first of `outputs` is learnt, all of them are right."""

    input: str
    outputs: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Preference:
    """A prompt that ends before the assistant's turn, and two different answers to it."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str
    tools: str = ""


@dataclass(frozen=True)
class Judged:
    """A prompt that ends before the assistant's turn, one answer to it, and whether it is wanted."""

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    place: str
    tools: str = ""


@dataclass(frozen=True)
class Question:
    """A question about a text: each answer is (text, start), and the context has that text at that character."""

    id: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]
    impossible: bool
    place: str


@dataclass(frozen=True)
class Labelled:
    """A text, the second text of a sentence pair (else empty), and its labels, of which there may be none."""

    text: str
    second: str
    labels: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Tagged:
    """Words and as many tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    place: str
