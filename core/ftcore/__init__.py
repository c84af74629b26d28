"""ftcore fine-tunes transformer models through plugins: one path, and what has a name is a package of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.adapters import OnModules
    from ftcore.api import attach, compare, convert, inject, load, merge, plan, plugins, run
    from ftcore.declaring import options
    from ftcore.errors import FtcoreError, Interrupted, Refused
    from ftcore.hooks import Adapter, Batch, Data, Example, Loaded, Piece, Probe, Run, Scoring, hookimpl

_HOME = {
    **dict.fromkeys(
        ("attach", "compare", "convert", "inject", "load", "merge", "plan", "plugins", "run"), "ftcore.api"
    ),
    **dict.fromkeys(("FtcoreError", "Interrupted", "Refused"), "ftcore.errors"),
    **dict.fromkeys(
        ("Adapter", "Batch", "Data", "Example", "Loaded", "Piece", "Probe", "Run", "Scoring", "hookimpl"),
        "ftcore.hooks",
    ),
    "OnModules": "ftcore.adapters",
    "options": "ftcore.declaring",
}

__all__ = [
    "Adapter",
    "Batch",
    "Data",
    "Example",
    "FtcoreError",
    "Interrupted",
    "Loaded",
    "OnModules",
    "Piece",
    "Probe",
    "Refused",
    "Run",
    "Scoring",
    "attach",
    "compare",
    "convert",
    "hookimpl",
    "inject",
    "load",
    "merge",
    "options",
    "plan",
    "plugins",
    "run",
]


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used, so that importing ftcore costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'ftcore' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
