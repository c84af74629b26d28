"""A method whose module configures logging."""

from __future__ import annotations

import logging

from ftcore import options

from broken_plugins.anyone import Norms

logging.basicConfig(level=logging.DEBUG)


@options
class LoggingImport(Norms):
    """Norms train."""
