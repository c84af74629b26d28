"""What a family promises about its parts: roles name modules, all of them, and mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import Case, cases, loaded, questions, vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

ALWAYS = ("block", "norm", "embedding", "attention.q", "attention.k", "attention.v", "attention.o")
INSIDE = ("attention.", "mlp.")
Parts = Mapping[str, tuple[str, ...]]


def check_roles_name_modules(plugin: object, bench: Bench | None = None) -> None:
    """Every role names modules that exist, each once and in the model's order."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        order = {name: place for place, (name, _) in enumerate(found.model.named_modules())}
        if not isinstance(found.parts, Mapping):
            raise Failed(f"Loaded.parts is a {type(found.parts).__name__}; give a mapping from role to module names")
        for role, names in found.parts.items():
            _names_modules(role, names, order, case)


def _names_modules(role: str, names: Any, order: Mapping[str, int], case: Case) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise Failed(f"role '{role}' is {names!r:.80}; give a tuple of module names")
    if not names:
        raise Failed(f"role '{role}' names no module of {case}; leave a role out that the model does not have")
    strange = [name for name in names if name not in order]
    if strange:
        raise Failed(f"role '{role}' names '{strange[0]}', which is no module of {case}; give full module names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Failed(f"role '{role}' names '{twice}' twice; name each module once")
    if sorted(names, key=order.__getitem__) != list(names):
        raise Failed(f"role '{role}' names its modules in another order than the model has them; keep its order")


def check_roles_are_complete(plugin: object, bench: Bench | None = None) -> None:
    """Every block, every norm, and every matrix inside a block is in a role, the same in every block."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        model, parts = loaded(bench, case).model, loaded(bench, case).parts
        lacking = [role for role in ALWAYS if role not in parts]
        if lacking:
            raise Failed(f"{case} has no role '{lacking[0]}'; name the modules that have it")
        _exactly("block", parts["block"], blocks(model), "the repeated blocks", case)
        _exactly("norm", parts["norm"], norms(model), "the normalising layers", case)
        for role, names in parts.items():
            if role.startswith(INSIDE):
                _are_matrices(role, names, model, parts["block"])
        for role in ("mlp.up", "mlp.down"):
            if role not in parts and any(other.startswith("mlp.") for other in parts):
                raise Failed(f"{case} has roles of an mlp and no '{role}'; name the modules that have it")
        _matrices_are_named(model, parts, case)
        _same_in_every_block(model, parts, case)


def blocks(model: nn.Module) -> tuple[str, ...]:
    """The modules that a model repeats: what its outermost lists hold."""
    from torch import nn

    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    inside = [f"{name}.{number}" for name in outer for number in range(len(model.get_submodule(name)))]  # type: ignore[arg-type]
    return tuple(name for name in inside if any(is_matrix(m) for m in model.get_submodule(name).modules()))


def norms(model: nn.Module) -> tuple[str, ...]:
    """The modules with a weight whose class says that they normalise."""
    return tuple(
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    )


def is_matrix(module: Any) -> bool:
    """Whether a module multiplies by a matrix of its own; a table that is looked up in does not."""
    from torch import nn

    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _exactly(role: str, named: tuple[str, ...], wanted: tuple[str, ...], what: str, case: Case) -> None:
    """The role names these modules and no others."""
    missed = [name for name in wanted if name not in named]
    if missed:
        raise Failed(f"role '{role}' leaves out '{missed[0]}' of {case}; name all of {what}")
    extra = [name for name in named if name not in wanted]
    if extra:
        raise Failed(f"role '{role}' names '{extra[0]}' of {case}, which is none of {what}; take it out")


def _are_matrices(role: str, names: tuple[str, ...], model: nn.Module, blocks: tuple[str, ...]) -> None:
    for name in names:
        module = model.get_submodule(name)
        if not is_matrix(module):
            raise Failed(f"role '{role}' names '{name}', a {type(module).__name__} without a matrix; name what has one")
        if not any(name.startswith(f"{block}.") for block in blocks):
            raise Failed(f"role '{role}' names '{name}', which is in no block; only attention and mlp of blocks count")


def _matrices_are_named(model: nn.Module, parts: Parts, case: Case) -> None:
    named = {name for role, names in parts.items() if role not in ("block", "norm") for name in names}
    for block in parts["block"]:
        for name, module in model.get_submodule(block).named_modules():
            if is_matrix(module) and f"{block}.{name}" not in named:
                raise Failed(
                    f"no role names '{block}.{name}' of {case}, so that methods would never adapt it; "
                    "name it under the role it has"
                )


def _same_in_every_block(model: nn.Module, parts: Parts, case: Case) -> None:
    """What a role names in one block it names in every block that has such a module."""
    for role, names in parts.items():
        inside = {within(name, parts["block"]) for name in names} - {None}
        for relative in sorted(place[1] for place in inside if place and role.startswith(INSIDE)):
            for block in parts["block"]:
                full = f"{block}.{relative}"
                if full not in names and any(full == name for name, _ in model.named_modules()):
                    raise Failed(f"role '{role}' names '{relative}' in some blocks of {case} and not in '{block}'")


def within(name: str, blocks: tuple[str, ...]) -> tuple[str, str] | None:
    """The block that a module is in and its name there."""
    block = next((block for block in blocks if name.startswith(f"{block}.")), None)
    return None if block is None else (block, name.removeprefix(f"{block}."))


def check_ends_are_named(plugin: object, bench: Bench | None = None) -> None:
    """The role embedding names the table that tokens are looked up in, and head the layer whose answers are logits."""
    from torch import nn

    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        model: Any = loaded(bench, case).model
        parts = loaded(bench, case).parts
        for name in parts["embedding"]:
            module = model.get_submodule(name)
            if not isinstance(module, nn.Embedding) or module.weight.shape[0] != vocabulary(model):
                raise Failed(f"role 'embedding' names '{name}', a {type(module).__name__} that holds no tokens; name "
                             "the model's get_input_embeddings()")  # fmt: skip
        if not any(model.get_submodule(name) is model.get_input_embeddings() for name in parts["embedding"]):
            raise Failed(f"role 'embedding' leaves out get_input_embeddings() of {case}; name it")
        _head_is_named(model, parts.get("head", ()), case)


def _head_is_named(model: Any, named: tuple[str, ...], case: Case) -> None:
    output = model.get_output_embeddings()
    wanted = [name for name, module in model.named_modules() if output is not None and module is output]
    if wanted and case.head in ("causal-lm", "seq2seq-lm") and list(named) != wanted:
        raise Failed(f"role 'head' of {case} names {', '.join(named) or 'nothing'}; name '{wanted[0]}', "
                     "from which the logits come")  # fmt: skip
    asked = questions(model, case.head)["a batch"]
    seen = Watch(model, named).run(asked)
    if seen.answer is None:
        return
    for name in named:
        if name not in seen.given or seen.given[name].shape[-1] != seen.answer.shape[-1]:
            raise Failed(f"role 'head' names '{name}' of {case}, whose answers are no logits; name the last layer")


def check_attention_roles_mean_what_they_say(plugin: object, bench: Bench | None = None) -> None:
    """In every block q, k and v are what attention makes its queries, keys and values of, and o takes what it gives.

    A query reaches only its own position; a key or a value reaches others; and only values still do so when all
    positions have the same one. That tells them apart in a fused projection, channel by channel, as in separate ones.
    """
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        for block in found.parts["block"]:
            for output in _inside(found.parts, "attention.o", block):
                roles = _roles_near(found.parts, output, block)
                _attention(found.model, roles, _beside(found.model, found.parts, block, roles), output, case)


def _inside(parts: Parts, role: str, block: str) -> list[str]:
    return [name for name in parts.get(role, ()) if name.startswith(f"{block}.")]


def _beside(model: nn.Module, parts: Parts, block: str, roles: Mapping[str, set[str]]) -> list[str]:
    """The other matrices of a block that may be part of its attention."""
    apart = {*parts["attention.o"], *(name for role in parts if role.startswith("mlp.") for name in parts[role])}
    inside = [f"{block}.{name}" for name, module in model.get_submodule(block).named_modules() if is_matrix(module)]
    return [name for name in inside if name not in apart and name not in roles]


def _roles_near(parts: Parts, output: str, block: str) -> dict[str, set[str]]:
    """For each module of the attention that ends in `output`, the roles q, k and v that it is named under."""
    outputs = _inside(parts, "attention.o", block)
    roles: dict[str, set[str]] = {}
    for letter in "qkv":
        for name in _inside(parts, f"attention.{letter}", block):
            if _nearest(outputs, name) == output:
                roles.setdefault(name, set()).add(letter)
    return roles


def _attention(model: nn.Module, roles: Mapping[str, set[str]], beside: list[str], output: str, case: Case) -> None:
    for letter, said in LETTERS.items():
        if not any(letter in given for given in roles.values()):
            raise Failed(f"no module of role 'attention.{letter}' belongs to '{output}' of {case}; name the {said}")
    used = _use(model, (*roles, *beside), output, questions(model, case.head)["a batch"])
    for name, letters in roles.items():
        if name not in used:
            raise Failed(f"'{name}' has role 'attention.{min(letters)}', and it never reaches '{output}' of {case}")
        for letter, said in LETTERS.items():
            if (letter in letters) != (letter in used[name]):
                is_said = f"is named 'attention.{letter}'" if letter in letters else f"is not 'attention.{letter}'"
                makes = "makes" if letter in used[name] else "does not make"
                raise Failed(f"'{name}' {is_said}, and in {case} it {makes} {said}; name modules by what they are")


LETTERS: Mapping[str, str] = {"q": "queries", "k": "keys", "v": "values"}


def _use(model: nn.Module, names: tuple[str, ...], output: str, asked: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Whether what each module gives is used as queries, keys or values, by where its gradients are."""
    seen = Watch(model, names, output).gradients(asked)
    same = Watch(model, names, output, change=_same_at_every_position).gradients(asked)
    trace, most = (max(float(gradient.abs().max()) for gradient in found.values()) for found in (seen, same))
    used: dict[str, set[str]] = {}
    for name, gradient in seen.items():
        own, elsewhere = gradient.abs().amax((0, 1)) > NOTHING * trace, gradient.abs().clone()
        elsewhere[:, PLACE : PLACE + 1] = 0
        reaches, values = elsewhere.amax((0, 1)) > NOTHING * trace, same[name].abs().amax((0, 1)) > FAINT * most
        kinds = {"q": own & ~reaches, "k": reaches & ~values, "v": values}
        used[name] = {letter for letter, channels in kinds.items() if bool(channels.any())}
    return {name: letters for name, letters in used.items() if letters}


PLACE = 5  # the position whose answer is looked at: others come before and after it
# Shares of the largest gradient. A query's is 0 where it does not reach, a key's is 1e-3 and more.
NOTHING = 1e-7
# When all positions have the same value, keys and queries keep up to 1e-5, values 0.05 and more.
FAINT = 1e-3


def _same_at_every_position(tensor: Tensor) -> Tensor:
    return tensor.mean(1, keepdim=True).expand_as(tensor)


def check_mlp_roles_mean_what_they_say(plugin: object, bench: Bench | None = None) -> None:
    """In every block what mlp.down takes turns its sign with mlp.up, and does not with mlp.gate.

    An mlp without a gate has up and down only; one module that is both is named under both.
    """
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        for block in found.parts["block"]:
            for output in _inside(found.parts, "mlp.down", block):
                _mlp(found.model, found.parts, block, output, case)


def _mlp(model: nn.Module, parts: Parts, block: str, output: str, case: Case) -> None:
    near = {role: _nearest(_inside(parts, role, block), output) for role in ("mlp.up", "mlp.gate")}
    up, gate = near["mlp.up"], near["mlp.gate"]
    if up is None:
        raise Failed(f"no module of role 'mlp.up' belongs to '{output}' of {case}; name it")
    asked = questions(model, case.head)["a batch"]
    plain = Watch(model, (up,), output).run(asked)
    _reaches(model, up, "mlp.up", output, plain, asked, case)
    width, entering = plain.given[up].shape[-1], plain.entering
    assert entering is not None
    if gate in (None, up):
        _is_fused(width, entering.shape[-1], both=gate == up, name=up, case=case)
        return
    assert gate is not None
    _reaches(model, gate, "mlp.gate", output, plain, asked, case)
    for name, role, turns in ((up, "mlp.up", True), (gate, "mlp.gate", False)):
        turned = Watch(model, (name,), output, change=_turned).run(asked).entering
        if turned is None or _near(turned, -entering) != turns:
            raise Failed(
                f"'{name}' is named '{role}', and what enters '{output}' of {case} "
                f"{'does not turn' if turns else 'turns'} its sign with it; up is what is multiplied by the gate"
            )


def _nearest(names: list[str], output: str) -> str | None:
    """The name that shares most of its path with `output`."""
    return max(names, key=lambda name: _shared(name.split("."), output.split(".")), default=None)


def _shared(one: list[str], other: list[str]) -> int:
    """How many steps two paths have in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _reaches(
    model: nn.Module, name: str, role: str, output: str, plain: Seen, asked: Mapping[str, Tensor], case: Case
) -> None:
    turned = Watch(model, (name,), output, change=_turned).run(asked).entering
    if plain.entering is None or turned is None or _near(turned, plain.entering):
        raise Failed(f"'{name}' is named '{role}' of {case}, and what it gives does not reach '{output}'")


def _is_fused(width: int, taken: int, *, both: bool, name: str, case: Case) -> None:
    """A module is named up and gate exactly when it gives twice what down takes."""
    if both and width != 2 * taken:
        raise Failed(f"'{name}' is named up and gate of {case}, and gives no more than one of them; name each apart")
    if not both and width != taken:
        raise Failed(f"'{name}' gives {width} numbers, and mlp.down of {case} takes {taken}: name it 'mlp.gate' too")


def _turned(tensor: Tensor) -> Tensor:
    return -tensor


def _near(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))


@dataclass
class Seen:
    """What went through a model: what modules gave, what entered one of them, and what was answered."""

    given: dict[str, Tensor] = field(default_factory=dict)
    entering: Tensor | None = None
    answer: Tensor | None = None


@dataclass(frozen=True)
class Watch:
    """A model whose modules `names` are watched, and changed by `change`, up to what enters `output`."""

    model: nn.Module
    names: tuple[str, ...]
    output: str = ""
    change: Callable[[Tensor], Tensor] | None = None

    def run(self, asked: Mapping[str, Tensor]) -> Seen:
        """What was seen while the model answered."""
        import torch

        with torch.no_grad():
            return self._seen(asked)

    def gradients(self, asked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How what enters `output` at one position depends on what each watched module gave."""
        import torch

        with torch.enable_grad():
            seen = self._seen(asked)
        assert seen.entering is not None
        entering = seen.entering.reshape(len(seen.entering), seen.entering.shape[1], -1)
        weights = torch.linspace(0.5, 1.5, entering.shape[-1])
        scalar = (entering[:, PLACE] * weights).sum()
        given = list(seen.given.values())
        found = torch.autograd.grad(scalar, given, allow_unused=True)
        pairs = zip(seen.given.items(), found, strict=True)
        return {name: torch.zeros_like(tensor) if grad is None else grad for (name, tensor), grad in pairs}

    def _seen(self, asked: Mapping[str, Tensor]) -> Seen:
        seen = Seen()
        handles = list(self._hooks(seen))
        try:
            out = self.model(**asked)
            seen.answer = getattr(out, "logits", None)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _hooks(self, seen: Seen) -> Iterator[Any]:
        import torch

        def after(name: str) -> Callable[..., Any]:
            def hook(module: object, given: object, out: Any) -> Any:
                if not isinstance(out, torch.Tensor):  # a router, which attention has none of
                    return out
                changed = out if self.change is None else self.change(out)
                if torch.is_grad_enabled() and not changed.requires_grad:
                    changed.requires_grad_(True)
                seen.given[name] = changed
                return changed

            return hook

        def before(module: object, given: tuple[Tensor, ...]) -> None:
            seen.entering = given[0]

        for name in self.names:
            yield self.model.get_submodule(name).register_forward_hook(after(name))
        if self.output:
            yield self.model.get_submodule(self.output).register_forward_pre_hook(before)
