"""Which modules have which role, told from the repeated blocks: by name, by shape and by place, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore.scaffold.roles import blocks, numberless, shape_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

QKV = ("attention.q", "attention.k", "attention.v")
ORDER = ("block", *QKV, "attention.o", "mlp.gate", "mlp.up", "mlp.down", "norm", "embedding", "head")
FUSED = re.compile(r"(w_?)?qkv.*|query_key_value|c_attn|in_proj(_weight)?|w_?pack|att_proj")
LETTERS = {
    "attention.q": re.compile(r"(w_?|lin(ear)?_?|c_|project_)?q(uery)?((_|lin|proj).*)?"),
    "attention.k": re.compile(r"(w_?|lin(ear)?_?|c_|project_)?k(ey)?((_|lin|proj).*)?"),
    "attention.v": re.compile(r"(w_?|lin(ear)?_?|c_|project_)?v(alue)?((_|lin|proj).*)?"),
}
KEYS_AND_VALUES = re.compile(r"(w_?)?(kv|key_value)(_[ab])?(_proj)?(_with_mqa)?")
OUT = re.compile(r"(w_?)?o|o_.*|out.*|dense|c_proj|proj|attention_out")
# Of two layers of an mlp with the same shape: the gate, and what is multiplied by it.
PAIRS = (("w1", "w3"), ("wi_0", "wi_1"), ("gate", "up"), ("gate", "fc"), ("gate", "in"))


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies by a matrix: its name in the model, inputs and outputs."""

    name: str
    taken: int
    given: int

    @property
    def leaf(self) -> str:
        """The last word of its name."""
        return self.name.rpartition(".")[2].lower()

    @property
    def parent(self) -> str:
        """The name of the module that it is in."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Found:
    """The modules behind each role that could be told, and the layers of blocks that have none, numbers left out."""

    parts: Mapping[str, tuple[str, ...]]
    untold: tuple[str, ...]

    @property
    def summary(self) -> dict[str, str]:
        """For each role its modules as patterns, and how many there are."""
        return {role: f"{', '.join(dict.fromkeys(map(numberless, n)))} ({len(n)})" for role, n in self.parts.items()}


def inspected(model: PreTrainedModel) -> Found:
    """The roles of a model's modules, in the model's own order; what cannot be told is in none."""
    every = blocks(model)
    roles: dict[str, list[str]] = {"block": list(every)}
    layers: list[Layer] = []
    for block in every:
        inside = list(_layers(model, block))
        layers += inside
        for role, names in _of_block(model, block, inside).items():
            roles.setdefault(role, []).extend(names)
    for role, name in _outside(model):
        roles.setdefault(role, []).append(name)
    place = {name: number for number, (name, _) in enumerate(model.named_modules())}
    parts = {role: tuple(sorted(roles[role], key=place.__getitem__)) for role in ORDER if roles.get(role)}
    named = {name for names in parts.values() for name in names}
    return Found(parts, tuple(dict.fromkeys(numberless(one.name) for one in layers if one.name not in named)))


def _layers(model: nn.Module, block: str) -> Iterator[Layer]:
    for name, module in model.get_submodule(block).named_modules():
        shape = shape_of(module)
        if shape:
            yield Layer(f"{block}.{name}", *shape)


def _of_block(model: PreTrainedModel, block: str, layers: Sequence[Layer]) -> dict[str, list[str]]:
    """The roles of the layers of one block."""
    attentions: dict[str, list[Layer]] = {}
    others: list[Layer] = []
    for layer in layers:
        place = _attention(model, layer.name, block)
        if place:
            attentions.setdefault(place, []).append(layer)
        elif not _in_a_mixer(model, layer.name, block):
            others.append(layer)
    found: dict[str, list[str]] = {}
    width = _width(model)
    told = [_of_attention(inside, width) for place, inside in attentions.items() if not _convolves(model, place)]
    told.append(_of_mlps(others, width))
    for part in told:
        for role, names in part.items():
            found.setdefault(role, []).extend(names)
    return found


def _in_a_mixer(model: nn.Module, name: str, block: str) -> bool:
    """Whether a module around a layer has numbers of its own or convolves, which an mlp does not."""
    around = _around(name, block)
    own = (any(True for _ in model.get_submodule(place).parameters(recurse=False)) for place in around)
    return any(own) or any(_convolves(model, place) for place in around)


def _convolves(model: nn.Module, place: str) -> bool:
    """Whether a module mixes neighbours, so that what its layers make is neither queries nor keys."""
    from torch import nn

    return any(isinstance(module, nn.Conv1d) for module in model.get_submodule(place).modules())


def _around(name: str, block: str) -> list[str]:
    """The modules between a block and what `name` names, the outermost first."""
    words = name.removeprefix(f"{block}.").split(".")
    return [f"{block}.{'.'.join(words[:end])}" for end in range(1, len(words))]


def _attention(model: nn.Module, name: str, block: str) -> str:
    """The outermost module between a block and a layer that calls itself an attention; empty where there is none."""
    for place in _around(name, block):
        if (
            "att" in place.rpartition(".")[2].lower()
            or "attention" in type(model.get_submodule(place)).__name__.lower()
        ):
            return place
    return ""


def _of_attention(layers: Sequence[Layer], width: int) -> dict[str, list[str]]:
    """The roles in one attention: q, k and v by name in the one module that has all three, and o.

    Nothing is told where one of the four is not found, or more than one might be it.
    """
    output = _output([one for one in layers if one.given == width and not _letters(one)])
    if output is None:
        return {}
    groups: dict[str, dict[str, list[str]]] = {}
    for layer in layers:
        for role in _letters(layer, holds_all=layer.given > output.taken):
            groups.setdefault(layer.parent, {}).setdefault(role, []).append(layer.name)
    whole = [group for group in groups.values() if all(role in group for role in QKV)]
    return {**whole[0], "attention.o": [output.name]} if len(whole) == 1 else {}


def _output(back: Sequence[Layer]) -> Layer | None:
    """Of the layers that give back the width the one that is called so, or the only one."""
    called = [one for one in back if OUT.fullmatch(one.leaf)]
    fitting = called or back
    return fitting[0] if len(fitting) == 1 else None


def _letters(layer: Layer, *, holds_all: bool = True) -> tuple[str, ...]:
    """Which of q, k and v a layer makes, by its name; a fused one also `holds_all` that three would give."""
    if FUSED.fullmatch(layer.leaf):
        return QKV if holds_all else ()
    if KEYS_AND_VALUES.fullmatch(layer.leaf):
        return QKV[1:]
    return tuple(role for role, name in LETTERS.items() if name.fullmatch(layer.leaf))


def _of_mlps(layers: Sequence[Layer], width: int) -> dict[str, list[str]]:
    """The roles in the mlps of a block: the layers of one module, or else those of the block that are left together."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.parent, []).append(layer)
    told = {parent: _of_mlp(inside, width) for parent, inside in groups.items()}
    rest = [layer for parent, inside in groups.items() if not told[parent] for layer in inside]
    found: dict[str, list[str]] = {}
    for part in (*told.values(), _of_mlp(rest, width)):
        for role, names in part.items():
            found.setdefault(role, []).extend(names)
    return found


def _of_mlp(layers: Sequence[Layer], width: int) -> dict[str, list[str]]:
    """The roles in one mlp, by width: down gives the model's, up and gate what down takes, or one layer both."""
    downs = [one for one in layers if one.given == width != one.taken]
    if len(downs) != 1:
        return {}
    ups = [one for one in layers if one.taken == width and one.given in (downs[0].taken, 2 * downs[0].taken)]
    down = {"mlp.down": [downs[0].name]}
    if len(ups) == 1 and ups[0].given == downs[0].taken:
        return {"mlp.up": [ups[0].name], **down}
    if len(ups) == 1:
        return {"mlp.gate": [ups[0].name], "mlp.up": [ups[0].name], **down}
    if len(ups) == 2 and all(one.given == downs[0].taken for one in ups):
        pair = _gate_and_up(*ups)
        return {"mlp.gate": [pair[0].name], "mlp.up": [pair[1].name], **down} if pair else {}
    return {}


def _gate_and_up(one: Layer, other: Layer) -> tuple[Layer, Layer] | None:
    """Which of two layers of one shape is the gate, by their names."""
    for gate, up in PAIRS:
        for first, second in ((one, other), (other, one)):
            if gate in first.leaf and up in second.leaf and gate not in second.leaf:
                return first, second
    return None


def _width(model: PreTrainedModel) -> int:
    """How many numbers go from one block to the next."""
    config: Any = model.config.get_text_config()
    return int(config.hidden_size)


def _outside(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """The norms, the table that tokens are looked up in, and the layer whose answers are logits."""
    inside = f"{model.base_model_prefix}."
    output = model.get_output_embeddings()
    classes = getattr(model.config, "num_labels", None)
    last = ""
    for name, module in model.named_modules():
        own = any(True for _ in module.parameters(recurse=False))
        if own and "norm" in type(module).__name__.lower():
            yield "norm", name
        elif module is model.get_input_embeddings():
            yield "embedding", name
        elif output is not None and module is output:
            yield "head", name
        shape = shape_of(module)
        if shape and shape[1] == classes and not name.startswith(inside):
            last = name
    if output is None and last:
        yield "head", last
