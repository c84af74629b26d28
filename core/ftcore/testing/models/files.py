"""What a family promises about the files of a checkpoint: all of the weights, nothing else, left as they are."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.discovery import declared_datum
from ftcore.errors import Refused
from ftcore.hooks import Intent, Loaded
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import (
    Case,
    answer,
    change,
    copied,
    distance,
    first,
    load,
    loaded,
    one_of_each_type,
    plain,
    plain_cases,
    questions,
    refusal,
)
from ftcore.testing.stage import tiny_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = re.compile(r"\.(\d+)\.")
INTENTS: tuple[Intent, ...] = ("train", "plan", "infer", "merge")


def check_loads_all_or_nothing(plugin: object, bench: Bench | None = None) -> None:
    """A tensor that is missing, unexpected or misshapen is refused by name, and so are weights that cannot be read."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        damages = list(_damages(tensors(case.folder), loaded(bench, case).model.state_dict().keys()))
        for what, changed, name in damages if case in one_of_each_type(bench) else damages[-1:]:
            _refused(bench, case, changed, f"a checkpoint of {case} {what} '{name}'", name)
    for case in one_of_each_type(bench):
        for what, content in UNREADABLE.items():
            refusal(bench, _unreadable(bench, case, content), case.head, f"a weights file {what}")
        lost = sharded(bench, case)
        max(lost.glob("model-*.safetensors")).unlink()
        refusal(bench, lost, case.head, "a checkpoint that lacks the second of two weight files")


UNREADABLE: Mapping[str, bytes | None] = {
    "that ends early": None,
    "that is a pointer to the weights": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16060\n",
    "of 0 bytes": b"",
}


def _damages(held: Mapping[str, Tensor], known: Collection[str]) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """What may be wrong with a checkpoint, the tensors that make it so, and the name that should be heard."""
    import torch

    kinds = _last_of_each_kind(held)
    matrices = [name for name in kinds if NUMBER.search(name) and held[name].ndim == 2]
    deepest = ([name for name in matrices if name in known] or matrices)[-1]
    for name in kinds:
        if name != deepest:
            yield "without tensor", {name: None}, name
    vector = next(name for name in kinds if held[name].ndim == 1)
    beyond = NUMBER.sub(lambda number: f".{int(number[1]) + 1}.", deepest, count=1)
    for name in (beyond, "stray.weight"):
        yield "with a tensor too many,", {name: held[deepest].clone()}, name
    bias = deepest.removesuffix("weight") + "bias"
    if bias not in held:
        yield "with a tensor too many,", {bias: torch.ones(held[deepest].shape[0])}, bias
    for name in (deepest, vector):
        yield "with another shape of tensor", {name: torch.zeros(held[name].shape[0] + 1, *held[name].shape[1:])}, name
    yield "without tensor", {deepest: None}, deepest


def _last_of_each_kind(held: Mapping[str, Tensor]) -> list[str]:
    """Of each weight and bias that blocks repeat the last block's, and all that are in none."""
    weights = [name for name in held if _is_weight(name)]
    if not any(NUMBER.search(name) and held[name].ndim == 2 for name in weights):
        raise Failed("the checkpoint holds no matrix of a numbered block, so the kit cannot damage it")
    ordered = sorted(weights, key=lambda name: [int(number) for number in NUMBER.findall(name)])
    return list({NUMBER.sub(".", name): name for name in ordered}.values())


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".bias"))


def _refused(bench: Bench, case: Case, changed: Mapping[str, Tensor | None], what: str, name: str) -> None:
    folder = copied(bench, case.folder, "damaged")
    write(folder, {n: t for n, t in {**tensors(folder), **changed}.items() if t is not None})
    try:
        said = refusal(bench, folder, case.head, what)
    except Failed:
        if _is_sound(case, folder):
            return
        raise
    if not _is_named(bench, case, name, said):
        raise Failed(f"{what} is refused without its name ('{said[:150]}'); name the tensor")


def _is_sound(case: Case, folder: Path) -> bool:
    """Whether transformers finds every weight, as when one is tied to another; for its own types it can tell."""
    if not case.native:
        return False
    _, told = plain(folder, case.head, output_loading_info=True, ignore_mismatched_sizes=True)
    return not any(told[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))


def _is_named(bench: Bench, case: Case, name: str, said: str) -> bool:
    """Whether a tensor's name is said, or that of one it is tied to.

    Where the model has it under another name than the checkpoint, nobody can tell which will be said.
    """
    state = loaded(bench, case).model.state_dict(keep_vars=True)
    if name not in state:
        return name in said or not case.native or name in tensors(case.folder)
    return any(tensor is state[name] and other in said for other, tensor in state.items())


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names in its files."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write(folder: Path, held: Mapping[str, Tensor], names: tuple[str, ...] = ("model.safetensors",)) -> dict[str, str]:
    """The tensors are all that the checkpoint holds, dealt out to files of these names; which file has which."""
    from safetensors.torch import save_file

    for file in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        file.unlink()
    dealt = {tensor: names[number % len(names)] for number, tensor in enumerate(held)}
    for name in names:
        mine = {tensor: held[tensor].contiguous() for tensor, file in dealt.items() if file == name}
        save_file(mine, folder / name, {"format": "pt"})
    return dealt


def sharded(bench: Bench, case: Case) -> Path:
    """The checkpoint in two weight files with an index."""
    folder = copied(bench, case.folder, "sharded")
    held = tensors(folder)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    dealt = write(folder, held, names)
    size = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    change(folder / "model.safetensors.index.json", metadata={"total_size": size}, weight_map=dealt)
    return folder


def _unreadable(bench: Bench, case: Case, content: bytes | None) -> Path:
    """The checkpoint with a weights file that holds something else; None cuts its end off."""
    folder = copied(bench, case.folder, "unreadable")
    write(folder, tensors(folder))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    return folder


def check_shards_load(plugin: object, bench: Bench | None = None) -> None:
    """Weights in several files with an index load as in one."""
    import torch

    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        wanted = loaded(bench, case).model.state_dict()
        for name, tensor in load(bench, sharded(bench, case), case.head).model.state_dict().items():
            if not torch.equal(tensor, wanted[name]):
                raise Failed(f"'{name}' of {case} is another from two files; read all that the index names")


def check_other_types_are_refused(plugin: object, bench: Bench | None = None) -> None:
    """A checkpoint of a model type that it does not claim is refused by that type, before its weights are read."""
    bench = bench_of("model", plugin, bench)
    case = first(bench)
    claimed = declared_datum(bench.plugin, "model_types")
    stranger, head = next(pair for pair in STRANGERS if pair[0] not in claimed)
    lying = copied(bench, case.folder, "lying")
    change(lying / "config.json", model_type=stranger)
    unknown = copied(bench, case.folder, "unknown")
    change(unknown / "config.json", model_type="no-such-type")
    foreign = copied(bench, tiny_checkpoint(stranger, head), "foreign")
    there: dict[Path, str] = {foreign: stranger, lying: stranger, unknown: "no-such-type"}
    for folder, model_type in there.items():
        for intent in INTENTS[:2]:
            what = f"a checkpoint of type '{model_type}', which is none of {', '.join(claimed)},"
            said = refusal(bench, folder, case.head, what, intent)
            if model_type not in said:
                raise Failed(f"{what} is refused without its type ('{said[:150]}'); name it")
    change(lying / "config.json", model_type=None)
    refusal(bench, lying, case.head, "a config.json without a model_type")


STRANGERS = (("granite", "causal-lm"), ("ernie", "masked-lm"), ("mt5", "seq2seq-lm"))


def check_incomplete_folders_are_refused(plugin: object, bench: Bench | None = None) -> None:
    """A path that is no checkpoint, or lacks config, weights or tokenizer, is refused by name; no more is needed."""
    bench = bench_of("model", plugin, bench)
    case = first(bench)
    for what, folder in _incomplete(bench, case.folder):
        said = refusal(bench, folder, case.head, what)
        if folder.name not in said:
            raise Failed(f"{what} is refused without its path ('{said[:150]}'); name it")
        if what in WITHOUT_PLAN:
            refusal(bench, folder, case.head, f"for a plan, {what}", "plan")
    spare = copied(bench, case.source, "spare")
    for file in [file for pattern in NOT_NEEDED for file in spare.glob(pattern)]:
        file.unlink()
    change(spare / "tokenizer_config.json", chat_template=None)
    load(bench, spare, case.head)


NOT_NEEDED = ("generation_config.json", "*.jinja", "special_tokens_map.json", "README*")
WITHOUT_PLAN = ("a path where nothing is", "an empty folder", "a config.json that is no JSON")


def _incomplete(bench: Bench, sound: Path) -> Iterator[tuple[str, Path]]:
    yield "a path where nothing is", bench.place("nowhere")
    empty = bench.place("empty")
    empty.mkdir()
    yield "an empty folder", empty
    yield "a file instead of a folder", sound / "config.json"
    for what, patterns in LACKING.items():
        folder = copied(bench, sound, "lacking")
        for file in [file for pattern in patterns for file in folder.glob(pattern)]:
            file.unlink(missing_ok=True)
        yield what, folder
    broken = copied(bench, sound, "no-json")
    (broken / "config.json").write_text("{model_type: ", encoding="utf-8")
    yield "a config.json that is no JSON", broken


LACKING: Mapping[str, tuple[str, ...]] = {
    "a folder without config.json": ("config.json",),
    "a folder without weights": ("*.safetensors", "*.safetensors.index.json", "*.bin"),
    "a folder without a tokenizer": ("*token*", "*vocab*", "*merges*", "*.model", "*.tiktoken", "*.jinja"),
}


def check_loads_nothing_else(plugin: object, bench: Bench | None = None) -> None:
    """An adapter or other tensors that lie beside the weights change nothing, or are refused."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        wanted = loaded(bench, case)
        for what, folder in _with_company(bench, case, wanted):
            try:
                found = load(bench, folder, case.head).model
            except Refused:
                continue
            asked = questions(found, case.head)["a batch"]
            if distance(answer(found, asked), answer(wanted.model, asked)) > 0:
                raise Failed(
                    f"{what} beside the weights of {case} goes into the model unasked; leave it out, or refuse it"
                )


def _with_company(bench: Bench, case: Case, found: Loaded) -> Iterator[tuple[str, Path]]:
    """The checkpoint with files beside the weights that are not the model's."""
    from safetensors.torch import save_file

    held = tensors(case.folder)
    for name in ("consolidated.safetensors", "zz_optimizer.safetensors"):
        folder = copied(bench, case.folder, "company")
        save_file({key: tensor.clone() * 2 for key, tensor in held.items()}, folder / name, {"format": "pt"})
        yield name, folder
    folder = copied(bench, case.folder, "adapter")
    _add_adapter(folder, found)
    yield "an adapter", folder


def _add_adapter(folder: Path, found: Loaded) -> None:
    """The folder holds an adapter that doubles what the first query projection gives, as a library writes it."""
    import torch
    from safetensors.torch import save_file

    name = found.parts.get("attention.q", ("",))[0]
    rows = getattr(found.model.get_submodule(name), "weight", torch.ones(1, 1)).shape[0]
    doubled = {f"base_model.model.{name}.ia3_l": torch.full((rows, 1), 2.0)}
    save_file(doubled, folder / "adapter_model.safetensors", {"format": "pt"})
    fields = {"peft_type": "IA3", "target_modules": [name], "feedforward_modules": [], "inference_mode": True}
    change(folder / "adapter_config.json", **fields, base_model_name_or_path=str(folder))


def check_checkpoint_is_left_alone(plugin: object, bench: Bench | None = None) -> None:
    """Loading writes nothing, neither into the checkpoint nor where the run was started, and takes a relative path."""
    bench = bench_of("model", plugin, bench)
    for case in one_of_each_type(bench):
        _left_alone(bench, case)


def _left_alone(bench: Bench, case: Case) -> None:
    work, folder = bench.place("work"), copied(bench, case.source, "untouched")
    work.mkdir()
    before = _listing(folder)
    with contextlib.chdir(work):
        for intent in INTENTS:
            for path in (str(folder), f"../{folder.name}"):
                found = load(bench, path, case.head, intent=intent)
                if not Path(found.checkpoint).is_absolute() or not Path(found.checkpoint).samefile(folder):
                    raise Failed(
                        f"'{path}' was loaded and Loaded.checkpoint is '{found.checkpoint}'; give the full path"
                    )
        written = [str(file) for file in Path().iterdir()]
    changed = sorted(before.items() ^ _listing(folder).items())
    if changed:
        raise Failed(f"loading changes '{changed[0][0]}' in the checkpoint; keep what you make in memory")
    if written:
        raise Failed(f"loading writes '{written[0]}' where the run was started; keep what you make in memory")


def _listing(folder: Path) -> dict[str, str]:
    """What every file in a folder holds."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
