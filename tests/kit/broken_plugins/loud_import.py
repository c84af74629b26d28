"""A method whose module greets."""

from __future__ import annotations

from ftcore import options

from broken_plugins.anyone import Norms

print("Welcome to ftcore-norms!")  # noqa: T201


@options
class LoudImport(Norms):
    """Norms train."""
