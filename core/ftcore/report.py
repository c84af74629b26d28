"""The last two files of a finished run: the page with its curves and the model card."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean

import yaml

Point = tuple[float, float]
Rows = Sequence[Sequence[str]]

MOST_POINTS = 600
MOST_EVALUATIONS = 12
CROWDED = 48
LONGEST_CELL = 400
LARGEST = 1e100  # beyond it a chart's arithmetic could overflow; also false for NaN and infinity
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760.0, 68.0, 30.0, 10.0, 42.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Finished:
    """Everything the two pages show; `library` is what loads the adapter, by its Hub name, `chats` how it is used."""

    title: str
    command: str
    config: Mapping[str, object]
    plugins: Sequence[Mapping[str, str]]
    facts: Mapping[str, str]
    metrics: Sequence[Mapping[str, float]]
    samples: Sequence[Mapping[str, str]]
    base: str
    library: str
    chats: bool = True


def report_html(finished: Finished) -> str:
    """One page that needs nothing beside it: no script, no font, no network."""
    sections = (
        _tiles({**results(finished.metrics), **finished.facts}),
        _section("Curves", _curves(finished.metrics)),
        _section("Evaluations", _html_table(*_evaluations(finished.metrics))),
        _section("Samples", "".join(map(_sample, finished.samples))),
        _section("Run it again", f"<pre>{escape(finished.command)}</pre>"),
        _section("Plugins", _html_table(PLUGIN_COLUMNS, _plugin_rows(finished.plugins))),
        _folded("Every option", _html_table(("option", "value"), list(flat(finished.config)))),
    )
    title = escape(finished.title)
    lead = f"<h1>{title}</h1>\n<p class='lead'>An adapter for <code>{escape(finished.base)}</code></p>"
    return PAGE.format(title=title, style=STYLE, body="\n".join((lead, *filter(None, sections))))


def model_card(finished: Finished) -> str:
    """A README.md that the Hub reads: front matter, then what this is and how to use it."""
    sections = (
        _front_matter(finished),
        f"# {_plain(finished.title)}",
        _what_it_is(finished),
        USAGE.format(use=CHAT if finished.chats else PREDICT),
        _part("Results", markdown_table(("measure", "value"), list(results(finished.metrics).items()))),
        _part("How it was trained", _training(finished)),
        _part("Samples", markdown_table(("asked", "before", "after"), _sample_rows(finished.samples))),
    )
    return "\n\n".join(filter(None, sections)) + "\n"


# --- what both pages say ----------------------------------------------------------------------------------

PLUGIN_COLUMNS = ("kind", "name", "distribution", "version")


def results(metrics: Sequence[Mapping[str, float]]) -> Mapping[str, str]:
    """Where the losses went and what the last evaluation said, in words and rounded numbers."""
    return {
        **_first_to_last("training loss", smoothed(series(metrics, "loss"))),
        **_first_to_last("evaluation loss", series(metrics, "eval_loss")),
        **_best("lowest evaluation loss", series(metrics, "eval_loss")),
        **_last_evaluation(metrics),
    }


def _first_to_last(name: str, points: Sequence[Point]) -> Mapping[str, str]:
    ends = dict.fromkeys((*points[:1], *points[-1:]))
    return {name: " → ".join(number(y) for _, y in ends)} if ends else {}


def _best(name: str, points: Sequence[Point]) -> Mapping[str, str]:
    if len(points) < 2:
        return {}
    step, loss = min(points, key=lambda point: point[1])
    return {name: f"{number(loss)} at step {step:,.0f}"}


def _last_evaluation(metrics: Sequence[Mapping[str, float]]) -> Mapping[str, str]:
    names = [name for name in _evaluation_names(metrics) if name != "eval_loss"]
    return {f"evaluation {_words(n)}": number(found[-1][1]) for n in names if (found := series(metrics, n))}


def _evaluation_names(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for line in metrics for name in line if name.startswith("eval_")))


def _evaluations(metrics: Sequence[Mapping[str, float]]) -> tuple[Sequence[str], Rows]:
    names = _evaluation_names(metrics)
    lines = sorted({line["step"]: line for line in metrics if any(name in line for name in names)}.items())
    rows = [[f"{step:,.0f}", *(_cell(line, name) for name in names)] for step, line in lines]
    return ("step", *map(_words, names)), _evenly(rows, MOST_EVALUATIONS)


def _cell(line: Mapping[str, float], name: str) -> str:
    return number(line[name]) if name in line else ""


def _evenly(rows: Rows, most: int) -> Rows:
    if len(rows) <= most:
        return rows
    return [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]


def _words(name: str) -> str:
    return name.removeprefix("eval_").replace("_", " ")


def _plugin_rows(plugins: Sequence[Mapping[str, str]]) -> Rows:
    return [[plugin[column] for column in PLUGIN_COLUMNS] for plugin in plugins]


def number(value: float) -> str:
    """A number that a person can take in; a dash for what is none."""
    if not abs(value) < LARGEST:
        return "—"
    if value == int(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4f}"


def flat(config: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested options as dotted names, in their order, with each value as it would be typed."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- curves: numbers --------------------------------------------------------------------------------------


def series(metrics: Sequence[Mapping[str, float]], name: str) -> list[Point]:
    """The finite values of one metric by step; of a step that was done twice, the later."""
    values = {line["step"]: line[name] for line in metrics if name in line and abs(line[name]) < LARGEST}
    return sorted(values.items())


def smoothed(points: Sequence[Point]) -> Sequence[Point]:
    """A moving average over a twenty-fifth of the curve to each side, less where it begins and ends."""
    means = [_middle(stretch) for stretch in _stretches(points, MOST_POINTS)]
    reach = len(means) // 25
    return [(x, _around(means, index, reach)) for index, (x, _) in enumerate(means)]


def _around(points: Sequence[Point], index: int, reach: int) -> float:
    # The beginning is steep: an average that looked further ahead than back would start far below it.
    ahead = min(index, reach)
    return fmean(y for _, y in points[max(index - reach, 0) : index + ahead + 1])


def _middle(points: Sequence[Point]) -> Point:
    return fmean(x for x, _ in points), fmean(y for _, y in points)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MOST_POINTS of them: both ends, and of each stretch between the lowest and the highest."""
    if len(points) <= MOST_POINTS:
        return points
    stretches = _stretches(points[1:-1], (MOST_POINTS - 2) // 2)
    kept = (extreme for stretch in stretches for extreme in _extremes(stretch))
    return sorted({points[0], points[-1], *kept})


def _stretches(points: Sequence[Point], most: int) -> list[Sequence[Point]]:
    count = min(most, len(points))
    bounds = [index * len(points) // count for index in range(count + 1)] if count else []
    return [points[first:last] for first, last in pairwise(bounds)]


def _extremes(points: Sequence[Point]) -> tuple[Point, Point]:
    return min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, with a tick at every multiple of `gap`."""

    low: float
    high: float
    gap: float

    def ticks(self) -> list[float]:
        """The round numbers within."""
        first, last = math.ceil(self.low / self.gap - 1e-6), math.floor(self.high / self.gap + 1e-6)
        return [index * self.gap for index in range(first, last + 1)]

    def label(self, value: float) -> str:
        """A tick's number, with no more digits than the gap needs."""
        if value == 0:
            return "0"
        size = max(abs(self.low), abs(self.high))
        if 1e-3 <= size < 1e7:
            return f"{value:,.{max(0, -_power(self.gap))}f}"
        mantissa, power = f"{value:.{max(0, _power(value) - _power(self.gap))}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"

    def share(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def steps_axis(last: float) -> Axis:
    """From no step to the last one, with ticks at whole steps."""
    high = max(last, 1.0)
    return Axis(0.0, high, max(_gap(high, 7), 1.0))


def values_axis(values: Sequence[float], ticks: int) -> Axis:
    """Round numbers around all the values, also where there is but one."""
    low, high = _spread(min(values), max(values))
    gap = _gap(high - low, ticks)
    return Axis(math.floor(low / gap + 1e-6) * gap, math.ceil(high / gap - 1e-6) * gap, gap)


def _spread(low: float, high: float) -> Point:
    if high - low > max(1e-6 * max(abs(low), abs(high)), 1e-90):
        return low, high
    margin = abs(high) / 10
    return (low - margin, high + margin) if margin > 1e-90 else (0.0, 1.0)


def _gap(span: float, most: int) -> float:
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(times * power for times in (1, 2, 5, 10, 20) if times * power * most >= span * (1 - 1e-9))


def _power(value: float) -> int:
    return math.floor(math.log10(abs(value)) + 1e-9)


# --- curves: pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One picture: two axes and how tall the space between them is."""

    x: Axis
    y: Axis
    height: float

    def at(self, point: Point) -> tuple[str, str]:
        """Where a point lies in the picture."""
        x = LEFT + self.x.share(point[0]) * (WIDTH - LEFT - RIGHT)
        y = TOP + (1 - self.y.share(point[1])) * self.height
        return f"{x:.1f}", f"{y:.1f}"


def _curves(metrics: Sequence[Mapping[str, float]]) -> str:
    loss, evaluated, rate = (series(metrics, name) for name in ("loss", "eval_loss", "lr"))
    steps = steps_axis(max((x for x, _ in (*loss, *evaluated, *rate)), default=0.0))
    figures = (_loss_figure(steps, loss, evaluated), _rate_figure(steps, rate))
    return "\n".join(filter(None, figures)) or "<p>No loss was logged.</p>"


def _loss_figure(steps: Axis, loss: Sequence[Point], evaluated: Sequence[Point]) -> str:
    if not loss and not evaluated:
        return ""
    panel = Panel(steps, values_axis([y for _, y in (*loss, *evaluated)], 6), 250.0)
    average = smoothed(loss)
    each = loss if average != loss else []
    drawn = {
        ("raw", "each logged step"): _line(panel, each, "raw"),
        ("train", "training loss"): _line(panel, average, "train"),
        ("eval", "evaluation loss"): _dots(panel, evaluated),
    }
    return _figure(panel, "Loss", {key: marks for key, marks in drawn.items() if marks})


def _rate_figure(steps: Axis, rate: Sequence[Point]) -> str:
    if not rate:
        return ""
    panel = Panel(steps, values_axis([0.0, *(y for _, y in rate)], 3), 84.0)
    return _figure(panel, "Learning rate", {("rate", "at each step"): _line(panel, rate, "rate")})


def _figure(panel: Panel, name: str, drawn: Mapping[tuple[str, str], str]) -> str:
    keys = "".join(f"<span class='key'><i class='{style}'></i>{text}</span>" for style, text in drawn)
    view = f"0 0 {WIDTH:.0f} {TOP + panel.height + BOTTOM:.0f}"
    picture = "\n".join((*_grid(panel), *drawn.values()))
    return (
        f"<figure><figcaption><b>{name}</b>{keys}</figcaption>\n"
        f"<div class='wide'><svg viewBox='{view}' role='img' aria-label='{name} by step'>\n"
        f"{picture}\n</svg></div></figure>"
    )


def _grid(panel: Panel) -> Iterator[str]:
    right, floor = f"{WIDTH - RIGHT:.1f}", TOP + panel.height
    for value in panel.y.ticks():
        _, y = panel.at((panel.x.low, value))
        yield f"<line class='grid' x1='{LEFT}' x2='{right}' y1='{y}' y2='{y}'/>"
        yield f"<text class='left' x='{LEFT - 10}' y='{y}' dy='.32em'>{panel.y.label(value)}</text>"
    for value in panel.x.ticks():
        x, _ = panel.at((value, panel.y.low))
        yield f"<line class='tick' x1='{x}' x2='{x}' y1='{floor}' y2='{floor + 4}'/>"
        yield f"<text x='{x}' y='{floor + 19}'>{panel.x.label(value)}</text>"
    yield f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{floor + 36}'>step</text>"
    yield f"<line class='axis' x1='{LEFT}' x2='{right}' y1='{floor}' y2='{floor}'/>"


def _line(panel: Panel, points: Sequence[Point], style: str) -> str:
    places = [panel.at(point) for point in thinned(points)]
    if len(places) == 1:
        return f"<circle class='{style} dot' cx='{places[0][0]}' cy='{places[0][1]}' r='3.5'/>"
    path = " ".join(",".join(place) for place in places)
    return f"<polyline class='{style}' points='{path}'/>" if places else ""


def _dots(panel: Panel, points: Sequence[Point]) -> str:
    radius = 4.0 if len(points) <= CROWDED else 2.5
    return "\n".join(_dot(panel, point, radius) for point in thinned(points))


def _dot(panel: Panel, point: Point, radius: float) -> str:
    x, y = panel.at(point)
    told = f"<title>step {point[0]:,.0f}: {number(point[1])}</title>"
    return f"<circle class='eval' cx='{x}' cy='{y}' r='{radius}'>{told}</circle>"


# --- the page ---------------------------------------------------------------------------------------------


def _section(name: str, content: str) -> str:
    return f"<section>\n<h2>{name}</h2>\n{content}\n</section>" if content else ""


def _folded(name: str, content: str) -> str:
    return f"<details>\n<summary>{name}</summary>\n{content}\n</details>" if content else ""


def _tiles(facts: Mapping[str, str]) -> str:
    tiles = (f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items())
    return "<dl>\n" + "\n".join(tiles) + "\n</dl>" if facts else ""


def _html_table(columns: Sequence[str], rows: Rows) -> str:
    if not rows:
        return ""
    lines = [_html_row(columns, "th"), *(_html_row(row, "td") for row in rows)]
    return "<div class='wide'><table>\n" + "\n".join(lines) + "\n</table></div>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _sample(sample: Mapping[str, str]) -> str:
    question, before, after = (escape(sample[name]) for name in ("question", "before", "after"))
    return (
        f"<article><p class='asked' dir='auto'>{question}</p>\n"
        f"<div><h3>before</h3><p dir='auto'>{before}</p></div>\n"
        f"<div class='after'><h3>after</h3><p dir='auto'>{after}</p></div></article>\n"
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Written by ftcore when the run finished.</footer>
</body>
</html>
"""

STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #626b78; --line: #e3e6ea; --axis: #b4bac3;
  --train: #2f62d9; --eval: #d0690a; --rate: #0f8577; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #181c22; --ink: #e5e8ec;
  --soft: #98a2af; --line: #2a3038; --axis: #4a535f; --train: #7ea6ff; --eval: #f2a65a; --rate: #4fc3b2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 40px 20px 16px; }
footer { max-width: 860px; margin: 0 auto; padding: 0 20px 40px; color: var(--soft); font-size: 13px; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 17px; }
h3 { margin: 0 0 2px; font-size: 12px; font-weight: 500; color: var(--soft); }
.lead { margin: 4px 0 24px; color: var(--soft); overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 13px; }
pre, dl, figure, article, details, .wide:has(table) { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
pre { margin: 0; padding: 14px 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px 20px; margin: 0;
  padding: 18px 20px; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 0 0 12px; padding: 14px 16px 6px; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; margin-bottom: 6px; }
.key { color: var(--soft); font-size: 13px; }
.key i { display: inline-block; width: 18px; height: 0; margin-right: 7px; vertical-align: middle;
  border-top: 2.5px solid var(--train); }
.key i.rate { border-color: var(--rate); }
.key i.raw { opacity: .35; border-top-width: 1.5px; }
.key i.eval { width: 9px; height: 9px; border: 0; border-radius: 50%; background: var(--eval); }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 560px; height: auto; }
svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; font-variant-numeric: tabular-nums; }
svg text.left { text-anchor: end; }
.grid { stroke: var(--line); } .axis, .tick { stroke: var(--axis); }
polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke: var(--train);
  stroke-width: 2.2; }
polyline.raw { stroke-width: 1; opacity: .3; }
polyline.rate { stroke: var(--rate); stroke-width: 1.8; }
circle.train { fill: var(--train); } circle.rate { fill: var(--rate); }
circle.eval { fill: var(--eval); stroke: var(--card); stroke-width: 1.5; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-size: 13px; font-weight: 500; }
th, td { padding: 8px 16px; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td { border-top: 1px solid var(--line); }
article { display: grid; grid-template-columns: 1fr 1fr; gap: 12px 24px; margin-bottom: 12px; padding: 16px; }
article p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
article .asked { grid-column: 1 / -1; font-weight: 600; }
article div { padding-left: 12px; border-left: 3px solid var(--line); min-width: 0; }
article .after { border-color: var(--train); }
details { margin-top: 36px; }
details .wide:has(table) { border-width: 1px 0 0; border-radius: 0; background: none; }
summary { padding: 12px 16px; cursor: pointer; font-weight: 600; }
@media (max-width: 560px) { article { grid-template-columns: 1fr; } main { padding-top: 24px; }
  dl { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); } }
"""


# --- the card ---------------------------------------------------------------------------------------------

USAGE = """## How to use it

`DIR` is this folder.

```sh
ftcore {use}
ftcore merge DIR --output OUT
```

```python
import ftcore

loaded = ftcore.attach("DIR")
model, tokenizer = loaded.model, loaded.tokenizer
```"""
CHAT, PREDICT = "chat DIR", "predict DIR --data ROWS --output FILE"


def _front_matter(finished: Finished) -> str:
    # The Hub refuses a whole card over a base_model that is no repository's name, such as a folder.
    base = {"base_model": finished.base} if HUB_ID.fullmatch(finished.base) else {}
    names = dict.fromkeys(("ftcore", *(plugin["name"] for plugin in finished.plugins)))
    fields = {"library_name": finished.library, **base, "tags": list(names)}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _what_it_is(finished: Finished) -> str:
    names = ", ".join(f"{_plain(plugin['kind'])} {_code(plugin['name'])}" for plugin in finished.plugins)
    made = f" ({names})" if names else ""
    return f"An adapter for {_code(finished.base)}, trained with ftcore{made}."


def _training(finished: Finished) -> str:
    parts = (
        markdown_table(("fact", "value"), list(finished.facts.items())),
        "The command that repeats it:",
        _block(finished.command, "sh"),
        markdown_table(PLUGIN_COLUMNS, _plugin_rows(finished.plugins)),
        "Every option is in `ftcore.json`; the curves are in `report.html`.",
    )
    return "\n\n".join(filter(None, parts))


def _part(name: str, content: str) -> str:
    return f"## {name}\n\n{content}" if content else ""


def _sample_rows(samples: Sequence[Mapping[str, str]]) -> Rows:
    return [[_clipped(sample[name]) for name in ("question", "before", "after")] for sample in samples]


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


def markdown_table(columns: Sequence[str], rows: Rows) -> str:
    """The rows as markdown, whatever their text holds; nothing where there is none."""
    if not rows:
        return ""
    lines = (columns, ["---"] * len(columns), *([_plain(cell) for cell in row] for row in rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    marked = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", escape(text.strip(), quote=False))
    return "<br>".join(marked.splitlines())


def _code(text: str) -> str:
    line = " ".join(text.split())
    fence = _longer_than_any("`", line, 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _block(text: str, language: str) -> str:
    fence = _longer_than_any("`", text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _longer_than_any(mark: str, text: str, least: int) -> str:
    runs = (len(run) + 1 for run in re.findall(f"{re.escape(mark)}+", text))
    return mark * max([least, *runs])
