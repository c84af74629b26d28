"""Processes that know nothing of what this one has done: a function of the kit called in one of them.

One server process has torch and transformers imported and no plugin; each call is a fork of it, so that it is fresh
and costs next to nothing.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ftcore.declaring import build, dump
from ftcore.testing.kit import Failed


def reference(plugin: object) -> dict[str, Any]:
    """Where a plugin's class is defined and its options, from which another process makes its equal."""
    cls = type(plugin)
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None or "<locals>" in cls.__qualname__:
        raise Failed(f"{cls.__qualname__} is defined where no other process finds it; define it at the top of a module")
    return {"module": cls.__module__, "file": file, "name": cls.__qualname__, "options": dump(plugin)}


def rebuilt(described: Mapping[str, Any]) -> Any:
    """The plugin that `reference` described."""
    found: Any = module(described["module"], described["file"])
    for name in described["name"].split("."):
        found = getattr(found, name)
    return build(found, described["options"], described["name"])


def module(name: str, file: str) -> Any:
    """The module of that name, or the one in `file` where no import path leads to it."""
    if name != "__main__":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if not missing.name or not name.startswith(missing.name):
                raise
    name = "ftcore_kit_subject" if name == "__main__" else name
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def libraries(plugin: object) -> list[str]:
    """The libraries that the plugin's modules import and that are loaded here, but for the plugin's own."""
    modules = [sys.modules[cls.__module__] for cls in type(plugin).__mro__ if cls.__module__ in sys.modules]
    files = {file for file in (getattr(module, "__file__", None) for module in modules) if file}
    nodes = [node for file in files for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    own = {module.__name__.partition(".")[0] for module in modules} | {"ftcore"}
    return sorted(name for name in names if name in sys.modules and name.partition(".")[0] not in own)


def call(function: str, *, seconds: float = 120.0, libraries: Sequence[str] = (), **given: Any) -> Any:
    """What `module:function` answers to the JSON values `given`, in a fresh process; Failed with what it raised.

    `libraries` are imported before the process comes to be, once for all that will.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        asked = {"function": function, "given": given, "libraries": list(libraries), "path": sys.path}
        _ask({**asked, "answer": str(answer), "seconds": seconds})
        if not answer.exists():
            raise Failed("the process ended before it had answered; the plugin must not leave the interpreter")
        told = json.loads(answer.read_text(encoding="utf-8"))
    if "raised" in told:
        raise Failed(f"in a fresh process it raised {told['raised']}")
    return told["value"]


def _ask(request: Mapping[str, Any]) -> None:
    server = _server()
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    server.stdout.readline()


@cache
def _server() -> subprocess.Popen[str]:
    """The server, started when it is first needed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONHASHSEED"] = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"  # sets in another order
    # Hashes of text are other ones than here, so that what depends on the order of a set comes out otherwise.
    environment["PYTHONHASHSEED"] = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    server = subprocess.Popen(
        [sys.executable, "-m", "ftcore.testing.fresh"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin
    assert server.stdout
    server.stdin.close()
    server.wait()
    server.stdout.close()


def serve() -> None:
    """Answer requests, one a line, each in a fork of its own, until there are no more."""
    import signal

    import torch
    import transformers

    import ftcore.merging  # noqa: F401
    from ftcore.testing.stage import tiny_checkpoint

    torch.set_num_threads(1)
    transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama"))  # what is computed once is computed
    reports, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    for line in sys.stdin:
        request = json.loads(line)
        for library in request["libraries"]:
            with suppress(ImportError):
                importlib.import_module(library)
        gc.freeze()  # what is here already is no garbage of the forks, whose collections need not look at it
        pid = os.fork()
        if not pid:
            signal.alarm(int(request["seconds"]))
            _answer(request)
            os._exit(0)
        os.waitpid(pid, 0)
        reports.write("done\n")
        reports.flush()


def _answer(request: Mapping[str, Any]) -> None:
    sys.path[:] = request["path"]
    module, _, name = request["function"].partition(":")
    try:
        told = {"value": getattr(importlib.import_module(module), name)(**request["given"])}
    except BaseException as fault:
        last = traceback.extract_tb(fault.__traceback__)[-1]
        told = {"raised": f"{type(fault).__name__}: {fault} ({Path(last.filename).name}:{last.lineno})"}
    file = Path(request["answer"])
    staged = file.with_suffix(".tmp")
    staged.write_text(json.dumps(told), encoding="utf-8")
    staged.rename(file)


if __name__ == "__main__":
    serve()
