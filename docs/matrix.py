"""Write docs/reference/matrix.md by trying every method on every family and head; --check only compares."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcore.cli import quieten

PAGE = Path(__file__).resolve().parent / "reference" / "matrix.md"
ADAPTER, STEPS = "adapter_model.safetensors", 4
INTRODUCTION = f"""<!-- written by docs/matrix.py; `make matrix` writes it anew -->

# What goes with what

Every method on every family and on the kit's encoders and encoder-decoder, with its defaults, on models of two layers.
In each cell a run of {STEPS} steps has trained and saved; it was cut off half-way and resumed, and ended bit for bit
the same; opened again, it answered; and it was merged into a plain checkpoint. Nothing here fails half-way: what
cannot be done is refused, with the reason below.

✓ all of that · ✓ with a letter: all but merging, for the reason with that letter · a number: refused before any weight
is read, for the reason with that number
"""


@dataclass(frozen=True)
class Column:
    """A family with a head, and the task and the checkpoint that go with it."""

    title: str
    family: object
    task: object
    checkpoint: Path


@dataclass
class Reasons:
    """Sentences, each with the sign that stands for it in the table."""

    signs: Sequence[str]
    found: dict[str, str] = field(default_factory=dict)

    def sign(self, reason: str) -> str:
        """The sign of a sentence, the next free one for a new sentence."""
        return self.found.setdefault(reason, self.signs[len(self.found)])


def columns() -> Iterator[Column]:
    """Every shipped family with its first type and head, then the kit's models with every head but a decoder's."""
    from ftcore.discovery import declared_datum
    from ftcore.testing.methods.properties import Exercise, head_fields
    from ftcore.testing.methods.work import scene_of
    from ftcore.testing.stage import STAGES, tiny_checkpoint
    from generate import shipped

    for plugin in shipped():
        if plugin.kind == "model" and plugin.cls.model_types:
            model_type, head = plugin.cls.model_types[0], plugin.cls.heads[0]
            fields = declared_datum(plugin.cls, "tiny").get(model_type, {})
            own = {} if head == "causal-lm" else head_fields(head)
            task = "causal" if head == "causal-lm" else Exercise(head=head)
            yield Column(plugin.name, plugin.cls(), task, tiny_checkpoint(model_type, head, **own, **fields))
    for head in STAGES:
        if head != "causal-lm":
            scene = scene_of(head)
            kind = "encoder-decoder" if head == "seq2seq-lm" else f"encoder, {head.replace('-', ' ')}"
            yield Column(kind, scene.family, scene.task, scene.checkpoint)


def methods() -> dict[str, Mapping[str, Any]]:
    """Every shipped method with the options that it cannot be made without."""
    from ftcore.discovery import declared_datum
    from generate import shipped

    return {one.name: declared_datum(one.cls, "tried_with") for one in shipped() if one.kind == "method"}


def cell(method: str, options: Mapping[str, Any], column: Column, place: Path) -> tuple[str, str]:
    """Why the run was refused and why it cannot be merged; empty where neither was."""
    import ftcore

    keys: dict[str, Any] = {
        "method": method, "task": column.task, "model": column.family, "checkpoint": column.checkpoint, "steps": STEPS,
        "save_every": STEPS // 2, "keep": 9, "batch_size": 4, "precision": "fp32",
    }  # fmt: skip
    if options:
        keys[method] = dict(options)
    if column.task == "causal":
        keys["data"] = rows(place / "rows.jsonl")
    planned = ftcore.plan(**keys)
    if planned.refused:
        return planned.refused, ""
    first, second = place / "first", place / "second"
    ftcore.run(output=first, **keys)
    cut_off(first, second)
    ftcore.run(output=second, **keys)
    if (first / ADAPTER).read_bytes() != (second / ADAPTER).read_bytes():
        raise AssertionError(f"{method} on {column.title} does not resume bit for bit")
    plugins = {"task": column.task, "model": column.family}
    answers(column, ftcore.attach(first, **plugins).model)
    try:
        ftcore.merge(first, output=place / "merged", **plugins)
    except ftcore.Refused as refused:
        return "", str(refused)
    return "", ""


def rows(file: Path) -> Path:
    """A file with a few short rows."""
    pairs = [{"instruction": f"Where is cat {number}?", "output": f"By door {number}."} for number in range(12)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def cut_off(finished: Path, resumed: Path) -> None:
    """`resumed` holds what a run that was killed after half of its steps leaves."""
    shutil.copytree(finished, resumed)
    shutil.rmtree(resumed / "checkpoints" / f"step-{STEPS:09d}")
    for name in (ADAPTER, "adapter_config.json", "report.html", "README.md", "samples.json"):
        (resumed / name).unlink(missing_ok=True)


def answers(column: Column, model: Any) -> None:
    """The opened run answers with finite numbers."""
    import torch
    from ftcore.testing.methods.work import Scene, questions

    head = "causal-lm" if isinstance(column.task, str) else column.task.head  # type: ignore[attr-defined]
    asked = questions(Scene(column.family, _Headed(head), column.checkpoint))
    with torch.no_grad():
        found = [value for name, value in model(**asked).items() if name.endswith("logits")]
    assert found, column.title
    assert all(bool(one.isfinite().all()) for one in found), column.title


@dataclass(frozen=True)
class _Headed:
    head: str


def tried(method: str) -> list[tuple[str, str]]:
    """The cells of a method's row."""
    quieten()
    found = []
    for column in columns():
        with tempfile.TemporaryDirectory() as place:
            found.append(cell(method, methods()[method], column, Path(place)))
        print(method, column.title, *found[-1], file=sys.stderr)  # noqa: T201
    return found


def page() -> str:
    """The page as it is now."""
    every, refusals = list(columns()), Reasons([str(n) for n in range(1, 100)])
    unmerged, lines = Reasons("abcdefghijklmnopqrstuvwxyz"), []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for method, cells in zip(methods(), pool.map(tried, methods()), strict=True):
            signs = [refusals.sign(told(r)) if r else f"✓{unmerged.sign(told(a)) if a else ''}" for r, a in cells]
            lines.append(f"| `{method}` | {' | '.join(signs)} |")
    head = f"| method | {' | '.join(column.title for column in every)} |\n|{' --- |' * (len(every) + 1)}"
    return "\n".join([INTRODUCTION, head, *lines, "", *listed(refusals), *listed(unmerged)]) + "\n"


def told(reason: str) -> str:
    """A reason without the names that differ from cell to cell."""
    import re

    plain = re.sub(r" \(ftcore-[\w-]+ [\d.]+\)", "", reason)
    plain = re.sub(r"^(method) '[\w-]+'", r"\1", plain)
    return re.sub(r"'[\w./-]*/(tmp|var)/[\w./-]*'", "the checkpoint", plain)


def listed(reasons: Reasons) -> list[str]:
    """The reasons with their signs."""
    return [f"- **{sign}** {reason}" for reason, sign in reasons.found.items()]


def main() -> None:
    """Write the page, or with --check say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Compare only.")
    asked = parser.parse_args()
    quieten()
    made = page()
    if asked.check:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == made else f"{PAGE} is not as it should be: make matrix")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
