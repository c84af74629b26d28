"""The rows of well-known datasets, by the names that XTuner's dataset maps have."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ftcore.problems import abridged, filled, optional, refuse, shown
from ftcore.shapes.asking import ALPACA, question_text
from ftcore.shapes.dialogues import SPEAKERS, after_each
from ftcore.shapes.turns import as_json, entries

Fields = Mapping[str, object]

_HELP = "Below is a request, and sometimes what it is about. Write what carries it out."
_TITLE = "You are a researcher who reads the abstract of a paper and gives the paper a fitting title."
_CODE = "You are a programmer. Write clear, correct code for what you are asked."
_COLOUR = "You are a designer. Answer the description of a colour with its hexadecimal code."
_LAW = "你是一名专业的中国律师。请依据现行法律回答问题，并说明所依据的条文。"
_MEDICINE = "你是一名专业的医生。请根据医学知识回答患者的问题，必要时建议就诊。"
_SQL = "You write SQL. Answer the question with one query over the tables that are given."


@dataclass(frozen=True)
class Map:
    """How rows of one dataset become rows of a known shape.

    `columns` are (known key, the dataset's column), the latter with a question mark where rows may lack it; `system` is
    added, and `turns` takes over where that is too little.
    """

    name: str
    columns: tuple[tuple[str, str], ...] = ()
    system: str = ""
    turns: Callable[[Fields], Fields] | None = None

    def apply(self, fields: Fields) -> Fields:
        """The row in a known shape, or BadRow naming the column that it lacks."""
        kept = self.turns(fields) if self.turns else {known: _column(fields, column) for known, column in self.columns}
        return {"system": self.system, **kept} if self.system else kept


def _column(fields: Fields, column: str) -> object:
    name = column.removesuffix("?")
    if name not in fields and name == column:
        there = abridged([key[:60] for key in fields]) or "none"
        refuse("row", f"has no column {column}; it has {there}", "give --data-format the name of this dataset's rows")
    return fields.get(name, "")


def _require(fields: Fields, *columns: str) -> Fields:
    for column in columns:
        _column(fields, column)
    return fields


def _pairs(**columns: str) -> tuple[tuple[str, str], ...]:
    return tuple(columns.items())


# --- datasets that need more than names ------------------------------------------------------------------------


def _alpaca(fields: Fields) -> Fields:
    _require(fields, "instruction", "output")
    if fields["output"] == "<nooutput>":
        refuse("output", "is <nooutput>", "remove the row")
    return {"instruction": question_text(fields, ALPACA), "output": fields["output"]}


def _colors(fields: Fields) -> Fields:
    """The colour's name stands before the description's first colon, and would give the answer away."""
    _require(fields, "description", "color")
    description = filled(fields, "description")
    said = description.partition(":")[2].strip() or description
    return {"input": said, "output": fields["color"]}


_GUANACO = re.compile(r"(?<!#)###\s*(Human|Assistant):")


def _oasst1(fields: Fields) -> Fields:
    """Turns parted by `### Human:` and `### Assistant:`; other headings of the text stay in it."""
    text = filled(_require(fields, "text"), "text")
    marks = list(_GUANACO.finditer(text))
    turns = [{"role": SPEAKERS[mark[1]], "content": words.strip()} for mark, words in after_each(marks, text)]
    return {"messages": _answered(turns)}


def _openai(fields: Fields) -> Fields:
    """Turns of the user that follow each other are one, and an opening answer to nothing is left out."""
    given = entries(_require(fields, "messages")["messages"], "messages", "make it an object")
    turns: list[dict[str, object]] = []
    for turn in (dict(entry.fields) for entry in given):
        if turns and turn.get("role") == turns[-1].get("role") == "user":
            turns[-1]["content"] = f"{turns[-1].get('content')}\n{turn.get('content')}"
        elif turns or turn.get("role") != "assistant":
            turns.append(turn)
    return {**fields, "messages": _answered(turns)}


def _wizardlm(fields: Fields) -> Fields:
    """What comes before the first question and after the last answer is left out."""
    given = entries(_require(fields, "conversations")["conversations"], "conversations", "make it an object")
    speakers = [entry.fields.get("from") for entry in given]
    first = speakers.index("human") if "human" in speakers else 0
    return {"conversations": _answered([entry.fields for entry in given[first:]])}


def _answered(turns: Sequence[Fields]) -> list[Fields]:
    """The turns without a last question that nobody answers."""
    last = turns[-1] if turns else {}
    return list(turns[:-1] if {last.get("role"), last.get("from")} & {"user", "human"} else turns)


def _pretrain(fields: Fields) -> Fields:
    return {"text": filled(_require(fields, "text"), "text").strip()}


def _stack_exchange(fields: Fields) -> Fields:
    """The answer is `response`, or `response_j`, the better one of the paired dataset."""
    answer = "response" if "response" in fields else "response_j"
    return {"input": _column(fields, "question"), "output": _column(fields, answer)}


# --- MSAgent-Bench ---------------------------------------------------------------------------------------------

_MARKED = re.compile(r"<\|startof(think|exec)\|>(.*?)<\|endof\1\|>", re.DOTALL)
_FENCE = re.compile(r"```(?:JSON|json)?")
_REACT = """你可以调用外部工具来回答问题。可用的工具如下：
{tools}
需要调用工具时，请按以下格式回复：
Thought:为什么需要这个工具
Action:工具名称，只能是 {names} 之一
Action Input:工具的输入参数（JSON）
工具会按以下格式返回：
Response:调用结果
已经知道答案时，请按以下格式回复：
Final Answer:给用户的答案
"""


def _msagent_react(fields: Fields) -> Fields:
    """Thoughts, actions, the tools' responses and final answers, each on a line that its name begins."""
    given = _require(fields, "conversations")["conversations"]
    turns: list[Fields] = []
    for entry in entries(_literal(given), "conversations", 'make it an object with "from" and "value"'):
        said = optional(entry.fields, "value", f"{entry.name}.")
        speaker = entry.fields.get("from")
        if speaker == "system":
            turns.append({"role": "system", "content": _react_system(said)})
        elif speaker == "assistant":
            turns += _react_turns(said, f"{entry.name}.value")
        else:
            turns.append({"role": speaker, "content": said})
    return {"messages": turns}


def _literal(value: object) -> object:
    """The list that is meant by its text in JSON or as Python prints it; nothing in the text is run."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.lstrip().startswith('[{"') else ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        refuse("conversations", f"is {shown(value)}", "make it a list of turns")


def _react_turns(said: str, name: str) -> Iterator[Fields]:
    pending, at = "", 0
    for mark in _MARKED.finditer(said):
        before, at = said[at : mark.start()].strip(), mark.end()
        held = _json_of(mark[2], name)
        if mark[1] == "exec":
            yield from _assistant(pending + before)
            yield {"role": "tool", "content": f"Response:{as_json(held)}"}
            pending = ""
        else:
            thought = f"Thought:{before}\n" if before else ""
            pending += f"{thought}{_action(held, name)}"
    last = said[at:].strip()
    yield from _assistant(pending + (f"Final Answer:{last}" if last else ""))


def _assistant(content: str) -> Iterator[Fields]:
    if content:
        yield {"role": "assistant", "content": content.rstrip("\n")}


def _json_of(text: str, name: str) -> object:
    try:
        return json.loads(_FENCE.sub("", text), strict=False)
    except ValueError:
        refuse(name, f"holds {shown(text.strip())}, which is no JSON, between its marks", "mend it or remove the row")


def _action(held: object, name: str) -> str:
    if not isinstance(held, dict) or not {"api_name", "parameters"} <= held.keys():
        refuse(name, f"calls {shown(held)}", 'give the call an "api_name" and "parameters"')
    return f"Action:{held['api_name']}\nAction Input:{as_json(held['parameters'])}\n"


def _react_system(said: str) -> str:
    tools = list(_tools(said))
    if not tools:
        return said
    described = "\n".join(f"{tool['name']}: {as_json(tool)}" for tool in tools)
    return _REACT.format(tools=described, names="、".join(str(tool["name"]) for tool in tools)).strip()


def _tools(said: str) -> Iterator[dict[str, object]]:
    """The descriptions of tools, which stand as JSON in the system text."""
    decoder, at = json.JSONDecoder(strict=False), said.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(said, at)
        except ValueError:
            found, end = None, at + 1
        named = isinstance(found, dict) and {"name", "description"} <= found.keys()
        if named:
            yield {key: found[key] for key in ("name", "description", "parameters", "paths") if key in found}
        at = said.find("{", end if named else at + 1)


# --- the table -------------------------------------------------------------------------------------------------

_TABLE = (
    Map("alpaca", system=_HELP, turns=_alpaca),
    Map("alpaca_zh", _pairs(instruction="instruction_zh", input="input_zh?", output="output_zh")),
    Map("arxiv", _pairs(input="abstract", output="title"), _TITLE),
    Map("code_alpaca", _pairs(input="prompt", output="completion"), _CODE),
    Map("colors", system=_COLOUR, turns=_colors),
    Map("crime_kg_assistant", _pairs(input="input", output="output"), _LAW),
    Map("law_reference", _pairs(input="question", output="answer"), _LAW),
    Map("medical", _pairs(instruction="instruction", input="input?", output="output"), _MEDICINE),
    Map("msagent_react", turns=_msagent_react),
    Map("oasst1", turns=_oasst1),
    Map("openai", turns=_openai),
    Map("openorca", _pairs(system="system_prompt?", input="question", output="response")),
    Map("pretrain", turns=_pretrain),
    Map("sql", _pairs(context="context?", question="question", answer="answer"), _SQL),
    Map("stack_exchange", turns=_stack_exchange),
    Map("tiny_codes", _pairs(input="prompt", output="response"), _CODE),
    Map("wizardlm", turns=_wizardlm),
    Map("moss", turns=lambda fields: _require(fields, "chat")),
    Map("default", turns=lambda fields: _require(fields, "conversation")),
)
_SPELLINGS = {"crime_kg_assitant": "crime_kg_assistant", "crime_kg_assitan": "crime_kg_assistant"}
MAPS = {one.name: one for one in _TABLE}
MAPS |= {spelling: MAPS[name] for spelling, name in _SPELLINGS.items()}
