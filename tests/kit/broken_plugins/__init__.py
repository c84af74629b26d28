"""Plugins that are broken on purpose, each in one way, and the check that must say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ftcore.discovery import Kind
from ftcore.seeds import permutation
from ftcore.settings import Settings
from ftcore.testing import CHECKS, examine
from ftcore.testing.kit import session

T = TypeVar("T")


@dataclass(frozen=True)
class Broken:
    """A plugin with one defect, and the only check that may fail on it."""

    defect: str
    plugin: object
    fails: str
    excused: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None


def one_of_each(broken: Sequence[Broken]) -> list[Broken]:
    """The first defect for each check: what the quick tests try."""
    return list({one.fails: one for one in reversed(broken)}.values())[::-1]


def caught(kind: Kind, broken: Broken) -> str:
    """What the check that names the defect says, when only it and what it builds on are tried; empty if it passes."""
    tried = session(kind, broken.plugin, CHECKS[kind], broken.excused, broken.checkpoint).result(broken.fails)
    return tried.reason if tried.outcome == "failed" else ""


def failed(kind: Kind, broken: Broken) -> dict[str, str]:
    """Every check that fails on the plugin, with what it says."""
    results = examine(kind, broken.plugin, broken.excused, checkpoint=broken.checkpoint)
    return {result.check.name: result.reason for result in results if result.outcome == "failed"}


def held_out(training: Sequence[T], named: Sequence[T], settings: Settings) -> tuple[list[T], list[T]]:
    """Training and held-out rows, for tasks that read by themselves: those named, or a share drawn by the seed."""
    count = round(settings.eval_share * len(training))
    if named or not count:
        return list(training), list(named)
    drawn = set(permutation(len(training), settings.seed, "held out")[:count])
    kept = [row for i, row in enumerate(training) if i not in drawn]
    return kept, [row for i, row in enumerate(training) if i in drawn]
