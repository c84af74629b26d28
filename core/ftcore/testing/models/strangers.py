"""What a family promises about strangers' checkpoints: no code that they bring runs, and nobody is asked about them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ftcore.errors import Refused
from ftcore.families import HEADS
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import Case, change, copied, first, load, one_of_each_type, plain_cases
from ftcore.testing.models.files import INTENTS


def check_no_code_of_a_checkpoint_runs(plugin: object, bench: Bench | None = None) -> None:
    """No code that comes with a checkpoint ever runs: modules it names, pickles, or what hides in its chat template."""
    bench = bench_of("model", plugin, bench)
    ran = bench.place("ran")
    for case, what, folder in _traps(bench, ran):
        for intent in INTENTS:
            with contextlib.suppress(Exception), _agreeing():
                tokenizer = load(bench, folder, case.head, intent=intent).tokenizer
                if tokenizer is not None:
                    tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False)
            if ran.exists():
                code = ", ".join(sorted(file.name for file in ran.iterdir()))
                raise Failed(f"{what}, and {code} of it ran; pass trust_remote_code=False, and read safetensors only")
    for case in plain_cases(bench):
        _asks_for_no_kernel(bench, case)


def _asks_for_no_kernel(bench: Bench, case: Case) -> None:
    """A config.json that names a kernel of the hub as attention, which is code, is refused or not heeded."""
    folder = copied(bench, case.folder, "kernel")
    change(folder / "config.json", _attn_implementation=KERNEL, attn_implementation=KERNEL)
    for intent in INTENTS[:2]:
        try:
            load(bench, folder, case.head, intent=intent)
        except Refused:
            continue
        except Exception as fault:
            raise Failed(
                f"a config.json that names '{KERNEL}' of the hub as its attention has it fetched and run "
                f"({type(fault).__name__}); choose the attention, whatever the file says"
            ) from fault


KERNEL = "no-such-owner/no-such-kernel"


@contextlib.contextmanager
def _agreeing() -> Iterator[None]:
    """Whoever asks on the terminal whether to run code is told yes."""
    before, sys.stdin = sys.stdin, io.StringIO("y\n" * 100)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.stdin = before


def _traps(bench: Bench, ran: Path) -> Iterator[tuple[Case, str, Path]]:
    """Checkpoints of each kind that bring code along."""
    for case in one_of_each_type(bench):
        yield from ((case, what, folder) for what, folder in _trapped_ways(bench, case, ran))


def _trapped_ways(bench: Bench, case: Case, ran: Path) -> Iterator[tuple[str, Path]]:
    yield "a checkpoint of its own type brings code", _trapped(bench, case, ran, case.model_type)
    yield "a checkpoint of an unknown type brings code", _trapped(bench, case, ran, "trap")
    foreign = _trapped(bench, case, ran, case.model_type)
    for file in [*foreign.glob("tokenizer.*"), *foreign.glob("vocab*"), *foreign.glob("*.tiktoken")]:
        file.unlink()
    yield "a checkpoint whose tokenizer is code", foreign
    pickled = _trapped(bench, case, ran, case.model_type)
    for file in pickled.glob("*.safetensors"):
        file.unlink()
    yield "a checkpoint has pickled weights only", pickled
    broken = _trapped(bench, case, ran, case.model_type)
    for file in broken.glob("*.safetensors"):
        file.write_bytes(b"")
    yield "a checkpoint has pickles beside weights that cannot be read", broken
    for escape in ESCAPES:
        folder = copied(bench, case.folder, "template")
        template = escape.replace("PLACE", repr(str(ran / "the chat template")))
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        change(folder / "tokenizer_config.json", chat_template=template)
        yield "a chat template reaches out of its sandbox", folder


ESCAPES = (
    "{% set os = cycler.__init__.__globals__.os %}{{ os.makedirs(PLACE) }}",
    "{% set os = raise_exception.__globals__['__builtins__']['__import__']('os') %}{{ os.makedirs(PLACE) }}",
)
AUTO = ("AutoConfig", "AutoModel", *HEADS.values())
PICKLES = ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt", "tokenizer.pkl")


def _trapped(bench: Bench, case: Case, ran: Path, model_type: str) -> Path:
    """The checkpoint with code wherever a loader might look for it; each piece leaves its name in `ran`."""
    folder = copied(bench, case.folder, "trapped")
    config, tokens = folder / "config.json", folder / "tokenizer_config.json"
    named = {str(place).partition(".")[0] for place in case.config.get("auto_map", {}).values()}
    for module in {*named, "configuration_trap", "modeling_trap", "tokenization_trap"}:
        (folder / f"{module}.py").write_text(_code(ran, f"{module}.py"), encoding="utf-8")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_code(ran, "generate.py"), encoding="utf-8")
    for name in PICKLES:
        ran_name = str(ran).encode()
        # Protocol 0 by hand, for nothing here may import what reads it: os.makedirs(ran / name).
        (folder / name).write_bytes(b"cos\nmakedirs\n(S'" + ran_name + b"/" + name.encode() + b"'\ntR.")
    modules = {auto: f"{'configuration' if auto == 'AutoConfig' else 'modeling'}_trap.Trap" for auto in AUTO}
    if model_type != case.model_type:
        change(config, model_type=model_type)
    change(config, auto_map={**case.config.get("auto_map", {}), **modules}, trust_remote_code=True)
    both = ["tokenization_trap.Trap", "tokenization_trap.Trap"]
    change(tokens, auto_map={"AutoTokenizer": both}, tokenizer_class="Trap", trust_remote_code=True)
    return folder


def _code(ran: Path, name: str) -> str:
    return f"import os\nos.makedirs({str(ran / name)!r}, exist_ok=True)\n"


def check_asks_nothing_of_the_network(plugin: object, bench: Bench | None = None) -> None:
    """A checkpoint in a folder is loaded without a look at the network."""
    import socket

    bench = bench_of("model", plugin, bench)
    asked: list[str] = []

    def refuse(*given: Any, **named: Any) -> NoReturn:
        asked.append(next((str(one) for one in given if isinstance(one, (str, tuple))), "somebody"))
        raise OSError("the kit is not connected")

    kept = {name: getattr(socket, name) for name in ("getaddrinfo", "create_connection")}
    connect = socket.socket.connect
    try:
        for name in kept:
            setattr(socket, name, refuse)
        socket.socket.connect = refuse  # type: ignore[method-assign]
        for intent in INTENTS:
            with contextlib.suppress(Exception):
                load(bench, first(bench).folder, first(bench).head, intent=intent)
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
        for name, function in kept.items():
            setattr(socket, name, function)
    if asked:
        raise Failed(f"loading a folder asks '{asked[0]}' on the network; all there is to load is in it")
