"""Conversations that are no plain lists of turns: XTuner's own rows, MOSS, message trees, and transcripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ftcore.problems import filled, optional, refuse, shown
from ftcore.shapes.turns import entries, reasoned, yes_or_no
from ftcore.shapes.values import Message

# --- XTuner's own rows -----------------------------------------------------------------------------------


def xtuner_turns(fields: Mapping[str, object]) -> list[Message]:
    """The rounds of `conversation`, each a system text, an input and an output that may be kept from being learnt."""
    messages: list[Message] = []
    for entry in entries(fields["conversation"], "conversation", 'make it an object with "input" and "output"'):
        prefix = f"{entry.name}."
        system = optional(entry.fields, "system", prefix)
        if system.strip():
            messages.append(Message("system", system))
        asked = optional(entry.fields, "input", prefix)
        if not asked.strip():
            refuse(f"{prefix}input", "is empty", 'give it text, or put the output into "text" for running text')
        given = entry.fields.get("output_with_loss")
        learned = None if given is None else yes_or_no(given, f"{prefix}output_with_loss")
        answer = Message("assistant", filled(entry.fields, "output", prefix), learned)
        messages += [Message("user", asked), answer]
    return _one_system(messages)


def unasked_text(fields: Mapping[str, object]) -> str:
    """The outputs of rounds that have no input, which is how XTuner's rows hold running text."""
    rounds = entries(fields["conversation"], "conversation", 'make it an object with "input" and "output"')
    for entry in rounds:
        if optional(entry.fields, "input", f"{entry.name}.").strip():
            refuse(f"{entry.name}.input", "is not empty", "give conversations to a task that reads them")
    return "".join(filled(entry.fields, "output", f"{entry.name}.") for entry in rounds)


def _one_system(messages: list[Message]) -> list[Message]:
    """A system text that every round repeats stands once, first."""
    first = messages[:1] if messages and messages[0].role == "system" else []
    return [*first, *(message for message in messages if message not in first)] if first else messages


# --- MOSS ------------------------------------------------------------------------------------------------

_MARKED = re.compile(r"(?:<\|([A-Za-z ]+)\|>|\[([A-Za-z ]+)\]):")
_ENDED = re.compile(r"\s*<eo[a-z]>\s*$")
_SAID_BY = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "Results", "MOSS")


def moss_turns(fields: Mapping[str, object]) -> list[Message]:
    """The turns of `chat`: thoughts and commands are the assistant's, what tools answer is the tools'."""
    chat = fields["chat"]
    if not isinstance(chat, dict) or not chat:
        refuse("chat", f"is {shown(chat)}", "make it an object of turns with at least one")
    messages: list[Message] = []
    for entry in entries(sorted_turns(chat), "chat", 'make it an object with "Human" and "MOSS"'):
        said = {key: _unmarked(optional(entry.fields, key, f"{entry.name}.")) for key in _SAID_BY}
        messages += _moss_turn(said, entry.name)
    return messages


def sorted_turns(chat: Mapping[str, object]) -> list[object]:
    """The turns in the order of their numbers."""
    return [chat[key] for key in sorted(chat, key=lambda key: [int(n) for n in re.findall(r"\d+", key)])]


def plain_turns(fields: Mapping[str, object]) -> list[Message]:
    """The turns of MOSS's `plain_text`, in which marks say who speaks."""
    text = filled(fields, "plain_text")
    marks = [mark for mark in _MARKED.finditer(text) if (mark[1] or mark[2]) in _SAID_BY]
    messages: list[Message] = []
    said: dict[str, str] = {}
    for mark, words in after_each(marks, text):
        speaker = mark[1] or mark[2]
        said[speaker] = _unmarked(words)
        if speaker == "MOSS":
            messages += _moss_turn(said, "plain_text")
            said = {}
    return messages + ([Message("user", said["Human"])] if said.get("Human") else [])


def _unmarked(text: str) -> str:
    """What is said without the marks around it; `None` stands for nothing."""
    opening = _MARKED.match(text)
    inner = _ENDED.sub("", text[opening.end() :] if opening else text).strip()
    return "" if inner == "None" else inner


def _moss_turn(said: Mapping[str, str], name: str) -> Iterator[Message]:
    for key in ("Human", "MOSS"):
        if not said.get(key):
            refuse(f"{name}.{key}", "is empty", "give it text, or remove the row")
    thought, command = said.get("Inner Thoughts", ""), said.get("Commands", "")
    yield Message("user", said["Human"])
    if command:
        yield Message("assistant", reasoned(thought, ""), calls=(command,))
        yield Message("tool", said.get("Tool Responses") or said.get("Results", ""), learned=False)
    yield Message("assistant", said["MOSS"] if command else reasoned(thought, said["MOSS"]))


# --- trees of messages -----------------------------------------------------------------------------------

_TREE_ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}


def tree_turns(fields: Mapping[str, object]) -> list[list[Message]]:
    """Every path from the root to an answer that no other answer follows; each answer is learnt in one of them."""
    paths: list[list[Message]] = []
    seen: set[int] = set()
    for path in _paths(fields["prompt"], "prompt"):
        turns = []
        for node, turn in path:
            turns.append(replace(turn, learned=False) if id(node) in seen and turn.role == "assistant" else turn)
            seen.add(id(node))
        paths.append(turns)
    if not paths:
        refuse("prompt", "has no reply of the assistant", "add the answer to learn")
    return paths


_Path = list[tuple[Mapping[str, object], Message]]


def _paths(node: object, name: str) -> Iterator[_Path]:
    if not isinstance(node, dict):
        refuse(name, f"is {shown(node)}", 'make it an object with "text", "role" and "replies"')
    role = _TREE_ROLES.get(str(node.get("role")))
    if role is None:
        refuse(f"{name}.role", f"is {shown(node.get('role'))}", "use prompter or assistant")
    here = (node, Message(role, filled(node, "text", f"{name}.")))
    kept = [reply for reply in node.get("replies") or [] if not (isinstance(reply, dict) and reply.get("deleted"))]
    longer = [path for at, reply in enumerate(kept) for path in _paths(reply, f"{name}.replies[{at}]")]
    if longer or role == "assistant":
        yield from ([here, *path] for path in longer or [[]])


# --- transcripts -----------------------------------------------------------------------------------------

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def transcript_turns(text: str, field: str) -> list[Message]:
    """The turns of a text in which blank lines and `Human:` or `Assistant:` part them."""
    marks = list(_SPOKEN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        refuse(field, f"is {shown(text)}", 'begin it with "\\n\\nHuman:"')
    said = [(SPEAKERS[mark[1]], words.strip()) for mark, words in after_each(marks, text)]
    for (before, _), (after, _) in pairwise(said):
        if before == after:
            refuse(field, f"has two turns of the {before} in a row", "join them")
    return [Message(role, content) for role, content in said]


def after_each(marks: Sequence[re.Match[str]], text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each mark with the text between it and the next."""
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        yield mark, text[mark.end() : following.start() if following else len(text)]
