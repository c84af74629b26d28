"""The command line: flags become the keys of a run, answers become text or JSON, refusals become exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.errors import Deprecated, FtcoreError, Interrupted, Leave, Refused

if TYPE_CHECKING:
    from ftcore.declaring import Option
    from ftcore.progress import Screen

NAMES = {"method": "METHOD[+METHOD]", "task": "TASK", "model": "FAMILY", "with": "EXTENSION"}
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
# They warn, whenever they are imported, of what only makes them faster elsewhere.
TALKATIVE = ("bitsandbytes",)


def main() -> None:
    """Run the command line and leave with the exit code that says how it ended."""
    signal.signal(signal.SIGTERM, _leave)
    quieten()
    try:
        code = cli.main(standalone_mode=False)
    except FtcoreError as stopped:
        click.echo(f"ftcore: {stopped}", err=True)
        code = stopped.exit_code
    except click.ClickException as usage:
        click.echo(f"ftcore: {usage.format_message()}", err=True)
        code = Refused.exit_code
    except Leave:
        code = Interrupted.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def quieten() -> None:
    """Libraries say nothing that is not about the run."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("default", Deprecated)


def _leave(number: int, frame: object) -> None:
    """Asked to end before there is anything to save."""
    raise Leave


class Commands(click.Group):
    """The commands, among whose arguments, wherever they stand, two flags say which plugins there are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments without these flags, which hold until the command has ended."""
        said, rest = _allow_list_among(args)
        if said:
            from ftcore.trust import only_from

            ctx.with_resource(only_from(*_distributions(said), said=" ".join(said)))
        return super().parse_args(ctx, rest)


def _allow_list_among(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What of the arguments says which plugins are offered, and the others; after `--` there are no flags."""
    said: list[str] = []
    rest: list[str] = []
    waiting = iter(args)
    for arg in waiting:
        if arg == "--":
            return said, [*rest, arg, *waiting]
        if arg == "--plugins-from":
            said += [arg, next(waiting, "")]
        elif arg == "--no-plugins" or arg.startswith("--plugins-from="):
            said += arg.split("=", 1)
        else:
            rest.append(arg)
    return said, rest


def _distributions(said: Sequence[str]) -> tuple[str, ...]:
    """The distributions that the flags name; Refused when they contradict each other or name none."""
    from ftcore.trust import separated

    named = tuple(name for part in said if not part.startswith("--") for name in separated(part))
    if "--no-plugins" in said and "--plugins-from" in said:
        raise Refused("--no-plugins and --plugins-from are given; give one of them")
    if "--plugins-from" in said and not named:
        raise Refused("--plugins-from names no distribution; write --plugins-from NAME[,NAME…], or --no-plugins")
    return named


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ftcore")
@click.option(
    "--plugins-from",
    metavar="DIST[,DIST…]",
    expose_value=False,
    help="Offer only plugins of these installed distributions, and import no other; also after the command.",
)
@click.option("--no-plugins", is_flag=True, expose_value=False, help="Offer no plugin; also after the command.")
def cli() -> None:
    """Fine-tune transformer models through plugins.

    'ftcore plugins' lists the methods, tasks and model families that are installed.

    Without --plugins-from and --no-plugins, a list in the environment variable FTCORE_PLUGINS holds.
    """


class RunCommand(click.Command):
    """A command whose flags are the core's settings and the options of the plugins that its arguments name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed with the flags of the plugins they name."""
        ctx.meta["ftcore.dynamic"] = list(_flags(_named(args)))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The fixed flags and those of the chosen plugins."""
        return [*self.params, *ctx.meta.get("ftcore.dynamic", []), *filter(None, [self.get_help_option(ctx)])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The flags, grouped by what they are about."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                groups.setdefault(getattr(param, "section", "Plugins"), []).append(record)
        for name, rows in groups.items():
            with formatter.section(name):
                formatter.write_dl(rows)


class PlanCommand(RunCommand):
    """A command that answers in JSON also when the plugins it names are refused."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed; a refusal is printed as the plan when JSON was asked for."""
        asked = list(args)
        try:
            return super().parse_args(ctx, args)
        except Refused as refusal:
            if "--json" in asked:
                from ftcore.planning import Plan

                click.echo(json.dumps(Plan(refused=str(refusal)).plain(), indent=2, ensure_ascii=False))
            raise


class Flag(click.Option):
    """A flag made from a declared option; its value stays text until the option's own validation."""

    def __init__(self, option: Option, prefix: str, section: str) -> None:
        key = f"{prefix}.{option.name}" if prefix else option.name
        self.key, self.section = key, section
        many = isinstance(option.default, tuple) and not prefix
        # Even a flag_value of None would tell click that the flag may stand without its value.
        bare: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if option.switch else {}
        super().__init__(
            [f"--{key}" if prefix else f"--{key.replace('_', '-')}", key.replace(".", "__").replace("-", "_")],
            help=_help(option),
            metavar=option.kind,
            multiple=many,
            default=None,
            **bare,
        )


def _help(option: Option) -> str:
    if option.required:
        return f"{option.help}  [required]"
    default = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
    return option.help if default in (None, "", False) else f"{option.help}  [{default}]"


def _flags(named: Mapping[str, Sequence[str]]) -> Iterator[click.Parameter]:
    from ftcore.declaring import declared
    from ftcore.discovery import PLUGIN_KEYS, find
    from ftcore.settings import Settings

    for option in declared(Settings):
        yield Flag(option, "", option.section)
    for key, spelled in named.items():
        for name in spelled:
            offer = find(PLUGIN_KEYS[key], name)
            for option in declared(offer.load()):
                yield Flag(option, offer.name, f"{key} {offer.name}")


def _named(args: Sequence[str]) -> dict[str, list[str]]:
    """The plugins that the arguments, or the run file among them, name; the arguments win."""
    flags = _peeked(args)
    if "methods" in flags:
        flags["method"] = "+".join(flags["methods"].split(","))
    file = flags.get("config") or _file_among(args)
    keys: Mapping[str, object] = {}
    if file:
        from ftcore.config import read

        keys = read(file)
    named = {}
    for key in NAMES:
        given = flags.get(key) or keys.get(key) or ()
        named[key] = _listed(key, given)
    return named


def _file_among(args: Sequence[str]) -> str | None:
    """The argument that is no flag and no flag's value, as far as that shows before the flags are known."""
    bare = [a for before, a in zip(("", *args), args, strict=False) if not a.startswith("-") and _takes_none(before)]
    return bare[0] if bare else None


def _takes_none(before: str) -> bool:
    from ftcore.declaring import declared
    from ftcore.settings import Settings

    switches = {f"--{o.name.replace('_', '-')}" for o in declared(Settings) if o.switch}
    return not before.startswith("--") or "=" in before or before in switches


def _listed(key: str, given: object) -> list[str]:
    """The plugins that one key names."""
    names = given.split("+") if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if (given and not names) or not all(isinstance(name, str) and name for name in names):
        raise Refused(f"{key} is {given!r}: name plugins, joined with +")
    return names


def _peeked(args: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, arg in enumerate(args):
        name, _, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in (*NAMES, "config", "methods"):
            given = value or (args[index + 1] if index + 1 < len(args) else "")
            found[name] = f"{found[name]}+{given}" if name in found and name == "with" else given
    return found


def _plugin_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, metavar in reversed(NAMES.items()):
        command = click.option(
            f"--{name}", f"{name}_", metavar=metavar, help=_NAME_HELP[name], multiple=name == "with"
        )(command)
    config = click.option("--config", "config_", metavar="FILE", help="YAML file or the ftcore.json of a run.")
    return click.argument("file", required=False, metavar="[RUN.yaml]")(config(command))


_NAME_HELP = {
    "method": "How to adapt the model; several are joined with +.",
    "task": "What to teach it.",
    "model": "The model family.",
    "with": "An extension to act in this run; several are joined with +.",
}


def _keys(ctx: click.Context, file: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The run file's keys with the flags laid over them."""
    from ftcore.config import read

    if file and given.get("config_"):
        raise Refused(f"a run file '{file}' and --config {given['config_']} are given; give one of them")
    chosen = file or given.get("config_")
    keys = read(chosen) if chosen else {}
    joined = {name: given[f"{name}_"] for name in NAMES if given.get(f"{name}_")}
    keys.update({name: value if isinstance(value, str) else "+".join(value) for name, value in joined.items()})
    for param in ctx.meta["ftcore.dynamic"]:
        value = ctx.params.get(param.name)
        if value in (None, ()):
            continue
        plugin, _, option = param.key.rpartition(".")
        if plugin:
            keys[plugin] = {**(keys.get(plugin) or {}), option: value}
        else:
            keys[option] = list(value) if isinstance(value, tuple) else value
    return keys


@cli.command(cls=RunCommand)
@_plugin_flags
@click.pass_context
def run(ctx: click.Context, /, file: str | None, **given: Any) -> None:
    """Train an adapter; the same command again resumes it.

    The flags of a plugin appear in this help once it is named, as in 'ftcore run --method NAME --help'.
    """
    from ftcore import config

    recipe = config.resolve(_keys(ctx, file, given))
    screen = _screen()
    from ftcore import pipeline

    outcome = pipeline.run(recipe, screen)
    for line in _summary(outcome) if os.environ.get("RANK", "0") == "0" else ():
        click.echo(line)


def _screen() -> Screen:
    from ftcore.progress import screen_for

    return screen_for(sys.stderr)


def _summary(outcome: Any) -> Iterator[str]:
    for name in (name for name in outcome.metrics if name in outcome.before and name not in ("tokens", "rows")):
        rows, before, after = int(outcome.metrics["rows"]), outcome.before[name], outcome.metrics[name]
        yield f"{name.replace('_', ' ')} on {rows} held-out rows: {before:.4f} before, {after:.4f} after"
    for sample in outcome.samples:
        yield f"asked:   {sample['question']}"
        yield f"  before: {_line(sample['before'])}"
        yield f"  after:  {_line(sample['after'])}"
    yield f"finished after {outcome.steps} steps; everything is in {outcome.output} (report.html shows the curves)"
    use = "chat {0}" if outcome.chats else "predict {0} --data ROWS --output FILE"
    yield f"next: ftcore {use.format(outcome.output)}  ·  ftcore merge {outcome.output} --output OUT"


def _line(text: str) -> str:
    flat = " ".join(text.split()) or "(nothing)"
    return flat if len(flat) <= 160 else flat[:159] + "…"


@cli.command(cls=PlanCommand)
@_plugin_flags
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def plan(ctx: click.Context, /, file: str | None, as_json: bool, **given: Any) -> None:
    """Say what a run would do, without weights; exit 2 when it would be refused."""
    from ftcore import planning
    from ftcore.progress import Silent

    planned = planning.plan(_keys(ctx, file, given), Silent())
    click.echo(
        json.dumps(planned.plain(), indent=2, ensure_ascii=False)
        if as_json
        else planning.text(planned, colour=sys.stdout.isatty())
    )
    if planned.refused:
        raise click.exceptions.Exit(Refused.exit_code)


@cli.command(cls=RunCommand)
@click.option("--methods", "methods_", required=True, metavar="METHOD[,METHOD…]", help="Methods to compare.")
@_plugin_flags
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def compare(ctx: click.Context, /, file: str | None, methods_: str, as_json: bool, **given: Any) -> None:
    """Do the same job by several methods, and put what came of each beside the others: a table and a plot.

    Every run is in its own directory under --output, and in a process of its own.
    """
    from dataclasses import asdict

    from ftcore import comparing

    if given.get("method_"):
        raise Refused("--method and --methods are given; name all methods with --methods")
    keys = _keys(ctx, file, given)
    output = Path(str(keys.pop("output", None) or f"runs/compare-{keys.get('task')}-{keys.get('model')}"))
    methods = [name.strip() for name in methods_.split(",") if name.strip()]
    entries = comparing.compare(methods, keys, output, lambda line: click.echo(line, err=True))
    click.echo(json.dumps([asdict(one) for one in entries], indent=2) if as_json else comparing.table(entries))
    if not as_json:
        click.echo(f"\nThe table and the plot are in {output}: comparison.md, comparison.svg, comparison.json.")


class MergeCommand(RunCommand):
    """A command on a finished run, whose flags are those options of its methods that training does not depend on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed with the flags of the run they name."""
        ctx.meta["ftcore.dynamic"] = list(_flags_after_training(args))
        return click.Command.parse_args(self, ctx, args)


def _flags_after_training(args: Sequence[str]) -> Iterator[click.Parameter]:
    from ftcore.config import read
    from ftcore.declaring import declared
    from ftcore.directory import RUN_FILE
    from ftcore.discovery import find

    files = [Path(name) / RUN_FILE for name in _names_among(args)]
    for file in filter(Path.is_file, files):
        for name in _listed("method", read(file).get("method", ())):
            offer = find("method", name)
            options = [option for option in declared(offer.load()) if option.harmless]
            yield from (Flag(option, offer.name, f"method {offer.name}") for option in options)


@cli.command(cls=MergeCommand)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New directory for the plain model.")
@click.option("--stream", is_flag=True, help="Hold one block in memory at a time instead of the whole model.")
@click.pass_context
def merge(ctx: click.Context, /, directory: Path, output: Path, stream: bool, **given: Any) -> None:
    """Fold a run's adapter into its base: a plain checkpoint that needs no ftcore.

    A method may have options for this; they appear in 'ftcore merge DIR --help'.
    """
    from ftcore import merging

    screen = _screen()
    _note_changed_plugins(directory, screen)
    merging.merge(directory, output, screen.say, _options_given(ctx), stream=stream)
    click.echo(f"the merged model is in {output}; {merging.how_to_load(output)}")


class ConvertCommand(RunCommand):
    """A command on a checkpoint, whose flags are the options of the family that its arguments name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed with the flags of the family that they name, or that converts such a checkpoint."""
        ctx.meta["ftcore.dynamic"] = list(_flags_of_family(_peeked(args).get("model") or _family_for(args)))
        return click.Command.parse_args(self, ctx, args)


def _family_for(args: Sequence[str]) -> str | None:
    """The family that converts the directory among the arguments, where there is one."""
    folder = _file_among(args)
    if folder is None or not Path(folder, "config.json").is_file():
        return None
    from ftcore.families import converting_family

    return converting_family(folder)


def _flags_of_family(name: str | None) -> Iterator[click.Parameter]:
    from ftcore.declaring import declared
    from ftcore.discovery import find

    if name:
        offer = find("model", name)
        yield from (Flag(option, offer.name, f"model {offer.name}") for option in declared(offer.load()))


@cli.command(cls=ConvertCommand)
@click.argument("checkpoint")
@click.option("--model", metavar="FAMILY", help="The model family, whose options are flags too; by default it is told.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Convert this adapter, trained on it, instead.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New directory for the plain model.")
@click.pass_context
def convert(
    ctx: click.Context, /, checkpoint: str, model: str | None, adapter: Path | None, output: Path, **given: Any
) -> None:
    """Write a checkpoint in its authors' own shape as a plain one that needs neither ftcore nor their code.

    With --adapter, write an adapter that was trained on the authors' own modules as one for the plain model.
    """
    from ftcore import api, merging

    family = next(iter(_options_given(ctx).values()), {})
    api.convert(checkpoint, model=model, output=output, adapter=adapter, **family)
    if adapter:
        click.echo(f"the adapter for the plain model is in {output}; load it with the library that made it")
    else:
        click.echo(f"the plain model is in {output}; {merging.how_to_load(output)}")


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="FILE", help="Rows to evaluate on; without it the run's held-out rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(directory: Path, data: tuple[str, ...], as_json: bool) -> None:
    """Measure a finished run on held-out rows."""
    from ftcore import pipeline

    screen = _screen()
    _note_changed_plugins(directory, screen)
    metrics = pipeline.evaluate_run(directory, data, screen)
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        click.echo(f"{name.replace('_', ' ')}: {value:,.4f}".removesuffix(".0000"))


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="FILE", help="Rows to answer; without it the run's held-out rows.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="File of JSON lines.")
def predict(directory: Path, data: tuple[str, ...], output: Path) -> None:
    """Write what a finished run answers to rows, a line of JSON each; they need no answers of their own."""
    from ftcore import pipeline

    screen = _screen()
    _note_changed_plugins(directory, screen)
    count = pipeline.predict_run(directory, data, output, screen)
    click.echo(f"{count} answers are in {output}")


def _note_changed_plugins(directory: Path, screen: Screen) -> None:
    """What is installed is not what trained: that is said, and the adapter is used all the same."""
    from ftcore.directory import changed_plugins

    for change in changed_plugins(directory):
        screen.say(f"note: {change}")


@cli.command()
@click.argument("where", metavar="DIR|CHECKPOINT")
@click.option("--model", metavar="FAMILY", help="Family of a plain checkpoint; without it found by its config.json.")
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@click.option("--max-new-tokens", default=512, show_default=True, help="Longest answer in tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="0 always takes the likeliest token.")
def chat(where: str, model: str | None, system: str | None, max_new_tokens: int, temperature: float) -> None:
    """Talk to a run, or to a plain checkpoint; an empty line or Ctrl-D ends the conversation."""
    from ftcore import chat as chatting

    loaded = chatting.opened(where, model)
    chatting.converse(
        loaded, _questions(), lambda text: click.echo(text, nl=False),
        system=system, max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip


def _questions() -> Iterator[str]:
    """What a person types, until an empty line or the end; piped text is read line by line without a prompt."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


@cli.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins, or show one of them."""
    if ctx.invoked_subcommand:
        return
    from ftcore.discovery import listing

    found = listing()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        state = f"  unusable: {one['error']}" if one["error"] else ""
        click.echo(f"{one['kind']:<10}{one['name']:<14}{one['distribution']} {one['version']}{state}")


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON schema of its options, for editors.")
def show(name: str, as_json: bool) -> None:
    """Print what a plugin is and every option it has."""
    from ftcore.declaring import declared, schema
    from ftcore.discovery import find, kind_of

    offer = find(kind_of(name), name)
    cls = offer.load()
    if as_json:
        click.echo(json.dumps(schema(cls), indent=2))
        return
    click.echo(f"{offer.label}\n{' '.join((cls.__doc__ or '').split())}\n")
    for option in declared(cls):
        click.echo(f"  --{offer.name}.{option.name} {option.kind}\n      {_help(option)}")


class CheckCommand(RunCommand):
    """A command whose flags are the options of the plugins that its arguments name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed with the flags of the plugins they name."""
        ctx.meta["ftcore.dynamic"] = list(_flags_of_checked(args))
        return click.Command.parse_args(self, ctx, args)


def _flags_of_checked(args: Sequence[str]) -> Iterator[click.Parameter]:
    from ftcore.declaring import declared
    from ftcore.discovery import find, kind_of

    for name in _names_among(args):
        offer = find(kind_of(name), name)
        for option in declared(offer.load_with_care()):
            yield Flag(option, offer.name, f"{offer.kind} {offer.name}")


def _names_among(args: Sequence[str]) -> list[str]:
    """The arguments that are neither flags nor their values."""
    named = []
    for before, arg in zip(("", *args), args, strict=False):
        if not arg.startswith("-") and (not before.startswith("--") or "=" in before or before == "--json"):
            named.append(arg)
    return named


@cli.command(cls=CheckCommand)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--checkpoint", metavar="DIR", help="A tiny checkpoint for a family that the kit can make none for.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check(ctx: click.Context, /, names: tuple[str, ...], checkpoint: str | None, as_json: bool, **given: Any) -> None:
    """Try on installed plugins, all or the named ones, what the contract promises; exit 1 when one is broken."""
    from ftcore import checking

    reports = checking.checked(names, _options_given(ctx), checkpoint, None if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(reports, indent=2, ensure_ascii=False))
    if any(report["failed"] for report in reports):
        raise click.exceptions.Exit(FtcoreError.exit_code)


def _options_given(ctx: click.Context) -> dict[str, dict[str, object]]:
    """The options of plugins among the flags, by the plugin's name."""
    options: dict[str, dict[str, object]] = {}
    for param in ctx.meta["ftcore.dynamic"]:
        plugin, _, option = param.key.rpartition(".")
        if ctx.params.get(param.name) is not None:
            options.setdefault(plugin, {})[option] = ctx.params[param.name]
    return options


@cli.group()
def data() -> None:
    """Look at files of rows."""


# The settings that say how rows are read.
ROW_SETTINGS = ("sheet", "header_row", "columns", "row_template", "data_format")


class LookCommand(RunCommand):
    """A command whose flags are the settings that say how rows are read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments parsed with these flags."""
        ctx.meta["ftcore.dynamic"] = [flag for flag in _flags({}) if getattr(flag, "key", "") in ROW_SETTINGS]
        return click.Command.parse_args(self, ctx, args)


@data.command("check", cls=LookCommand)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--task", metavar="TASK", help="Try the rows on what this task reads, not on what their own keys say.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check_data(ctx: click.Context, /, files: tuple[str, ...], task: str | None, as_json: bool, **given: Any) -> None:
    """Say what is in files of rows, and what is wrong with them, without a model; exit 2 when a row cannot be used."""
    from ftcore import looking
    from ftcore.declaring import build
    from ftcore.settings import Settings, form_of, layout_of

    flags = {flag.key: ctx.params[flag.name] for flag in ctx.meta["ftcore.dynamic"]}
    settings = build(Settings, {key: value for key, value in flags.items() if value not in (None, ())}, "the check")
    looks = []
    for one in looking.look(files, layout_of(settings), task, form_of(settings)):
        looks.append(one)
        if not as_json:
            click.echo(looking.text(one))
    if as_json:
        click.echo(json.dumps([one.plain() for one in looks], indent=2, ensure_ascii=False))
    if not all(one.sound for one in looks):
        raise click.exceptions.Exit(Refused.exit_code)


@cli.command()
@click.argument("kind", type=click.Choice(["method", "task", "model"]))
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="New directory; without it ftcore-NAME.")
@click.option("--author", metavar="TEXT", help="Whom the licence names; without it whom git names.")
@click.option(
    "--licence", type=click.Choice(["MIT", "Apache-2.0"]), default="MIT", show_default=True, help="Under which it is."
)
@click.option("--type", "model_type", metavar="TYPE", help="A family's model_type in config.json, where NAME is none.")
def new(kind: str, name: str, output: Path | None, author: str | None, licence: str, model_type: str | None) -> None:
    """Write the project of a new plugin: a package that works, with its test, ready to be changed and published."""
    from ftcore import scaffold

    def say(line: str) -> None:
        click.echo(line, err=True)

    project = scaffold.create(kind, name, output, author=author, licence=licence, model_type=model_type, say=say)
    click.echo(f"{project} is a package that passes its test; next:")
    for step in scaffold.next_steps(project, name):
        click.echo(f"  {step}")
