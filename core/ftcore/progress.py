"""What a person sees while a run goes on: nothing, plain lines in a log, or a live bar on a terminal."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

WINDOW = 50  # the latest steps that the speed is judged by
NARROW = 72  # columns below which there is no room for the bar itself
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step: `step` counts from 1 and `tokens` and `seconds` are of this step alone."""

    step: int
    steps: int
    loss: float
    lr: float
    tokens: int
    seconds: float


class Screen(Protocol):
    """Where a run tells what it is doing; `finished` belongs in a `finally` and may be called twice."""

    def say(self, line: str) -> None:
        """Show one line of notice."""

    def started(self, done: int, steps: int) -> None:
        """Training begins after `done` of `steps` steps (more than none when a run resumes)."""

    def stepped(self, report: StepReport, logged: bool) -> None:
        """A step is done; `logged` says that it is one of those that go to metrics.jsonl."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after `step` gave these metrics."""

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is safely on disk."""

    def finished(self) -> None:
        """Give the terminal back, however the run ended."""


def screen_for(stream: TextIO) -> Screen:
    """The live bar where the stream is a terminal that can draw one, plain lines anywhere else."""
    return Live(stream) if _can_draw(stream) else Plain(stream)


def _can_draw(stream: TextIO) -> bool:
    capable = os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return capable and not os.environ.get("NO_COLOR") and stream.isatty()


@dataclass(frozen=True)
class Pace:
    """How fast this process is going, without the steps that an earlier one did."""

    since: float
    steps: int = 0
    busy: float = 0.0
    latest: tuple[tuple[int, float], ...] = ()

    def after(self, report: StepReport) -> Pace:
        """The pace with one more step in it."""
        latest = (*self.latest, (report.tokens, report.seconds))[-WINDOW:]
        return replace(self, steps=self.steps + 1, busy=self.busy + report.seconds, latest=latest)

    def tokens_per_second(self) -> float:
        """The speed of the latest steps, evaluations and saving left out."""
        seconds = sum(seconds for _, seconds in self.latest)
        return sum(tokens for tokens, _ in self.latest) / max(seconds, 1e-9)

    def seconds_left(self, steps: int, now: float) -> float:
        """What `steps` more will take: the latest steps' time and each one's share of all that is no step."""
        if not self.latest:
            return 0.0
        step = sum(seconds for _, seconds in self.latest) / len(self.latest)
        between = max(now - self.since - self.busy, 0.0) / self.steps
        return steps * (step + between)


def memory_in_use() -> int:
    """Bytes: the peak allocated on CUDA once that is in use, else what this process holds resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return _resident()


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Silent:
    """The screen of a run that a program started: nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is shown."""

    def started(self, done: int, steps: int) -> None:
        """Nothing is shown."""

    def stepped(self, report: StepReport, logged: bool) -> None:
        """Nothing is shown."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing is shown."""

    def saved(self, step: int) -> None:
        """Nothing is shown."""

    def finished(self) -> None:
        """Nothing is to be given back."""


class Plain:
    """One line for each logged step, evaluation and checkpoint: for pipes, log files and CI."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = memory_in_use,
    ) -> None:
        self._stream, self._clock, self._memory = stream, clock, memory
        self._steps = 0
        self._pace = Pace(clock())

    def say(self, line: str) -> None:
        """The line is written and flushed."""
        click.echo(line, file=self._stream)

    def started(self, done: int, steps: int) -> None:
        """Speed counts from here."""
        self._steps = steps
        self._pace = Pace(self._clock())

    def stepped(self, report: StepReport, logged: bool) -> None:
        """A logged step is written as one line; every step counts for the speed."""
        self._pace = self._pace.after(report)
        if not logged:
            return
        left = self._pace.seconds_left(report.steps - report.step, self._clock())
        numbers = (
            counted(report.step, report.steps),
            f"loss {report.loss:.4f}",
            f"lr {report.lr:.1e}",
            f"{self._pace.tokens_per_second():,.0f} tokens/s",
            f"{duration(left)} left",
            size(self._memory()),
        )
        self.say("  ".join(numbers))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics are written as one line."""
        self.say(f"{counted(step, self._steps)}  {evaluation(metrics)}")

    def saved(self, step: int) -> None:
        """The checkpoint is written as one line."""
        self.say(f"{counted(step, self._steps)}  saved")

    def finished(self) -> None:
        """Every line is flushed already."""


class Live:
    """A bar at the foot of a terminal, with notices, evaluations and checkpoints scrolling by above it."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = memory_in_use,
    ) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._clock, self._memory = clock, memory
        self._steps = 0
        self._pace = Pace(clock())
        self._bar: tuple[Progress, TaskID] | None = None

    def say(self, line: str) -> None:
        """The line stands above the bar."""
        self._console.print(line, soft_wrap=True)

    def started(self, done: int, steps: int) -> None:
        """The bar is on the terminal, filled as far as the run has come, and speed counts from here."""
        self.finished()
        self._steps = steps
        self._pace = Pace(self._clock())
        progress = _progress(self._console)
        task = progress.add_task("", total=steps, completed=done, step=counted(done, steps), numbers="")
        self._bar = (progress, task)
        progress.start()

    def stepped(self, report: StepReport, logged: bool) -> None:
        """The bar shows this step, logged or not."""
        self._pace = self._pace.after(report)
        if self._bar is None:
            return
        progress, task = self._bar
        step = counted(report.step, report.steps)
        progress.update(task, completed=report.step, step=step, numbers=self._numbers(report))

    def _numbers(self, report: StepReport) -> str:
        left = self._pace.seconds_left(report.steps - report.step, self._clock())
        speed = f"{self._pace.tokens_per_second():,.0f} tokens/s"
        return f"loss {report.loss:.4f}  {speed}  {duration(left)} left  {size(self._memory())}"

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics stand above the bar."""
        self.say(f"{counted(step, self._steps)}  {evaluation(metrics)}")

    def saved(self, step: int) -> None:
        """The checkpoint stands above the bar."""
        self._console.print(f"{counted(step, self._steps)}  saved", style="dim")

    def finished(self) -> None:
        """The bar stays where it stopped, the cursor is back and nothing is redirected any more."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar[0].stop()


def _progress(console: Console) -> Progress:
    from rich.progress import Progress

    # What is piped away must stay piped: only what lands on the terminal anyway goes above the bar.
    return Progress(
        *_columns(console.width),
        console=console,
        expand=True,
        refresh_per_second=5,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    from rich.progress import BarColumn, TextColumn
    from rich.table import Column

    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False, table_column=Column(no_wrap=True))

    if width < NARROW:
        return (text("{task.fields[step]}  {task.fields[numbers]}"),)
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4, max_width=40))
    return text("{task.fields[step]}"), bar, text("{task.fields[numbers]}")


def counted(step: int, steps: int) -> str:
    """`step  20/200`, as wide for every step of a run."""
    return f"step {step:>{len(str(steps))}}/{steps}"


def evaluation(metrics: Mapping[str, float]) -> str:
    """`evaluation: loss 1.8123, token accuracy 0.5312`."""
    named = (f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
    return "evaluation: " + ", ".join(named)


def duration(seconds: float) -> str:
    """`0:02`, `12:40` or `3:05:10`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(count: int) -> str:
    """`612 MiB` or `12.4 GiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
