"""A method whose module imports torch for everybody who looks at it."""

from __future__ import annotations

import torch
from ftcore import options

from broken_plugins.anyone import Norms


@options
class HeavyImport(Norms):
    """Norms train."""

    module_of_torch = torch.nn
