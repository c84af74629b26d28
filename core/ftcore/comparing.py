"""The same job by several methods, each in a process of its own, and what came of each beside the others."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ftcore.checkpoints import publish
from ftcore.config import Recipe, resolve
from ftcore.directory import TENSOR_FILE, as_json
from ftcore.errors import FtcoreError, Refused
from ftcore.pipeline import run
from ftcore.planning import plan
from ftcore.progress import Plain, Silent, StepReport, memory_in_use, size
from ftcore.report import markdown_table, number, values_axis

CHILD = "from ftcore.cli import quieten; quieten(); from ftcore.comparing import child; child()"


@dataclass(frozen=True)
class Entry:
    """What one method came to; `refused` says why it did not run, and is empty when it did.

    `before` and `after` are the task's metrics on the held-out rows. `peak_memory_bytes` is what CUDA held at most, or
    on a CPU what the process took beyond what it held before the model was loaded.
    """

    method: str
    refused: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    trainable_parameters: int = 0
    total_parameters: int = 0
    peak_memory_bytes: int = 0
    tokens_per_second: float = 0.0
    adapter_bytes: int = 0

    @property
    def loss(self) -> float:
        """The held-out loss after training, infinite without one."""
        return self.after.get("loss", math.inf)


def compare(
    methods: Sequence[str], keys: Mapping[str, Any], output: Path, say: Callable[[str], None]
) -> tuple[Entry, ...]:
    """The entry of each of `methods` in the job that `keys` describe, the best first.

    Each run is in a directory of its own under `output`, beside comparison.md, comparison.json and comparison.svg.
    Refused when the job names no held-out rows, or when no method could do it.
    """
    if len(set(methods)) < len(methods) or not methods:
        raise Refused(f"the methods are {', '.join(methods) or 'none'}; name each once, as in --methods a,b,a+b")
    entries = []
    for method in methods:
        say(f"{method} …")
        entries.append(_in_a_process({**_own(keys, method, methods), "method": method, "output": str(output / method)}))
    done = tuple(sorted(entries, key=lambda entry: entry.loss))
    if all(entry.refused for entry in done):
        raise Refused(f"no method could do this job: {done[0].method}: {done[0].refused}")
    publish(output / "comparison.json", as_json([asdict(entry) for entry in done]))
    publish(output / "comparison.md", (table(done) + "\n").encode())
    publish(output / "comparison.svg", picture(done).encode())
    return done


def _own(keys: Mapping[str, Any], method: str, methods: Sequence[str]) -> dict[str, Any]:
    """The keys without the options of methods that do not take part."""
    others = {part for one in methods for part in one.split("+")} - set(method.split("+"))
    return {key: value for key, value in keys.items() if key not in others}


def _in_a_process(keys: Mapping[str, Any]) -> Entry:
    """The entry of one method, so that its memory and speed are its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(keys), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return Entry(str(keys["method"]), refused=f"the process ended with {done.returncode}; see above")
    return Entry(**json.loads(done.stdout))


def child() -> None:
    """Do the job that standard input describes, and print its entry."""
    answer, sys.stdout = sys.stdout, sys.stderr
    keys = json.load(sys.stdin)
    try:
        entry = measured(keys)
    except FtcoreError as fault:
        entry = Entry(keys["method"], refused=str(fault))
    answer.write(json.dumps(asdict(entry)))


def measured(keys: Mapping[str, Any]) -> Entry:
    """The job done and measured; Refused when it cannot be done or nothing is held out."""
    planned, recipe = plan(keys, Silent()), resolve(keys)
    if planned.refused:
        raise Refused(planned.refused)
    if not planned.eval_rows:
        raise Refused("nothing is held out to compare by; name rows with --eval-data, or --eval-share")
    held, watch = memory_in_use(), Watch()
    outcome = run(recipe, watch)
    return Entry(
        method=keys["method"],
        before=dict(outcome.before),
        after=dict(outcome.metrics),
        trainable_parameters=planned.trainable_parameters,
        total_parameters=planned.total_parameters,
        peak_memory_bytes=_peak(held),
        tokens_per_second=watch.tokens / max(watch.seconds, 1e-9),
        adapter_bytes=_adapter_bytes(recipe),
    )


def _peak(held: int) -> int:
    """Bytes on CUDA at most, or in main memory beyond those that were held before."""
    import torch

    if torch.cuda.is_initialized():
        return memory_in_use()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(0, (most if sys.platform == "darwin" else most * 1024) - held)


def _adapter_bytes(recipe: Recipe) -> int:
    return (recipe.output / TENSOR_FILE).stat().st_size


class Watch(Plain):
    """Plain lines on standard error, and how many tokens the steps had and how long they took; the first warms up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.tokens, self.seconds = 0, 0.0

    def stepped(self, report: StepReport, logged: bool) -> None:
        """The step is counted."""
        super().stepped(report, logged)
        if report.step > 1:
            self.tokens, self.seconds = self.tokens + report.tokens, self.seconds + report.seconds


def table(entries: Sequence[Entry]) -> str:
    """The entries as a markdown table, with the reasons of those that did not run below it."""
    columns = (
        "method", "held-out loss", "before", "trainable", "of all", "adapter on disk", "peak memory", "tokens/s",
    )  # fmt: skip
    rows = [_cells(entry) for entry in entries if not entry.refused]
    left = [f"- {entry.method}: {entry.refused}" for entry in entries if entry.refused]
    return "\n".join([markdown_table(columns, rows), *(["", "Did not run:", "", *left] if left else [])])


def _cells(entry: Entry) -> tuple[str, ...]:
    share = 100 * entry.trainable_parameters / max(1, entry.total_parameters)
    return (
        entry.method,
        number(entry.loss),
        number(entry.before.get("loss", math.nan)),
        f"{entry.trainable_parameters:,}",
        f"{share:.3f} %",
        f"{entry.adapter_bytes / 1024:,.0f} KiB",
        size(entry.peak_memory_bytes),
        f"{entry.tokens_per_second:,.0f}",
    )


LEFT, RIGHT, ROW, TOP = 150.0, 70.0, 22.0, 46.0
WIDTH = 760.0
TEXT = "font-family='sans-serif' font-size='12' fill='#444'"
GRID, BEFORE, BAR = "stroke='#ddd'", "stroke='#c44'", "stroke='#8ab' stroke-width='2'"


def picture(entries: Sequence[Entry]) -> str:
    """An SVG with one line a method: from the held-out loss before training to that after it, the best on top."""
    done = [entry for entry in entries if not entry.refused]
    axis = values_axis([loss for entry in done for loss in (entry.loss, entry.before["loss"])], 6)
    height = TOP + ROW * len(done) + 20

    def at(loss: float) -> str:
        return f"{LEFT + axis.share(loss) * (WIDTH - LEFT - RIGHT):.1f}"

    def drawn() -> Iterator[str]:
        yield f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH:.0f} {height:.0f}' {TEXT}>"
        yield f"<text x='{LEFT}' y='16'>held-out loss; the red line is before training</text>"
        for tick in axis.ticks():
            yield f"<line {GRID} x1='{at(tick)}' x2='{at(tick)}' y1='{TOP - 8}' y2='{height - 16:.0f}'/>"
            yield f"<text text-anchor='middle' x='{at(tick)}' y='{TOP - 14}'>{axis.label(tick)}</text>"
        for row, entry in enumerate(done):
            y, start, end = TOP + ROW * (row + 0.5), at(entry.before["loss"]), at(entry.loss)
            yield f"<line {BEFORE} x1='{start}' x2='{start}' y1='{y - 9:.1f}' y2='{y + 9:.1f}'/>"
            yield f"<line {BAR} x1='{start}' x2='{end}' y1='{y:.1f}' y2='{y:.1f}'/>"
            yield f"<circle fill='#246' cx='{end}' cy='{y:.1f}' r='4'/>"
            yield f"<text text-anchor='end' x='{LEFT - 12}' y='{y + 4:.1f}'>{escape(entry.method)}</text>"
            yield f"<text x='{WIDTH - RIGHT + 10}' y='{y + 4:.1f}'>{number(entry.loss)}</text>"
        yield "</svg>\n"

    return "\n".join(drawn())
