"""What a person, or a program, reads when a plugin was checked."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ftcore.discovery import Offer
from ftcore.testing.kit import Outcome, Result

MARKS: dict[Outcome, str] = {"passed": "ok", "failed": "FAILED", "excused": "excused", "not reached": "-"}


def line(result: Result) -> str:
    """One result: the promise when it is kept, else also the check's name and the reason."""
    mark = f"  {MARKS[result.outcome]:<8}"
    if result.outcome == "passed":
        return f"{mark}{result.check.promise}"
    said = textwrap.fill(result.reason, 108, initial_indent=" " * 10, subsequent_indent=" " * 10)
    return f"{mark}{result.check.promise} [{result.check.name}]\n{said}"


def closing(results: Sequence[Result]) -> str:
    """How many promises are kept and broken, and what it took."""
    kept, broken, excused, unreached = (count(results, outcome) for outcome in MARKS)
    parts = [f"{kept} kept", f"{broken} broken"]
    parts += [f"{excused} excused"] if excused else []
    parts += [f"{unreached} not reached"] if unreached else []
    return f"{', '.join(parts)}; {sum(result.seconds for result in results):.1f} s"


def count(results: Sequence[Result], outcome: Outcome) -> int:
    """How many results have this outcome."""
    return sum(result.outcome == outcome for result in results)


def plain(offer: Offer, results: Sequence[Result]) -> dict[str, Any]:
    """The results of one plugin as plain JSON values."""
    return {
        "kind": offer.kind,
        "name": offer.name,
        "distribution": offer.distribution,
        "version": offer.version,
        **{outcome.replace(" ", "_"): count(results, outcome) for outcome in MARKS},
        "checks": [
            {
                "name": result.check.name,
                "promise": result.check.promise,
                "outcome": result.outcome,
                "reason": result.reason,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }
