"""The last two files of a finished run."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import yaml
from ftcore.report import Finished, flat, model_card, report_html, series, smoothed, thinned, values_axis

HOSTILE = "<script>alert('x')</script> & \"q\" | `tick` {braces} $x$ [a](javascript:b) \n---\n# head\n```\n</pre>"
NUMBER = r"-?\d+(?:\.\d+)?"
VOID = {"meta", "br"}


def _finished(metrics: list[dict[str, float]] | None = None) -> Finished:
    return Finished(
        title="lora · causal · qwen",
        command="ftcore run --method lora --task causal --model qwen",
        config={"method": "lora", "lora": {"r": 16, "parts": ["attention"]}, "data": None},
        plugins=[{"kind": "method", "name": "lora", "distribution": "ftcore-lora", "version": "0.1.0"}],
        facts={"trainable parameters": "12,288 of 1,052,672 (1.17 %)"},
        metrics=_run(100) if metrics is None else metrics,
        samples=[{"question": "Who?", "before": "the the", "after": "Nobody."}],
        base="Qwen/Qwen2.5-0.5B",
        library="peft",
    )


def _run(steps: int) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 1 + 2 / step, "lr": 2e-4 * (1 - step / steps)})
        if step % 25 == 0:
            lines.append({"step": step, "eval_loss": 1.5 + 2 / step, "eval_token_accuracy": 0.5})
    return lines


def _hostile() -> Finished:
    return Finished(
        title=HOSTILE,
        command=HOSTILE,
        config={HOSTILE: {HOSTILE: [HOSTILE]}, "plain": HOSTILE},
        plugins=[dict.fromkeys(("kind", "name", "distribution", "version"), HOSTILE)],
        facts={HOSTILE: HOSTILE},
        metrics=[{"step": 1, "loss": 1.0, "eval_" + HOSTILE: 2.0}],
        samples=[dict.fromkeys(("question", "before", "after"), HOSTILE)],
        base=HOSTILE,
        library=HOSTILE,
    )


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID and f"<{tag}" in (self.get_starttag_text() or ""):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(page: str) -> _Balanced:
    parser = _Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def _pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def _places(picture: ElementTree.Element) -> list[tuple[float, float]]:
    found = []
    for mark in picture.iter():
        if mark.tag == "polyline":
            found += [tuple(map(float, place.split(","))) for place in mark.attrib["points"].split()]
        for x, y in (("cx", "cy"), ("x1", "y1"), ("x2", "y2"), ("x", "y")):
            if x in mark.attrib:
                found.append((float(mark.attrib[x]), float(mark.attrib[y])))
    return [(x, y) for x, y in found]


def _front_matter(card: str) -> dict[str, object]:
    _, matter, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    fields = yaml.safe_load(matter)
    assert isinstance(fields, dict)
    return fields


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_asks_for_nothing_else() -> None:
    page = report_html(_finished())
    assert "svg" in _parsed(page).tags
    assert not {"script", "link", "img", "iframe"} & _parsed(page).tags
    assert not re.search(r"https?://|url\(|@import|\son\w+=|src=", page)


def test_the_page_shows_hostile_text_as_text() -> None:
    page = _parsed(report_html(_hostile()))
    assert page.tags.isdisjoint({"script", "a"})
    assert page.text.count("<script>alert('x')</script>") >= 12


def test_the_page_shows_every_part_of_the_run() -> None:
    text = _parsed(report_html(_finished())).text
    for part in ("12,288 of 1,052,672", "ftcore run --method lora", "lora.r", "ftcore-lora", "Nobody.", "Qwen/"):
        assert part in text


@pytest.mark.parametrize("steps", [0, 1, 2, 24, 25, 26, 600, 601, 5000])
def test_every_place_lies_inside_its_picture(steps: int) -> None:
    for picture in _pictures(report_html(_finished(_run(steps)))):
        left, top, width, height = map(float, picture.attrib["viewBox"].split())
        assert all(left <= x <= left + width and top <= y <= top + height for x, y in _places(picture))


@pytest.mark.parametrize("seed", range(40))
def test_any_numbers_give_pictures_of_finite_places(seed: int) -> None:
    draw = random.Random(seed)
    odd = [0.0, -0.0, 5e-324, 1e-30, 1e30, -1e30, 1e308, math.inf, -math.inf, math.nan, 1.0, 1.0 + 1e-15]
    lines = [
        {"step": float(draw.choice([0, 1, 7, step])), name: draw.choice([*odd, draw.gauss(0, 1)])}
        for step in range(draw.randint(1, 40))
        for name in draw.sample(["loss", "eval_loss", "lr"], 2)
    ]
    page = report_html(_finished(lines))
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
    for picture in _pictures(page):
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        assert all(0 <= x <= width and 0 <= y <= height for x, y in _places(picture))


def test_one_logged_step_is_a_visible_dot() -> None:
    page = report_html(_finished([{"step": 1, "loss": 2.3412, "lr": 1e-5}]))
    assert [len(list(picture.iter("circle"))) for picture in _pictures(page)] == [1, 1]
    assert "2.3412" in page


def test_a_run_without_evaluation_has_no_word_of_it() -> None:
    page = report_html(_finished([{"step": step, "loss": 1.0 / step} for step in range(1, 9)]))
    assert "valuation" not in _parsed(page).text


def test_a_run_without_metrics_says_so() -> None:
    assert "No loss was logged." in report_html(_finished([]))


def test_a_long_run_stays_a_small_page() -> None:
    page = report_html(_finished(_run(100_000)))
    assert len(page) < 250_000
    lines = [line for picture in _pictures(page) for line in picture.iter("polyline")]
    assert len(lines) == 3
    assert all(len(line.attrib["points"].split()) <= 600 for line in lines)


def test_a_tick_label_overlaps_no_other() -> None:
    for steps in (1, 3, 11, 99, 12_345, 1_999_999):
        page = report_html(_finished([{"step": steps, "loss": 1.0}, {"step": 1, "loss": 9e5}]))
        for picture in _pictures(page):
            ticks = [text for text in picture.iter("text") if text.text != "step" and "class" not in text.attrib]
            ends = [(float(t.attrib["x"]), len(t.text or "") * 3.5) for t in ticks]
            assert all(x + half < y - other for (x, half), (y, other) in pairwise(ends))


# --- numbers ----------------------------------------------------------------------------------------------


def test_thinning_keeps_ends_order_and_extremes() -> None:
    draw = random.Random(1)
    points = [(float(step), draw.random()) for step in range(100_000)]
    points[31_415] = (31_415.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 600
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert list(kept) == sorted(kept)
    assert (31_415.0, 99.0) in kept
    assert set(kept) <= set(points)


@pytest.mark.parametrize("count", [0, 1, 2, 599, 600])
def test_short_curves_are_not_thinned(count: int) -> None:
    points = [(float(step), 1.0) for step in range(count)]
    assert list(thinned(points)) == points


def test_smoothing_leaves_a_straight_line_and_a_short_curve_alone() -> None:
    short = [(float(step), float(step % 3)) for step in range(24)]
    assert smoothed(short) == short
    level = [(float(step), 2.5) for step in range(5000)]
    assert {y for _, y in smoothed(level)} == {2.5}
    assert smoothed([]) == []


def test_a_smoothed_curve_begins_where_the_run_began() -> None:
    points = [(float(step), 10.0 / (1 + step)) for step in range(500)]
    assert smoothed(points)[0] == points[0]


def test_one_exploded_step_does_not_drown_the_steps_after_it() -> None:
    points = [(float(step), 1e20 if step == 5 else 2.0) for step in range(200)]
    assert smoothed(points)[-1][1] == 2.0


def test_a_step_that_was_done_twice_counts_once() -> None:
    lines = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    assert series(lines, "loss") == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.87, 3.58], ["0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]),
        ([0.0, 2e-4], ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        ([2.3412], ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"]),
        ([0.0], ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-1.0, 1.0], ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        ([0, 41_000], ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values: list[float], labels: list[str]) -> None:
    axis = values_axis(values, 6)
    assert [axis.label(tick) for tick in axis.ticks()] == labels
    assert axis.low <= min(values) <= max(values) <= axis.high


def test_nested_options_become_dotted_names() -> None:
    assert list(flat(_finished().config)) == [
        ("method", "lora"),
        ("lora.r", "16"),
        ("lora.parts", '["attention"]'),
        ("data", "null"),
    ]


# --- the card ---------------------------------------------------------------------------------------------


def test_the_card_opens_with_what_the_hub_reads() -> None:
    assert _front_matter(model_card(_finished())) == {
        "library_name": "peft",
        "base_model": "Qwen/Qwen2.5-0.5B",
        "tags": ["ftcore", "lora"],
    }


@pytest.mark.parametrize("base", ["/home/me/base", "./base", "a/b/c", "~/base", "", HOSTILE])
def test_a_base_that_is_no_repository_stays_out_of_the_front_matter(base: str) -> None:
    assert "base_model" not in _front_matter(model_card(replace(_finished(), base=base)))


def test_hostile_text_stays_inside_its_field_of_the_front_matter() -> None:
    fields = _front_matter(model_card(_hostile()))
    assert fields == {"library_name": HOSTILE, "tags": ["ftcore", HOSTILE]}


def test_hostile_text_stays_inside_its_cell() -> None:
    card = model_card(_hostile())
    cells = [re.findall(r"(?<!\\)\|", line) for line in card.splitlines() if line.startswith("| ")]
    assert {len(bars) for bars in cells} == {3, 4, 5}
    tables = [line for line in card.splitlines() if line.startswith("| ")]
    assert not any(re.search(r"<(?!br>)|(?<!\\)[`\[$]", line) for line in tables)


def test_a_fence_is_longer_than_any_in_the_command() -> None:
    card = model_card(replace(_finished(), command="echo '````'"))
    assert "`````sh\necho '````'\n`````" in card


def test_the_card_says_how_to_use_and_to_repeat_it() -> None:
    card = model_card(_finished())
    for part in (
        "ftcore chat DIR",
        "ftcore merge DIR --output OUT",
        'ftcore.attach("DIR")',
        "ftcore run --method lora --task causal --model qwen",
        "| lowest evaluation loss | 1.5200 at step 100 |",
        "| Who? | the the | Nobody. |",
        "12,288 of 1,052,672 (1.17 %)",
    ):
        assert part in card


def test_a_card_without_metrics_and_samples_has_no_empty_sections() -> None:
    card = model_card(replace(_finished([]), samples=[]))
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["How to use it", "How it was trained"]


def test_both_pages_are_the_same_every_time() -> None:
    assert report_html(_finished()) == report_html(_finished())
    assert model_card(_finished()) == model_card(_finished())
