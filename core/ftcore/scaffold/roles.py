"""The roles that an architecture's modules have, told from their names and shapes, and one pattern for each role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ftcore.families import LLAMA_ROLES, parts_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Parts = Mapping[str, tuple[str, ...]]
QKV = ("attention.q", "attention.k", "attention.v")
OUT = re.compile(r"o|o_.*|out.*|dense|c_proj|proj|wo", re.IGNORECASE)


@dataclass(frozen=True)
class Roles:
    """A pattern for each role; the roles that no single pattern tells apart; the layers that have none."""

    patterns: Mapping[str, str]
    untold: tuple[str, ...] = ()
    nameless: tuple[str, ...] = ()


def roles_of(model: PreTrainedModel) -> Roles:
    """Patterns that name exactly the modules of each role in `model`; the usual ones where they do."""
    parts = inspected(model)
    if parts == parts_of(model, LLAMA_ROLES):
        return Roles(LLAMA_ROLES, nameless=nameless(model, parts))
    found = {role: patterns(parts[role], model) for role in LLAMA_ROLES if role in parts}
    told = {role: one for role, one in found.items() if one}
    return Roles(told, tuple(found.keys() - told.keys()), nameless(model, parts))


def inspected(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """The modules of each role, in the model's own order."""
    found: dict[str, list[str]] = {}
    every = blocks(model)
    for name, module in model.named_modules():
        for role in _roles(name, module, model, every):
            found.setdefault(role, []).append(name)
    return {role: tuple(names) for role, names in found.items()}


def _roles(name: str, module: nn.Module, model: PreTrainedModel, every: Sequence[str]) -> Sequence[str]:
    if name in every:
        return ("block",)
    if module is model.get_input_embeddings():
        return ("embedding",)
    if module is model.get_output_embeddings():
        return ("head",)
    if any(True for _ in module.children()):
        return ()
    if _is_norm(module):
        return ("norm",)
    block = _block(name, every)
    shape = shape_of(module)
    if not block or not shape:
        return ()
    siblings = [inside for inside, _ in model.get_submodule(block).named_modules()]
    return layer_roles(name.removeprefix(f"{block}."), shape, width_of(model), siblings)


def layer_roles(name: str, shape: tuple[int, int], width: int, others: Sequence[str]) -> Sequence[str]:
    """The roles of a linear layer of a block, by its name in it, its inputs and outputs and the model's width."""
    path, _, leaf = name.rpartition(".")
    if "att" in path.lower():
        return attention_roles(leaf.lower())
    if leaf in ("gate", "router") or shape[1] == 1:  # these choose among experts
        return ()
    if shape[0] == width != shape[1]:
        return up_roles(name, others)
    return ("mlp.down",) if shape[1] == width != shape[0] else ()


def attention_roles(leaf: str) -> Sequence[str]:
    """The roles of a layer of an attention, by the last part of its name."""
    if "qkv" in leaf or leaf in ("query_key_value", "c_attn", "in_proj"):
        return QKV
    if leaf.startswith("kv"):
        return QKV[1:]
    of = {"q": "attention.q", "k": "attention.k", "v": "attention.v"}
    if leaf[0] in of:
        return (of[leaf[0]],)
    return ("attention.o",) if OUT.fullmatch(leaf) else ()


def up_roles(name: str, others: Sequence[str]) -> Sequence[str]:
    """The roles of a layer of an mlp that widens: one of two is the gate, or both are one layer."""
    path, _, leaf = name.rpartition(".")
    if "gate_up" in leaf or "up_gate" in leaf:
        return ("mlp.gate", "mlp.up")
    partner = {"wi_0": "wi_1", "w1": "w3"}.get(leaf)
    gate = "gate" in leaf or f"{path}.{partner}".strip(".") in others
    return ("mlp.gate",) if gate else ("mlp.up",)


def blocks(model: nn.Module) -> tuple[str, ...]:
    """The layers that a model is a stack of, or several stacks: the outermost members of lists with linear layers."""
    from torch import nn

    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not _block(name, found):
            members = [(f"{name}.{number}", member) for number, member in module.named_children()]
            found += [inside for inside, member in members if any(map(shape_of, member.modules()))]
    return tuple(found)


def _block(name: str, every: Sequence[str]) -> str:
    return next((block for block in every if name.startswith(f"{block}.")), "")


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; None for any other module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (module.weight.shape[0], module.weight.shape[1]) if isinstance(module, Conv1D) else None


def width_of(model: PreTrainedModel) -> int:
    """How many numbers go from one block to the next."""
    config: Any = model.config.get_text_config()
    return int(config.hidden_size)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())


def nameless(model: PreTrainedModel, parts: Parts) -> tuple[str, ...]:
    """Linear layers in blocks that have no role, each once for all blocks."""
    named = {name for names in parts.values() for name in names}
    every = parts.get("block", ())
    found = [name for name, module in model.named_modules() if shape_of(module) and _block(name, every)]
    return tuple(dict.fromkeys(numberless(name) for name in found if name not in named))


# Patterns


def numberless(name: str) -> str:
    """The name with `*` for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def patterns(names: Sequence[str], model: nn.Module) -> str | None:
    """Patterns that match exactly `names` among the model's modules: one, or else one for each last word of a name."""
    one = pattern(names, model)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.split(r"[._]", name)[-1], []).append(name)
    several = [one] if one else [pattern(group, model) for group in groups.values()]
    return None if None in several else " ".join(filter(None, several))


def pattern(names: Sequence[str], model: nn.Module) -> str | None:
    """One pattern that matches exactly `names` among the model's modules, if there is one."""
    spelled = list(dict.fromkeys(map(numberless, names)))
    for candidate in (*_aligned(spelled), _between(spelled), _around(spelled), *_through(spelled)):
        if parts_of(model, {"": candidate}).get("") == tuple(names):
            return candidate
    return None


def _aligned(names: Sequence[str]) -> Iterator[str]:
    """The names folded part by part, where they have equally many."""
    parts = [name.split(".") for name in names]
    if len({len(one) for one in parts}) == 1:
        yield ".".join(_around(column) for column in zip(*parts, strict=True))


def _between(names: Sequence[str]) -> str:
    """The parts that all names begin with and what their last parts end in, with `*` between."""
    ends = [name.rpartition(".")[2][::-1] for name in names]
    return f"{_beginning(names).rpartition('.')[0]}.*{_beginning(ends)[::-1]}".lstrip(".")


def _around(texts: Sequence[str]) -> str:
    """What all texts begin with and end in, with `*` between."""
    if len(set(texts)) == 1:
        return texts[0]
    start = _beginning(texts)
    rest = [text.removeprefix(start)[::-1] for text in texts]
    return f"{start}*{_beginning(rest)[::-1]}"


def _beginning(texts: Sequence[str]) -> str:
    """The characters that all texts begin with."""
    return "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


def _through(texts: Sequence[str]) -> Iterator[str]:
    """What all texts begin with and have in common further on, with `*` around it, the longest first."""
    start = _beginning(texts).rpartition(".")[0]
    for shared in reduce(_shared, texts[1:], _pieces(texts[0].removeprefix(start))):
        yield f"{start}.*{shared}*".lstrip(".")


def _pieces(text: str) -> list[str]:
    """Every run of three or more characters in `text`, the longest first."""
    found = {text[i:j] for i in range(len(text)) for j in range(i + 3, len(text) + 1)}
    return sorted(found, key=lambda piece: (-len(piece), piece))


def _shared(pieces: Sequence[str], text: str) -> list[str]:
    return [piece for piece in pieces if piece in text]
