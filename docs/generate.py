"""Write what the docs say about hooks, options, plugins and commands, read from the code; --check only compares."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pluggy
from click.testing import CliRunner
from ftcore import discovery, errors, hooks
from ftcore.cli import cli
from ftcore.declaring import Option, declared, schema
from ftcore.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- written by docs/generate.py; edit the code and run `make docs` -->\n\n"
VALUES = ("Run", "Loaded", "Row", "Batch", "Probe", "Data", "Example", "Adapter")
KINDS = {
    "method": "how to adapt the model: `--method`, several joined with `+`",
    "task": "what to teach it: `--task`",
    "model": "the model family: `--model`",
    "extension": "what acts beside them when named: `--with`",
}


@dataclass(frozen=True)
class Shipped:
    """A plugin of this repository: its folder, its names, and its class."""

    folder: Path
    kind: discovery.Kind
    name: str
    distribution: str
    summary: str
    cls: type[Any]


def shipped() -> list[Shipped]:
    """Every plugin of this repository, by kind and name; whatever else is installed stays out of the docs."""
    found = []
    for file in sorted(ROOT.glob("plugins/*/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        for group, entries in project["entry-points"].items():
            kind: Any = group.removeprefix("ftcore.").removesuffix("s")
            for name in entries:
                cls = discovery.find(kind, f"{project['name']}:{name}").load()
                summary = project["description"].partition(": ")[2]
                found.append(Shipped(file.parent, kind, name, project["name"], summary, cls))
    return sorted(found, key=lambda one: (discovery.KINDS.index(one.kind), one.name))


def pages() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    plugins = shipped()
    written = {
        REFERENCE / "hooks.md": hooks_page(plugins),
        REFERENCE / "settings.md": settings_page(),
        REFERENCE / "plugins.md": plugins_page(plugins),
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "errors.md": errors_page(),
        REFERENCE / "kit.md": kit_page(),
        ROOT / "README.md": between(ROOT / "README.md", "plugins", plugin_table(plugins)),
    }
    for one in plugins:
        readme = one.folder / "README.md"
        written[readme] = between(readme, "options", options_table(one.cls, f"--{one.name}."))
    return written


def between(file: Path, name: str, content: str) -> str:
    """The text of `file` with `content` between its markers of that name."""
    text = file.read_text(encoding="utf-8")
    expression = re.compile(rf"(<!-- {name}:.*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not expression.search(text):
        raise click.ClickException(f"{file} has no '<!-- {name}: … -->' and '<!-- end of {name} -->'; add both")
    return expression.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# --- options ---------------------------------------------------------------------------------------------


def options_table(cls: type[Any], prefix: str) -> str:
    """The options of a plugin, or a sentence when there are none."""
    options = declared(cls)
    if not options:
        return "It has no options.\n"
    limits = limits_of(cls)
    rows = [[f"`{prefix}{o.name}`", kind_of(o, limits), default_of(o), o.help] for o in options]
    return table(("option", "value", "default", "meaning"), rows)


def kind_of(option: Option, limits: Mapping[str, str]) -> str:
    """What may be given: the choices or the type with its limits."""
    return " ".join(filter(None, (f"`{option.kind}`", limits.get(option.name, ""))))


def default_of(option: Option) -> str:
    """The default as it would be typed; empty when there is none."""
    if option.required:
        return "required"
    if option.default in (None, (), "", {}):
        return ""
    value = option.default
    typed = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{typed.lower() if isinstance(value, bool) else typed}`"


def limits_of(cls: type[Any]) -> dict[str, str]:
    """The numeric limits of each option, read from its JSON schema."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = {}
    for name, described in schema(cls)["properties"].items():
        forms = described.get("anyOf", [described])
        found[name] = ", ".join(f"{signs[key]} {form[key]:g}" for form in forms for key in signs if key in form)
    return found


def settings_page() -> str:
    """The core's own options by section."""
    limits = limits_of(Settings)
    sections: dict[str, list[Sequence[str]]] = {}
    for o in declared(Settings):
        flag, free = f"`--{o.name.replace('_', '-')}`", "yes" if o.harmless else ""
        sections.setdefault(o.section, []).append([flag, kind_of(o, limits), default_of(o), o.help, free])
    text = (
        f"{NOTE}# Settings\n\nWhat every run has, whichever plugins it names. In a YAML file and in Python a name is "
        "written with underscores: `batch_size: 8`. A change in an option whose last column is empty makes it another "
        "run, which the same output directory refuses; a checkpoint may move, as its bytes are compared and not its "
        "path.\n"
    )
    for section, rows in sections.items():
        text += f"\n## {section}\n\n" + table(("option", "value", "default", "meaning", "may change"), rows)
    return text


def plugins_page(plugins: Sequence[Shipped]) -> str:
    """Every plugin of this repository with its options."""
    text = f"{NOTE}# Plugins\n\nThe plugins of the ftcore repository. `ftcore plugins` lists what is installed.\n"
    for kind, meaning in KINDS.items():
        ours = [one for one in plugins if one.kind == kind]
        if ours:
            text += f"\n## {kind.capitalize()}s: {meaning}\n"
        for one in ours:
            text += f"\n### {one.name}\n\n{doc(one.cls)}\n\nPackage `{one.distribution}`{declares(one)}.\n\n"
            text += options_table(one.cls, f"--{one.name}.")
    return text


def declares(one: Shipped) -> str:
    """What the plugin declares of itself, in words."""
    said = []
    for name in discovery.DECLARABLE:
        value = getattr(one.cls, name, None)
        if name == "examples" and value:
            value = tuple(json.dumps(example.row, ensure_ascii=False) for example in value)
        if value not in (None, "", ()):
            said.append(f"`{name}` is {', '.join(f'`{v}`' for v in (value if isinstance(value, tuple) else (value,)))}")
    return "; " + "; ".join(said) if said else ""


def plugin_table(plugins: Sequence[Shipped]) -> str:
    """The README's table."""
    rows = [[one.kind, f"`{one.name}`", f"`{one.distribution}`", one.summary] for one in plugins]
    return table(("kind", "name", "package", "what it is"), rows)


# --- hooks -----------------------------------------------------------------------------------------------


def hooks_page(plugins: Sequence[Shipped]) -> str:
    """Each hook with its signature as written, its docstring, and who answers it; then the values they pass."""
    source = inspect.getsource(hooks)
    tree = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    text = (
        f"{NOTE}# Hooks\n\nThe contract with plugins, in the order a run calls it. A plugin is a class decorated with "
        "`ftcore.options`; its methods decorated with `ftcore.hookimpl` answer the hooks of the same name. Arguments "
        "come by name: take the ones you need and leave the others out. None may have a default.\n"
    )
    for name, spec in specs().items():
        answering = [f"`{one.name}`" for one in plugins if answers(one.cls, name)]
        first = "The first answer counts." if spec.get("firstresult") else "Every plugin that has it is called."
        said = f" Of the plugins here {', '.join(answering)} answer it." if answering else " No plugin here answers it."
        node = tree[name]
        assert isinstance(node, ast.FunctionDef)
        written = f"```python\n{signature(source, node)}\n```"
        text += f"\n## {name}\n\n{written}\n\n{doc(getattr(hooks, name))}\n\n{first}{said}\n"
    text += "\n# Values\n\nAll are frozen; a plugin reads them and makes new ones.\n"
    text += "".join(value(tree[name]) for name in VALUES)
    return text + "\n# What a plugin may declare\n\n" + declarable()


def specs() -> dict[str, Mapping[str, Any]]:
    """The hook specifications in the order they are written."""
    marked = ((name, getattr(found, "ftcore_spec", None)) for name, found in vars(hooks).items())
    return {name: spec for name, spec in marked if spec is not None and not isinstance(spec, pluggy.HookspecMarker)}


def answers(cls: type[Any], hook: str) -> bool:
    """Whether a plugin class implements `hook`."""
    return hasattr(getattr(cls, hook, None), "ftcore_impl")


def signature(source: str, node: ast.FunctionDef) -> str:
    """The `def` of a hook exactly as it stands in the source."""
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    return "\n".join(lines).rstrip(":")


def value(node: ast.AST) -> str:
    """A value's docstring and its fields."""
    assert isinstance(node, ast.ClassDef)
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    asked = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    rows = [[code(f.target), code(f.annotation), code(f.value)] for f in fields]
    rows += [[f"`{f.name}`", code(f.returns), ast.get_docstring(f) or ""] for f in asked]
    head = ("field", "type", "default" if fields else "meaning")
    return f"\n## {node.name}\n\n{inspect.cleandoc(ast.get_docstring(node) or '')}\n\n" + table(head, rows)


def code(node: ast.AST | None) -> str:
    """A piece of source as Markdown; empty when there is none."""
    return f"`{ast.unparse(node)}`" if node is not None else ""


def declarable() -> str:
    """The class attributes that a plugin may set, with the comments that stand beside them in the source."""
    source = inspect.getsource(discovery)
    block = source[source.index("DECLARABLE") :]
    lines = re.findall(r'^    "(\w+)": (.*),  # (\w+): (.*)$', block[: block.index("\n}")], re.MULTILINE)
    rows = [[f"`{name}`", who, f"`{default}`", meaning] for name, default, who, meaning in lines]
    return "Class attributes (`ClassVar`, so that they are no options).\n\n" + table(
        ("attribute", "of a", "when absent", "meaning"), rows
    )


def doc(thing: object) -> str:
    """A docstring without its indentation."""
    return inspect.getdoc(thing) or ""


# --- commands and errors ---------------------------------------------------------------------------------


def cli_page() -> str:
    """The help of every command; that of `run` and `plan` also grows by the options of the plugins named."""
    text = f"{NOTE}# Command line\n\nThe help texts; `run` and `plan` add the options of the plugins named.\n"
    for words in commands(cli, ()):
        shown = " ".join(("ftcore", *words))
        done = CliRunner().invoke(cli, [*words, "--help"], prog_name="ftcore", terminal_width=100)
        text += f"\n## {shown}\n\n```text\n{done.output.rstrip()}\n```\n"
    return text


def commands(group: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of every command, the group's own first."""
    yield words
    if isinstance(group, click.Group):
        for name, command in sorted(group.commands.items()):
            yield from commands(command, (*words, name))


def errors_page() -> str:
    """Exit codes and exceptions."""
    kinds = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.FtcoreError)]
    rows = [["0", "", "Done; for a finished run also when there was nothing left to do."]]
    rows += [[str(c.exit_code), f"`ftcore.{c.__name__}`", doc(c)] for c in sorted(kinds, key=lambda c: c.exit_code)]
    rows.append(["130", "`KeyboardInterrupt`", "Ctrl-C while nothing was being trained."])
    return (
        f"{NOTE}# Errors and exit codes\n\n"
        + table(("exit code", "in Python", "meaning"), rows)
        + "\n`ftcore plan` exits 2 when the run would be refused, and prints why as its answer.\n\n"
        + "Refusals go to standard error as `ftcore: SENTENCE`, without a traceback. Any other exception is a fault of "
        + "ftcore or of a plugin: it keeps its type and traceback, exits 1, and carries a note such as "
        + "`in inject_adapter of method 'x' (ftcore-x 0.1.0)`.\n"
    )


# --- the kit ---------------------------------------------------------------------------------------------

KIT = """# Conformance kit

What the contract promises, tried on a plugin: offline, on two-layer models, in seconds. A plugin's whole test file:

```python
from ftcore.testing import method_checks
from ftcore_nova import Nova


@method_checks(Nova())
def test_contract(check):
    check()
```

`task_checks`, `model_checks` and `extension_checks` are the same for the other kinds; `model_checks` takes
`checkpoint=`, a tiny one, for a family that the kit can make none for. At the command line, with everything that is
installed or with the plugins named:

```text
ftcore check [NAME]... [--NAME.OPTION VALUE] [--checkpoint DIR] [--json]
```

It exits 1 when a promise is broken. In a program, `ftcore.testing.examine(kind, plugin)` yields a `Result` for
each check, with `outcome` (`passed`, `failed`, `excused` or `not reached`), `reason` and `seconds`, and each check is a
plain function: `check_is_immutable(plugin)` raises `ftcore.testing.Failed`, an `AssertionError`, with what it saw.

A check builds on others: when one of those fails it is *not reached*, so that one defect shows once, with its cause. A
promise that a plugin cannot keep is declared on its class, with the reason, and shown in every report; a declaration
that is not needed fails:

```python
excused: ClassVar[Mapping[str, str]] = {"check_not_everything_trains": "full fine-tuning trains every weight"}
```

What the kit cannot find out by itself a plugin declares too: `tried_with`, options to be made with where some are
required; `examples` of a task, rows with the texts that must be learnt from them; `tiny` of a family, fields of the
smallest config. [The hooks page](hooks.md#what-a-plugin-may-declare) lists them.

The kit shows that a promise is broken on a small model, not that it is kept on every large one.
"""


def kit_page() -> str:
    """Every check of the kit with its promise, and the defects that each is known to find."""
    from ftcore import testing

    text = f"{NOTE}{KIT}"
    common = testing.CHECKS["extension"]
    text += f"\n## Every plugin\n\n{checks_table(common)}"
    for kind in ("method", "task", "model"):
        own = [check for check in testing.CHECKS[kind] if check not in common]
        text += f"\n## {kind.capitalize()}s\n\n{checks_table(own)}"
    found = [[f"`{one.fails}`", kind, one.defect] for kind, one in defects()]
    text += (
        "\n## Defects\n\nThe kit is itself tested, by plugins that are broken on purpose in one way each "
        f"(`tests/kit/broken_plugins`, {len(found)} of them). Each fails exactly one check:\n\n"
    )
    return text + table(("the check that fails", "kind", "the defect"), found)


def checks_table(checks: Iterable[Any]) -> str:
    """Names, promises and what they build on."""
    rows = [[f"`{c.name}`", f"{c.promise}.", ", ".join(f"`{n}`" for n in c.needs)] for c in checks]
    return table(("check", "what it promises", "builds on"), rows)


def defects() -> Iterator[tuple[str, Any]]:
    """Every plugin that is broken on purpose, with its kind."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.path.insert(0, str(ROOT / "tests" / "kit"))
    modules = {"anyone_listed": "any", "methods": "method", "tasks": "task", "models_listed": "model"}
    for name, kind in modules.items():
        for one in importlib.import_module(f"broken_plugins.{name}").BROKEN:
            yield kind, one


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and name what is stale.")
def main(check: bool) -> None:
    """Generate or compare."""
    wanted = pages()
    stale = [path for path in wanted if not path.exists() or path.read_text(encoding="utf-8") != wanted[path]]
    for path in stale:
        click.echo(f"{path.relative_to(ROOT)} is stale" if check else f"wrote {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    if check and stale:
        raise click.ClickException("run 'make docs' and commit what it writes")


if __name__ == "__main__":
    main()
