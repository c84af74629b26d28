"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from ftcore.progress import Live, Pace, Plain, Screen, Silent, StepReport, memory_in_use, screen_for

MIB = 2**20


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _report(step: int, steps: int = 200, seconds: float = 0.5) -> StepReport:
    return StepReport(step, steps, loss=2.34118, lr=1.9e-4, tokens=915, seconds=seconds)


def _plain() -> tuple[Plain, io.StringIO, _Clock]:
    stream, clock = io.StringIO(), _Clock()
    return Plain(stream, clock, lambda: 612 * MIB), stream, clock


def _take(screen: Screen, clock: _Clock, report: StepReport, logged: bool = True) -> None:
    clock.now += report.seconds
    screen.stepped(report, logged)


def _script(screen: Screen) -> None:
    screen.say("a notice with [brackets], [/closing] ones and :smile:")
    screen.started(0, 20)
    for step in range(1, 21):
        screen.stepped(_report(step, 20), logged=step % 10 == 0)
    screen.evaluated(20, {"eval_loss": 1.81234, "eval_token_accuracy": 0.5})
    screen.saved(20)
    screen.finished()


def test_a_scripted_run_gives_these_plain_lines() -> None:
    screen, stream, clock = _plain()
    screen.say("no --data: using the built-in sample")
    screen.started(0, 200)
    for step in range(1, 21):
        _take(screen, clock, _report(step), logged=step % 10 == 0)
    screen.evaluated(20, {"eval_loss": 1.81234, "eval_token_accuracy": 0.5})
    screen.saved(20)
    screen.finished()
    assert stream.getvalue().splitlines() == [
        "no --data: using the built-in sample",
        "step  10/200  loss 2.3412  lr 1.9e-04  1,830 tokens/s  1:35 left  612 MiB",
        "step  20/200  loss 2.3412  lr 1.9e-04  1,830 tokens/s  1:30 left  612 MiB",
        "step  20/200  evaluation: loss 1.8123, token accuracy 0.5000",
        "step  20/200  saved",
    ]


def test_steps_done_before_a_resume_count_for_no_speed() -> None:
    screen, stream, clock = _plain()
    screen.started(190, 200)
    _take(screen, clock, _report(191, seconds=2.0))
    assert "458 tokens/s  0:18 left" in stream.getvalue()


def test_speed_follows_the_latest_steps() -> None:
    pace = Pace(since=0.0)
    for _ in range(100):
        pace = pace.after(_report(1, seconds=10.0))
    for _ in range(50):
        pace = pace.after(_report(1, seconds=0.5))
    assert pace.tokens_per_second() == pytest.approx(1830)


def test_time_between_steps_counts_for_the_time_left_but_not_for_the_speed() -> None:
    screen, stream, clock = _plain()
    screen.started(0, 10)
    for step in range(1, 6):
        clock.now += 1.5  # an evaluation
        _take(screen, clock, _report(step, 10), logged=step == 5)
    assert "1,830 tokens/s  0:10 left" in stream.getvalue()


def test_a_step_that_took_no_time_is_no_fault() -> None:
    screen, stream, clock = _plain()
    screen.started(0, 1)
    _take(screen, clock, _report(1, 1, seconds=0.0))
    assert "0:00 left" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "shown"), [(0.5, "1:30 left"), (59.997, "2:59:59 left"), (1.0, "3:00 left")])
def test_time_left_reads_as_a_clock(seconds: float, shown: str) -> None:
    screen, stream, clock = _plain()
    screen.started(19, 200)
    _take(screen, clock, _report(20, seconds=seconds))
    assert shown in stream.getvalue()


def test_large_memory_is_shown_in_gibibytes() -> None:
    stream = io.StringIO()
    screen = Plain(stream, _Clock(), lambda: 12 * 1024 * MIB + 400 * MIB)
    screen.stepped(_report(1), logged=True)
    assert stream.getvalue().endswith("12.4 GiB\n")


def test_memory_in_use_grows_with_what_is_held() -> None:
    before = memory_in_use()
    held = bytearray(b"x") * (64 * MIB)
    assert memory_in_use() - before > 32 * MIB
    assert MIB < before < 2**40
    assert len(held) == 64 * MIB


@pytest.mark.parametrize("initialized", [True, False])
def test_memory_is_the_peak_on_cuda_once_that_is_in_use(monkeypatch: pytest.MonkeyPatch, initialized: bool) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: initialized, max_memory_allocated=lambda: 7)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert (memory_in_use() == 7) is initialized


def test_silent_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _script(Silent())
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(screen_for(io.StringIO()), Plain)


def test_a_terminal_gets_the_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert isinstance(screen_for(_Terminal()), Live)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", ""), ("NO_COLOR", "1")])
def test_a_terminal_that_wants_no_drawing_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, value)
    assert isinstance(screen_for(_Terminal()), Plain)


@pytest.mark.parametrize("columns", ["200", "80", "60", "20"])
def test_live_shows_the_run_on_any_width(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", columns)
    stream = _Terminal()
    _script(Live(stream, _Clock(), lambda: 612 * MIB))
    assert "step 20/20" in stream.getvalue()


def test_live_keeps_notices_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = _Terminal()
    _script(Live(stream))
    assert "a notice with [brackets], [/closing] ones and :smile:" in stream.getvalue()


def _fail_at_step_one(screen: Screen) -> None:
    try:
        screen.started(0, 20)
        screen.stepped(_report(1, 20), logged=True)
        raise RuntimeError("boom")
    finally:
        screen.finished()


def test_live_gives_the_terminal_back_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream, out, err = _Terminal(), sys.stdout, sys.stderr
    screen = Live(stream)
    with pytest.raises(RuntimeError, match="boom"):
        _fail_at_step_one(screen)
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l") >= 0
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.parametrize("make", [Plain, Live])
def test_finished_twice_or_unstarted_adds_nothing(make: type[Plain] | type[Live]) -> None:
    unstarted, ended = _Terminal(), _Terminal()
    make(unstarted).finished()
    screen = make(ended)
    _script(screen)
    before = ended.getvalue()
    screen.finished()
    assert (unstarted.getvalue(), ended.getvalue()) == ("", before)


def test_two_runs_in_two_threads_keep_to_their_own_screens() -> None:
    streams = [_Terminal() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_script, [Live(stream) for stream in streams]))
    assert all(stream.getvalue().count("evaluation: loss 1.8123") == 1 for stream in streams)


def test_importing_loads_neither_a_framework_nor_rich() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'rich'}"
    program = f"import sys, ftcore.progress, ftcore.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
