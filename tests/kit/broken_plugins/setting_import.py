"""A method whose module sets an environment variable."""

from __future__ import annotations

import os

from ftcore import options

from broken_plugins.anyone import Norms

os.environ["TOKENIZERS_PARALLELISM"] = "maybe"


@options
class SettingImport(Norms):
    """Norms train."""
