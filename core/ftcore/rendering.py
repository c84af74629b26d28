"""Conversations as a tokenizer's chat template writes them, with what it does not know put where it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftcore.errors import Refused
from ftcore.problems import refuse
from ftcore.shapes import Conversation, Message

# For tokenizers that bring none: the roles in words, each answer ended by the tokenizer's own end token.
PLAIN = (
    "{% if bos_token %}{{ bos_token }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
MARK = "ftcoreprobe"
_TOOL = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {"type": "object"}}}
_ASK, _SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@dataclass(frozen=True)
class Turn:
    """A turn as the template gets it, whose it is, and the text that it says; empty where the template words it."""

    fields: Mapping[str, Any]
    role: str
    said: str
    learned: bool


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and as the turns and tools that it was made of."""

    text: str
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with a chat template, and the texts that are special to it.

    What the template does not know is not lost. Without a system turn its text opens the first turn of the user;
    without tools their description is a part of the system text; calls are then lines of the answer; without the role
    `tool` a result has the role `observation`, or else is a turn of the user that begins with "Tool:".
    """

    tokenizer: Any
    specials: tuple[str, ...]

    def written(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False) -> str:
        """The turns as text, with the opening of an answer when `prompt`; BadRow when the template refuses them."""
        found = self._tried([turn.fields for turn in turns], tools, prompt=prompt)
        if isinstance(found, Exception):
            why = " ".join(str(found).split())[:160]
            refuse("row", f"cannot be written in the chat template ({why})", "mend its turns, or give another template")
        return found

    def opened(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The turns as text, or None where the template writes no such beginning of a conversation."""
        found = self._tried([turn.fields for turn in turns], tools)
        return None if isinstance(found, Exception) else found

    def rendered(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """The conversation as text, or BadRow."""
        tools = self._native_tools(conversation.tools)
        system, rest = _parted(conversation.messages)
        if conversation.tools and not tools:
            system = "\n\n".join(part for part in (system, f"Tools:\n{conversation.tools}") if part)
        turns = tuple(self._with_system(system, [self._turn(message) for message in rest]))
        return Rendered(self.written(turns, tools, prompt=prompt), turns, tools)

    # --- turns -------------------------------------------------------------------------------------------

    def _turn(self, message: Message) -> Turn:
        learned = message.role == "assistant" and message.learned is not False
        if message.role == "tool":
            named = f"Tool: {message.text}" if self._tool_role == "user" else message.text
            return Turn({"role": self._tool_role, "content": named}, "tool", named, learned)
        calls = self._native_calls(message)
        if calls:
            fields = {"role": message.role, "content": message.content, "tool_calls": calls}
            return Turn(fields, message.role, "", learned)
        return Turn({"role": message.role, "content": message.text}, message.role, message.text, learned)

    def _with_system(self, system: str, turns: Sequence[Turn]) -> list[Turn]:
        if not system:
            return list(turns)
        if self._knows_system:
            return [Turn({"role": "system", "content": system}, "system", system, False), *turns]
        text = f"{system}\n\n{turns[0].said}"
        return [Turn({**turns[0].fields, "content": text}, turns[0].role, text, False), *turns[1:]]

    def _native_tools(self, described: str) -> tuple[Mapping[str, Any], ...]:
        if not described or not self._knows_tools:
            return ()
        found = json.loads(described)
        tools = found if isinstance(found, list) else [found]
        if not all(isinstance(tool, dict) for tool in tools):
            return ()
        return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)

    def _native_calls(self, message: Message) -> list[dict[str, Any]]:
        """The calls as the template takes them; none where it takes none, or where one has no name and arguments."""
        calls = [_call(text) for text in message.calls] if message.calls and self._knows_calls else []
        return [{"type": "function", "function": call} for call in calls if call] if all(calls) else []

    # --- what the template knows, found out by trying ------------------------------------------------------

    @cached_property
    def _knows_system(self) -> bool:
        return self._shows([{"role": "system", "content": MARK}, _ASK, _SAY])

    @cached_property
    def _knows_tools(self) -> bool:
        return self._shows([_ASK, _SAY], [_TOOL])

    @cached_property
    def _knows_calls(self) -> bool:
        call = {"type": "function", "function": {"name": MARK, "arguments": {"x": 1}}}
        return self._shows([_ASK, {**_SAY, "content": "", "tool_calls": [call]}])

    @cached_property
    def _tool_role(self) -> str:
        """The first role in which a result is written, and before which an answer ends with a special token."""
        for role in ("tool", "observation"):
            found = self._tried([_ASK, {**_SAY, "content": MARK}, {"role": role, "content": MARK}, _SAY])
            if isinstance(found, str) and found.count(MARK) == 2 and self._stopped(found):
                return role
        return "user"

    def _stopped(self, text: str) -> bool:
        rest = text.partition(MARK)[2].lstrip()
        return any(rest.startswith(special) for special in self.specials)

    def _shows(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        found = self._tried(messages, tools)
        return isinstance(found, str) and MARK in found

    def _tried(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> str | Exception:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError) as unfit:  # a template's own refusal, or content that it cannot join
            return unfit
        return str(text)


def _parted(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The system text, and the other messages."""
    return (messages[0].text, messages[1:]) if messages[0].role == "system" else ("", messages)


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    return {"name": found["name"], "arguments": found.get("arguments", {})}


def template_in(file: str) -> str:
    """The text of a chat template file; Refused where there is none."""
    path = Path(file)
    if not path.is_file():
        raise Refused(f"there is no chat template file '{file}'; check the task's option 'template'")
    return path.read_text(encoding="utf-8")
