"""Lists of turns: the messages they hold, and whether their order is one that can be learnt from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftcore.problems import checked, filled, optional, refuse, shown
from ftcore.shapes.values import Message

CALL = "call"
_COMMON = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": CALL,
    "tool_call": CALL,
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_NAMED = {
    "role": ("content", "system, user, assistant, tool"),
    "from": ("value", "system, human, gpt, function_call, observation"),
}
_WEIGHTS = ("loss", "weight", "train")
_FOLLOWS = {"": "user", "user": "assistant", "assistant": "user", "tool": "assistant"}


@dataclass(frozen=True)
class Entry:
    """One turn as it is written, and the name it has in messages about it."""

    fields: Mapping[str, object]
    name: str


def turns_of(value: object, field: str) -> list[Message]:
    """The messages of a list of turns, in order, whatever their order."""
    return [_turn(entry) for entry in entries(value, field, 'make it an object with "role" and "content"')]


def entries(value: object, field: str, remedy: str) -> list[Entry]:
    """The objects of a list, or BadRow."""
    found = []
    for index, entry in enumerate(listed(value, field)):
        name = f"{field}[{index}]"
        if not isinstance(entry, dict):
            refuse(name, f"is {shown(entry)}", remedy)
        found.append(Entry(entry, name))
    return found


def listed(value: object, field: str) -> list[object]:
    """`value` when it is a list, else BadRow."""
    if not isinstance(value, list | tuple):
        refuse(field, f"is {shown(value)}", f"make {field} a list")
    return list(value)


def check_order(messages: Sequence[Message], field: str, *, tools: bool = False) -> None:
    """The turns are a conversation that ends with the assistant, or BadRow says where they stop being one."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        refuse(field, "has no assistant turn", "add the answer to learn")
    check_prompt_order(messages, field, tools=tools)
    if roles[-1] != "assistant":
        refuse(field, f"ends with a {roles[-1]} turn", "add its answer or remove the turn")


def check_prompt_order(messages: Sequence[Message], field: str, *, tools: bool = False) -> None:
    """Each turn may follow the one before it, whoever has the last word."""
    roles = [message.role for message in messages]
    opening = roles[:1].count("system")
    if "system" in roles[1:]:
        at = roles.index("system", 1)
        refuse(f"{field}[{at}]", "is a system turn that is not first", "put the only system turn first")
    helped = tools or "tool" in roles or any(message.calls for message in messages)
    for at, (before, role) in enumerate(zip(["", *roles[opening:]], roles[opening:], strict=False), start=opening):
        if role not in _after(before, helped=helped):
            found = f"has the role {role} where a turn of the {_FOLLOWS[before]} is due"
            refuse(f"{field}[{at}]", found, "alternate user and assistant, joining turns of the same")


def _after(role: str, *, helped: bool) -> tuple[str, ...]:
    if role == "assistant" and helped:
        return ("user", "tool", "assistant")
    return ("assistant", "tool") if role == "tool" else (_FOLLOWS[role],)


def _turn(entry: Entry) -> Message:
    key = "from" if "from" in entry.fields and "role" not in entry.fields else "role"
    content_key, known = _NAMED[key]
    given = filled(entry.fields, key, f"{entry.name}.")
    role = _COMMON.get(given)
    if role is None:
        refuse(f"{entry.name}.{key}", f"is {shown(given)}", f"use one of {known}")
    learned = _learned(entry, role)
    content, calls = _content(entry, role, content_key)
    return Message("assistant" if role == CALL else role, content, learned, calls)


def _content(entry: Entry, role: str, key: str) -> tuple[str, tuple[str, ...]]:
    fields, prefix = entry.fields, f"{entry.name}."
    if role == CALL:
        return "", (_call(fields.get(key), prefix + key),)
    if isinstance(fields.get(key), list):
        text, parts_calls = _parts(fields[key], prefix + key)
    else:
        calling = role == "assistant" and any(fields.get(name) for name in ("tool_calls", "function_call"))
        read = optional if role in ("system", "tool") or calling else filled
        text, parts_calls = read(fields, key, prefix), ()
    if role != "assistant":
        return text, ()
    thought = optional(fields, "reasoning_content", prefix)
    return reasoned(thought, text), (*parts_calls, *_calls(entry))


def reasoned(thought: str, text: str) -> str:
    """The text with the thought before it, in the tags that chat templates know."""
    return f"<think>\n{thought.strip()}\n</think>\n\n{text}".rstrip() if thought.strip() else text


def _calls(entry: Entry) -> tuple[str, ...]:
    name = f"{entry.name}.tool_calls"
    found = listed(entry.fields.get("tool_calls") or [], name)
    legacy = entry.fields.get("function_call")
    named = [(call, f"{name}[{at}]") for at, call in enumerate(found)]
    return tuple(_call(*one) for one in [*named, *([(legacy, f"{entry.name}.function_call")] if legacy else [])])


def _call(value: object, field: str) -> str:
    """A call as it is written, or as JSON of its name and arguments."""
    if not isinstance(value, dict):
        return checked(value, field)
    inner = value.get("function", value)
    if not isinstance(inner, dict) or "name" not in inner:
        refuse(field, f"is {shown(value)}", 'give it a "name" and "arguments"')
    arguments = inner.get("arguments", {})
    return as_json({"name": inner["name"], "arguments": _parsed(arguments)})


def _parsed(arguments: object) -> object:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def as_json(value: object) -> str:
    """A value as JSON text, with letters as they are."""
    return json.dumps(value, ensure_ascii=False)


_TEXT, _THOUGHT, _CALLED = ("text",), ("reasoning", "thinking"), ("tool_call", "function_call")


def _parts(value: object, field: str) -> tuple[str, tuple[str, ...]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[str] = []
    for part in entries(value, field, 'make it an object with "type" and "text"'):
        kind = part.fields.get("type")
        if kind not in (*_TEXT, *_THOUGHT, *_CALLED):
            refuse(f"{part.name}.type", f"is {shown(kind)}", 'only parts of the type "text" are read')
        said = next((part.fields[key] for key in ("text", "value", str(kind)) if key in part.fields), None)
        if kind in _CALLED:
            calls.append(_call(said, part.name))
        else:
            (thoughts if kind in _THOUGHT else texts).append(checked(said, part.name))
    text = reasoned("\n".join(thoughts), "\n".join(texts))
    if not text and not calls:
        refuse(field, "is empty", "give it text, or remove the row")
    return text, tuple(calls)


def _learned(entry: Entry, role: str) -> bool | None:
    given = [key for key in _WEIGHTS if entry.fields.get(key) is not None]
    if role not in ("assistant", CALL):
        return False if role == "tool" else None
    wanted = {yes_or_no(entry.fields[key], f"{entry.name}.{key}") for key in given}
    if len(wanted) > 1:
        refuse(entry.name, f"has {' and '.join(given)} that differ", "keep one of them")
    return wanted.pop() if wanted else None


def yes_or_no(value: object, field: str) -> bool:
    """The truth that a boolean, 0, 1 or one of the words for them says, else BadRow."""
    word = str(value).strip().lower()
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    if isinstance(value, list | dict) or word not in known:
        refuse(field, f"is {shown(value)}", "make it true or false")
    return known[word]
