"""Plugins that are broken on purpose, each in one way, and the check that must say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Broken:
    """A plugin with one defect, and the only check that may fail on it."""

    defect: str
    plugin: object
    fails: str
    excused: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None
