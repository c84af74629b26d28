"""The directory of a run: the record that says which run it is, its metrics, and what a finished one leaves."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.batches import digest
from ftcore.checkpoints import publish
from ftcore.config import Change, Recipe, changes
from ftcore.discovery import PLUGIN_KEYS, code_of, find, spelled
from ftcore.errors import Refused
from ftcore.hooks import Adapter, Data, Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.report import Finished

RUN_FILE, METRICS_FILE, SAMPLES_FILE, CARD_FILE = "ftcore.json", "metrics.jsonl", "samples.json", "README.md"
CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
HASHED = (".safetensors", ".bin", ".json", ".jinja", ".model", ".tiktoken")


def record(recipe: Recipe, loaded: Loaded, data: Data, steps: int) -> dict[str, Any]:
    """Everything that says what this run is, as ftcore.json holds it."""
    written = recipe.plain()
    for key in ("data", "eval_data"):
        written[key] = [str(Path(s).resolve()) if Path(s).exists() else s for s in written[key]]
    written.update(resume=False, allow_drift=False)  # asked of one start, not of the run
    if recipe.settings.checkpoint:
        written["checkpoint"] = loaded.checkpoint
    libraries = ("torch", "transformers", "accelerate", "safetensors")
    return {
        "ftcore": metadata.version("ftcore"),
        "run": written,
        "filled": {name: dict(options) for name, options in recipe.filled.items()},
        "steps": steps,
        "base": loaded.checkpoint,
        "plugins": [
            {
                "kind": c.kind,
                "name": c.name,
                "distribution": c.distribution,
                "version": c.version,
                "sha256": code_of(c.plugin),
            }
            for c in recipe.chosen
        ],
        "fingerprints": {
            "data": digest(data.train),
            "eval_data": digest(data.eval),
            "base": fingerprint(loaded.checkpoint),
        },
        "versions": {name: metadata.version(name) for name in libraries},
    }


def fingerprint(folder: str) -> str:
    """A sha256 over the weights, the configuration and the tokenizer of a checkpoint directory."""
    hashed = hashlib.sha256()
    for file in sorted(Path(folder).glob("*")):
        if file.suffix in HASHED and file.is_file():
            hashed.update(file.name.encode())
            with file.open("rb") as content:
                hashed.update(hashlib.file_digest(content, "sha256").digest())
    return hashed.hexdigest()


def same_run(output: Path, now: Mapping[str, Any], allow_drift: bool, say: Callable[[str], None]) -> None:
    """The directory is new or holds this run; another run in it is refused, by what differs."""
    file = output / RUN_FILE
    if not file.exists():
        strangers = sorted(p.name for p in output.iterdir() if p.name != ".lock" and not p.name.startswith(".tmp-"))
        if strangers:
            raise Refused(
                f"the output directory {output} holds '{strangers[0]}' and no run; name a new one with --output"
            )
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    found = changes(_named_plainly(saved["run"]), _named_plainly(now["run"]))
    found += plugin_changes(saved["plugins"], now["plugins"])
    found += changes(saved["fingerprints"], now["fingerprints"])
    breaking = [change for change in found if not change.harmless]
    if breaking and not allow_drift:
        listed = "; ".join(str(change) for change in breaking)
        raise Refused(f"{output} holds another run: {listed}; name a new --output, or go on with --allow-drift")
    if is_finished(output) and saved["steps"] != now["steps"]:
        raise Refused(
            f"the run in {output} is finished after {saved['steps']} steps and cannot take {now['steps']}; "
            "name a new --output"
        )
    for change in found:
        say(f"note: {change}")


def _named_plainly(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's keys with the names of its plugins without their distributions, which are compared by themselves."""
    names = {key: "+".join(n.rpartition(":")[2] for n in run[key].split("+")) for key in PLUGIN_KEYS if key in run}
    return {**run, **names}


def plugin_changes(saved: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Where the plugins of two runs that bear the same names differ: in distribution, version or code."""
    before = {(plugin["kind"], plugin["name"]): plugin for plugin in saved}
    pairs = ((before.get((plugin["kind"], plugin["name"])), plugin) for plugin in now)
    return [change for known, plugin in pairs if known for change in _plugin_changes(known, plugin)]


def _plugin_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    label, came, comes = f"{now['kind']} '{now['name']}'", _origin(before), _origin(now)
    was, code = before.get("sha256"), now["sha256"]
    if came != comes:
        # a record without digests is of an ftcore that compared no plugins
        yield Change(label, came, comes, harmless="sha256" not in before)
    elif was and code and was != code:
        yield Change(f"the code of {label} ({comes})", f"sha256 {was[:12]}", f"sha256 {code[:12]}", harmless=False)


def _origin(plugin: Mapping[str, Any]) -> str:
    return f"{plugin['distribution']} {plugin['version']}".strip() or "installed nowhere"


def changed_plugins(output: Path) -> list[Change]:
    """Where the installed plugins differ from those that a finished run was made with."""
    read_run(output)
    saved = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))["plugins"]
    return plugin_changes(saved, [_as_installed(plugin) for plugin in saved if plugin["distribution"]])


def _as_installed(plugin: Mapping[str, Any]) -> dict[str, Any]:
    offer = find(plugin["kind"], spelled(plugin["kind"], plugin["name"], plugin["distribution"]))
    found = {"distribution": offer.distribution, "version": offer.version, "sha256": code_of(offer.load())}
    return {**plugin, **found}


def is_finished(output: Path) -> bool:
    """Whether the run in `output` came to its end."""
    return (output / CARD_FILE).exists()


def rewind(metrics: Path, done: int) -> None:
    """The log holds what belongs to the first `done` steps; what came after is written again."""
    kept = [line for line in read_metrics(metrics) if line["step"] < done or (line["step"] == done and "loss" in line)]
    publish(metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl; a last one cut off half-way is left out."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def write_adapter(output: Path, adapter: Adapter) -> None:
    """The adapter's configuration and tensors are in `output`."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    publish(output / CONFIG_FILE, as_json(adapter.config))
    publish(output / TENSOR_FILE, save(tensors, {"format": "pt"}))


def read_adapter(output: Path) -> Adapter:
    """The adapter of a finished run; Refused when a file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        described = json.loads((output / CONFIG_FILE).read_text(encoding="utf-8"))
        return Adapter(described, load((output / TENSOR_FILE).read_bytes()))
    except (OSError, SafetensorError, json.JSONDecodeError) as broken:
        reason = f"{type(broken).__name__}: {broken}"
        raise Refused(f"the adapter in '{output}' cannot be read ({reason}); run its command again") from None


def write_tokenizer(output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer and its chat template are in `output`, as they were in training."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            publish(output / file.name, file.read_bytes())


def write_pages(output: Path, finished: Finished) -> None:
    """The samples, the report and, as the last file of a run, the model card are in `output`."""
    from ftcore.report import model_card, report_html

    publish(output / SAMPLES_FILE, as_json(list(finished.samples)))
    publish(output / "report.html", report_html(finished).encode())
    publish(output / CARD_FILE, model_card(finished).encode())


def read_samples(output: Path) -> tuple[Mapping[str, str], ...]:
    """The questions of a finished run with their answers before and after."""
    file = output / SAMPLES_FILE
    return tuple(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else ()


@dataclass(frozen=True)
class Saved:
    """A finished run as its record tells it."""

    run: Mapping[str, Any]
    steps: int
    base_fingerprint: str
    filled: Mapping[str, Mapping[str, Any]]


def read_run(output: Path) -> Saved:
    """The record of a finished run; Refused when the directory holds none or it is not finished."""
    if not (output / RUN_FILE).is_file():
        raise Refused(f"'{output}' holds no {RUN_FILE}; pass the --output directory of a run")
    if not is_finished(output):
        raise Refused(f"the run in '{output}' is not finished; run its command again first")
    saved = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    run = {**saved["run"], **_spelled(saved["plugins"])}
    return Saved(run, int(saved["steps"]), saved["fingerprints"]["base"], saved.get("filled", {}))


def _spelled(plugins: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The keys that name a run's plugins, each as it must be typed among those that are installed now."""
    names: dict[str, list[str]] = {key: [] for key in PLUGIN_KEYS}
    for plugin in plugins:
        key = next(key for key, kind in PLUGIN_KEYS.items() if kind == plugin["kind"])
        names[key].append(spelled(plugin["kind"], plugin["name"], plugin["distribution"]))
    return {key: "+".join(listed) for key, listed in names.items() if listed}


def as_json(value: object) -> bytes:
    """`value` as an indented JSON file; sets become sorted lists."""
    return (json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n").encode()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def metric_ends(output: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The first and the last evaluation of a run, without the prefix of their names."""
    lines: Sequence[Mapping[str, float]] = [line for line in read_metrics(output / METRICS_FILE) if "eval_loss" in line]
    ends = (lines[0], lines[-1]) if lines else ({}, {})
    before, after = ({k.removeprefix("eval_"): v for k, v in line.items() if k != "step"} for line in ends)
    return before, after
