"""A method whose module seeds Python's generator."""

from __future__ import annotations

import random

from ftcore import options

from broken_plugins.anyone import Norms

random.seed(0)


@options
class SeedingImport(Norms):
    """Norms train."""
