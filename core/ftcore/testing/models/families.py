"""What the checks of a family share: its checkpoints, a load as a run does it, questions to a model, and answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.discovery import Chosen, bind, declared_datum
from ftcore.errors import Refused
from ftcore.families import HEADS
from ftcore.hooks import Intent, Loaded, Run, hookimpl
from ftcore.pipeline import load_model
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed
from ftcore.testing.stage import tiny_checkpoint
from ftcore.training import Core

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = dict[str, "Tensor"]

# Another shape of the same type: what a family takes for granted instead of reading it from the config shows here.
OTHER_SHAPE: Mapping[str, Any] = {
    "num_hidden_layers": 3,
    "vocab_size": 352,
    "max_position_embeddings": 192,
    "num_key_value_heads": 4,
    "sliding_window": 8,
    "rope_theta": 500.0,
    "rms_norm_eps": 0.01,
    "layer_norm_eps": 0.01,
    "layer_norm_epsilon": 0.01,
}
EXPECTED = "expected.safetensors"
GENERATES = ("causal-lm", "seq2seq-lm")


@dataclass(frozen=True)
class Case:
    """A checkpoint that the family says it loads, with one of its heads; `made` by the kit or given by the author."""

    model_type: str
    head: str
    folder: Path
    made: bool = True
    shape: str = ""
    source: Path = Path()  # what the folder is a copy of, which the family never saw
    expected: Path | None = None  # what the original code answers, where the author knows

    def __str__(self) -> str:
        return f"model type '{self.model_type}' with head '{self.head}'{self.shape}"

    @property
    def native(self) -> bool:
        """Whether transformers itself loads this model type."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

        return self.model_type in CONFIG_MAPPING_NAMES

    @property
    def config(self) -> dict[str, Any]:
        """The fields of config.json."""
        return read(self.folder / "config.json")


def read(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def change(file: Path, **fields: Any) -> None:
    """The JSON object in `file` with other fields; None takes one out."""
    merged = {**(read(file) if file.exists() else {}), **fields}
    kept = {name: value for name, value in merged.items() if value is not None or name not in fields}
    file.write_text(json.dumps(kept), encoding="utf-8")


def copied(bench: Bench, folder: Path, name: str) -> Path:
    """A copy of a checkpoint to do with as one likes."""
    return Path(shutil.copytree(folder, bench.place(name)))


def first(bench: Bench) -> Case:
    """The case that stands for all where trying one is enough: a checkpoint that was given, or of the first type."""
    return bench.once("first", lambda: (*_given(bench), *_made(bench))[0]())


def plain_cases(bench: Bench) -> tuple[Case, ...]:
    """A checkpoint for each model type and head."""
    return bench.once("plain", lambda: (first(bench), *(make() for make in (*_given(bench), *_made(bench))[1:])))


def cases(bench: Bench) -> tuple[Case, ...]:
    """The plain cases, one of another shape for each type that the kit makes, and the family's own starter."""
    return bench.once("cases", lambda: (*plain_cases(bench), *_other_shapes(bench), *_starter(bench)))


def one_of_each_type(bench: Bench) -> tuple[Case, ...]:
    """The plain cases with the first head of each type, where the head makes no difference."""
    return tuple({case.model_type: case for case in reversed(plain_cases(bench))}.values())[::-1]


def _other_shapes(bench: Bench) -> list[Case]:
    return [other_shape(bench, case.model_type, case.head) for case in one_of_each_type(bench) if case.made]


def _starter(bench: Bench) -> list[Case]:
    folder = Path(getattr(bench.plugin, "starter", None) or bench.folder / "no starter")
    there = (folder / "config.json").is_file()
    return [_given_case(bench, folder, claimed(bench)[1])] if there else []


def _made(bench: Bench) -> list[Callable[[], Case]]:
    """How to make a checkpoint of each type that none is given of, with each head."""
    types, heads = claimed(bench)
    tried = declared_datum(bench.plugin, "tried_on") or dict.fromkeys(types, heads)
    given = {read(folder / "config.json").get("model_type") for folder in _folders(bench)}
    left = [(model_type, head) for model_type, fitting in tried.items() if model_type not in given for head in fitting]
    return [partial(made_case, bench, model_type, head) for model_type, head in left]


def claimed(bench: Bench) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The model types and the heads that the family says it loads."""
    types = declared_datum(bench.plugin, "model_types") or tuple(declared_datum(bench.plugin, "tried_on"))
    heads = declared_datum(bench.plugin, "heads")
    if not types or not heads:
        raise Failed("it declares no 'model_types' or no 'heads', so nobody can know what it loads; declare them")
    unknown = [head for head in heads if head not in HEADS]
    if unknown:
        raise Failed(f"it claims the head '{unknown[0]}', which is none of {', '.join(HEADS)}")
    return types, heads


def _given(bench: Bench) -> list[Callable[[], Case]]:
    return [partial(_given_case, bench, folder, claimed(bench)[1]) for folder in _folders(bench)]


def _folders(bench: Bench) -> list[Path]:
    """The checkpoint that the author names, or those of the family's types in a folder of several."""
    if bench.checkpoint is None:
        return []
    if (bench.checkpoint / "config.json").is_file():
        return [bench.checkpoint]
    inside = sorted(bench.checkpoint.glob("*/config.json"))
    fitting = [file.parent for file in inside if read(file).get("model_type") in claimed(bench)[0]]
    if not fitting:
        raise Failed(f"'{bench.checkpoint}' holds no checkpoint of a type that the family claims; pass a tiny one")
    return fitting


def _given_case(bench: Bench, folder: Path, heads: tuple[str, ...]) -> Case:
    config = read(folder / "config.json")
    wanted = (config.get("architectures") or [""])[0]
    fitting = [head for head in heads if wanted.endswith(HEADS[head].removeprefix("AutoModel"))]
    copy = Path(shutil.copytree(folder, bench.place("given"), ignore=shutil.ignore_patterns(EXPECTED)))
    told = folder / EXPECTED if (folder / EXPECTED).is_file() else None
    shape = f" in '{folder.name}'"
    return Case(config.get("model_type", ""), (fitting or heads)[0], copy, False, shape, folder, told)


def made_case(bench: Bench, model_type: str, head: str, shape: str = "", **fields: Any) -> Case:
    """A checkpoint by the kit; Failed when the fields that fit most types do not fit this one."""
    tiny = declared_datum(bench.plugin, "tiny").get(model_type, {})
    try:
        source = tiny_checkpoint(model_type, head, **{**tiny, **fields})
    except Exception as unmakeable:
        reason = (str(unmakeable).strip() or type(unmakeable).__name__).splitlines()[0]
        raise Failed(
            f"the kit cannot make a two-layer checkpoint of model type '{model_type}' with head '{head}' ({reason}); "
            "declare config fields for it in 'tiny', or give a tiny checkpoint"
        ) from None
    return Case(model_type, head, copied(bench, source, model_type), shape=shape, source=source)


def other_shape(bench: Bench, model_type: str, head: str, **fields: Any) -> Case:
    """A checkpoint of the same type with other numbers wherever its config has such a field."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(model_type)
    has = {"rope_theta": getattr(plain, "rope_parameters", None)}
    fitting = {n: v for n, v in OTHER_SHAPE.items() if has.get(n, getattr(plain, n, None)) is not None}
    return made_case(bench, model_type, head, " in another shape", **{**fitting, **fields})


@dataclass(frozen=True, eq=False)
class Asking:
    """Another plugin of the run, which wants keywords given to the loader."""

    wanted: Mapping[str, Any]

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any]:
        """The keywords."""
        return self.wanted


def load(
    bench: Bench,
    folder: Path | str | None,
    head: str,
    *,
    intent: Intent = "train",
    plugin: object | None = None,
    wanted: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Loaded:
    """What the family loads as a run would have it load."""
    chosen = bench.once("chosen", lambda: bench.chosen)
    plugins = [chosen if plugin is None else replace(chosen, plugin=plugin)]
    if wanted is not None:
        plugins.append(Chosen("extension", "asking", "", "", Asking(wanted)))
    checkpoint = None if folder is None else str(folder)
    return load_model(bind(plugins, Core()), Run(Settings(checkpoint=checkpoint, **settings), intent, head, say=say))


def loaded(bench: Bench, case: Case) -> Loaded:
    """The case as the family loads it, for checks that only look."""
    return bench.once(("loaded", case), lambda: load(bench, case.folder, case.head))


def refusal(bench: Bench, folder: Path, head: str, what: str, intent: Intent = "train", **settings: Any) -> str:
    """The sentence with which the family refuses a checkpoint; Failed when it loads, or ends in a raw exception."""
    try:
        load(bench, folder, head, intent=intent, **settings)
    except Refused as refused:
        return str(refused)
    except Exception as raw:
        raise Failed(f"{what} ends in {type(raw).__name__} ({_short(raw)}); raise ftcore.Refused and say it") from None
    raise Failed(f"{what} is loaded as if nothing were wrong; refuse it by name")


def _short(fault: Exception) -> str:
    return (str(fault).strip() or "no message").splitlines()[0][:120]


def vocabulary(model: Any) -> int:
    """Rows of the embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def questions(model: Any, head: str) -> dict[str, Inputs]:
    """Inputs of several kinds for a model with this head."""
    import inspect

    import torch

    with seeded(0, "questions"):
        ids = torch.randint(3, vocabulary(model), (3, 20))
        begun = torch.randint(3, vocabulary(model), (3, 7))
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[0, 14:] = right[1, 5:] = left[1, :6] = left[2, :15] = 0
    asked: dict[str, Inputs] = {
        "a batch": {"input_ids": ids},
        "a batch padded on the right": {"input_ids": ids, "attention_mask": right},
        "a batch padded on the left": {"input_ids": ids, "attention_mask": left},
        "a single token": {"input_ids": ids[:1, :1]},
    }
    padding = getattr(model.config, "pad_token_id", None)
    if head == "sequence-classification" and padding is not None:  # by which a decoder knows where a row ends
        for given in asked.values():
            given["input_ids"] = given["input_ids"].where(given.get("attention_mask", right[:1, :1]) > 0, padding)
    if head == "causal-lm" and "position_ids" in inspect.signature(model.forward).parameters:
        positions = (left.cumsum(-1) - 1).clamp(min=0)
        asked["a batch padded on the left"]["position_ids"] = positions
    if head == "seq2seq-lm":
        asked = {
            name: {**given, "decoder_input_ids": begun[: len(given["input_ids"])]} for name, given in asked.items()
        }
    return asked


def answer(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The model's logits in float32, whatever its head."""
    import torch

    with torch.no_grad():
        out = model(**inputs)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], -1).float()
    logits: Tensor = out.logits
    return logits.float()


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest number wanted, or of 1; infinite for another shape or no number.

    In float32 two ways of one computation differ by about 1e-6, and a wrong one by much more than 1e-4.
    """
    if found.shape != wanted.shape or not found.numel():
        return float("inf")
    apart = float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    return apart if apart == apart else float("inf")


@dataclass(frozen=True)
class Reference:
    """What transformers makes of a checkpoint in a process where the plugin was never imported."""

    name: str
    asked: Mapping[str, Inputs]
    weights: Mapping[str, Tensor]
    answers: Mapping[str, Tensor]


def referred(bench: Bench, case: Case) -> Reference:
    """The reference of a case whose type transformers knows."""
    return bench.once("references", lambda: _references(bench))[case]


def _references(bench: Bench) -> dict[Case, Reference]:
    """What one fresh process makes of every checkpoint that transformers itself loads."""
    from safetensors.torch import load_file, save_file

    native = [case for case in cases(bench) if case.native]
    folders = {str(bench.place("consulted")): case for case in native}
    asked = {case: questions(loaded(bench, case).model, case.head) for case in native}
    for folder, case in folders.items():
        pairs = [(f"{name}/{key}", value) for name, inputs in asked[case].items() for key, value in inputs.items()]
        Path(folder).mkdir()
        save_file({name: value.clone() for name, value in pairs}, Path(folder, "asked.safetensors"))
    listed = [(str(case.folder), case.head, folder) for folder, case in folders.items()]
    names = fresh.call("ftcore.testing.models.families:consult", checkpoints=listed)
    return {
        case: Reference(
            name,
            asked[case],
            load_file(Path(folder, "weights.safetensors")),
            load_file(Path(folder, "told.safetensors")),
        )
        for name, (folder, case) in zip(names, folders.items(), strict=True)
    }


def consult(checkpoints: list[tuple[str, str, str]]) -> list[str]:
    """The classes that plain transformers has for checkpoints; beside each one's questions are its weights and answers.

    Runs in a fresh process.
    """
    from safetensors.torch import load_file, save_file

    names = []
    for checkpoint, head, folder in checkpoints:
        model = plain(checkpoint, head).eval()
        inputs: dict[str, Inputs] = {}
        for name, tensor in load_file(Path(folder, "asked.safetensors")).items():
            question, _, key = name.rpartition("/")
            inputs.setdefault(question, {})[key] = tensor
        told = {question: answer(model, given).contiguous() for question, given in inputs.items()}
        save_file(told, Path(folder, "told.safetensors"))
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        save_file(weights, Path(folder, "weights.safetensors"))
        names.append(type(model).__name__)
    return names


def plain(folder: Path | str, head: str, **given: Any) -> Any:
    """What transformers itself makes of a checkpoint here, where `check_transformers_stays_as_it_was` watches it."""
    import transformers

    auto = getattr(transformers, HEADS[head])
    return auto.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, **given)


def is_tied(model: Any) -> bool:
    """Whether the output layer's weight is the embedding's."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
