"""Installed plugins on the conformance kit: what `ftcore check` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcore.declaring import build
from ftcore.discovery import Offer, declared_datum, find, kind_of, offers
from ftcore.testing import examine, report
from ftcore.testing.kit import Result


def checked(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, object]],
    checkpoint: str | None,
    heard: Callable[[str], object] | None,
) -> list[dict[str, Any]]:
    """The reports of the named plugins, or of all that are installed; `heard` gets each line as it comes."""
    chosen = [find(kind_of(name), name) for name in names] if names else list(offers())
    return [_report(offer, options.get(offer.name, {}), checkpoint, heard) for offer in chosen]


def _report(
    offer: Offer, options: Mapping[str, object], checkpoint: str | None, heard: Callable[[str], object] | None
) -> dict[str, Any]:
    say = heard or (lambda line: None)
    say(offer.label)
    cls = offer.load_with_care()
    plugin = build(cls, {**declared_datum(cls, "tried_with"), **options}, offer.label)
    results: list[Result] = []
    for result in examine(offer.kind, plugin, checkpoint=Path(checkpoint) if checkpoint else None):
        results.append(result)
        say(report.line(result))
    say(f"{report.closing(results)}\n")
    return report.plain(offer, results)
