"""What plugins rely on is written down: a change of it shows here first, and belongs in the changelog.

`python tests/contract/test_signatures.py` writes the file anew.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import ftcore
from ftcore import discovery, hooks

GOLDEN = Path(__file__).parent / "signatures.txt"
VALUES = (hooks.Run, hooks.Loaded, hooks.Batch, hooks.Probe, hooks.Data, hooks.Example, hooks.Adapter)


def specified() -> dict[str, object]:
    """The hooks in the order in which they are written."""
    return {name: found for name, found in vars(hooks).items() if hasattr(found, "ftcore_spec")}


def contract() -> Iterator[str]:
    """The contract as text, one name a line."""
    yield from (f"group ftcore.{kind}s" for kind in discovery.KINDS)
    for name, hook in specified().items():
        kind = "first" if getattr(hook, "ftcore_spec")["firstresult"] else "every"  # noqa: B009
        yield f"hook {name}{inspect.signature(hook)}: {kind}"  # type: ignore[arg-type]
    for value in VALUES:
        for field in dataclasses.fields(value):
            absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield f"field {value.__name__}.{field.name}: {field.type}" + ("" if absent else " = …")
    for name in sorted(name for name in vars(hooks.Row) if not name.startswith("_")):
        yield f"row {name}"
    yield from (f"datum {name} = {value!r}" for name, value in discovery.DECLARABLE.items())
    yield from (f"name ftcore.{name}" for name in sorted(ftcore.__all__))


def test_the_contract_is_what_is_written_down() -> None:
    assert "\n".join(contract()) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_no_hook_argument_has_a_default_and_every_hook_says_when_it_is_called() -> None:
    for name, hook in specified().items():
        parameters = inspect.signature(hook).parameters.values()  # type: ignore[arg-type]
        assert [p.name for p in parameters if p.default is not p.empty] == [], name
        assert (hook.__doc__ or "").startswith("Called"), name


def test_the_values_that_hooks_get_are_frozen() -> None:
    assert [value.__name__ for value in VALUES if not getattr(value, "__dataclass_params__").frozen] == []  # noqa: B009


def test_every_public_name_is_there_and_documented() -> None:
    assert [name for name in ftcore.__all__ if not getattr(ftcore, name).__doc__ and name != "hookimpl"] == []
    assert sorted(ftcore.__all__) == dir(ftcore)


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(contract()) + "\n", encoding="utf-8")
