"""What a family promises about loading: the checkpoint's own weights, as asked, and nothing else changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Refused
from ftcore.hooks import Loaded
from ftcore.seeds import seeded
from ftcore.settings import Settings, dtype_of
from ftcore.testing import fresh
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import (
    Case,
    answer,
    cases,
    change,
    copied,
    distance,
    first,
    load,
    loaded,
    other_shape,
    plain,
    plain_cases,
    questions,
    referred,
)

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 5e-6  # of the largest logit: two ways of attention differ by 1e-6, a wrong epsilon of a norm by 1e-5


def check_loads_its_checkpoint(plugin: object, bench: Bench | None = None) -> None:
    """A checkpoint of its first model type and head loads, and the answer says where it came from."""
    from torch import nn

    bench = bench_of("model", plugin, bench)
    case = first(bench)
    found: Any = _loaded(bench, case)
    if not isinstance(found, Loaded) or not isinstance(found.model, nn.Module):
        raise Failed(f"load_model answers {type(found).__name__}; return an ftcore.Loaded that holds the model")
    if any(parameter.is_meta for parameter in found.model.parameters()):
        raise Failed(f"the model of {case} is on the meta device, without weights; load them, but for intent 'plan'")
    place = Path(found.checkpoint)
    if not (place.is_absolute() and place.is_dir() and place.samefile(case.folder)):
        raise Failed(f"Loaded.checkpoint is '{found.checkpoint}' and '{case.folder}' was loaded; give its full path")
    try:
        answer(found.model, questions(found.model, case.head)["a batch"])
    except Exception as fault:
        raise Failed(f"{case} loads and cannot answer ({type(fault).__name__}: {fault}); load what can") from fault
    if found.tokenizer is None:
        raise Failed("Loaded.tokenizer is None though the checkpoint has one; only a plan may do without")
    if not isinstance(found.lr_scale, int | float) or not 0 < found.lr_scale < 1000:
        raise Failed(f"Loaded.lr_scale is {found.lr_scale!r}; it multiplies a learning rate: leave it at 1.0")


def _loaded(bench: Bench, case: Case) -> Loaded:
    """The case loaded; Failed with the reason when it is not."""
    try:
        return loaded(bench, case)
    except Exception as fault:
        said = f"{type(fault).__name__}: {fault}" if not isinstance(fault, Refused) else str(fault)
        raise Failed(f"a sound checkpoint of {case} does not load: {said}") from fault


def check_keeps_no_state(plugin: object, bench: Bench | None = None) -> None:
    """Two loads share nothing: neither what is done to the first nor what is loaded in between shows in the other."""
    bench = bench_of("model", plugin, bench)
    case = first(bench)
    asked = questions(loaded(bench, case).model, case.head)["a batch"]
    one = load(bench, case.folder, case.head)
    before, parts = answer(one.model, asked), dict(one.parts)
    two = _another(bench, case)
    if two.model is one.model or one.tokenizer is two.tokenizer:
        raise Failed("two checkpoints loaded one after the other give the same object; keep nothing between loads")
    if distance(answer(one.model, asked), before) > 0:
        raise Failed("a model answers differently once another checkpoint was loaded; keep nothing between loads")
    _spoil(one)
    for again in (load(bench, case.folder, case.head), load(bench, case.folder, case.head, plugin=bench.fresh())):
        if distance(answer(again.model, asked), before) > 0:
            raise Failed(
                "the same checkpoint loaded a second time answers differently once the first model was trained or "
                "another loaded; keep no model or weights between loads"
            )
        if again.tokenizer is None or getattr(again.tokenizer, "chat_template", None) == "spoilt":
            raise Failed("the tokenizer of a second load has what was changed in the first; read it anew each time")
        if dict(again.parts) != parts:
            raise Failed("the same checkpoint loaded a second time has other parts; keep nothing between loads")


def _another(bench: Bench, case: Case) -> Loaded:
    """A load of other weights in between."""
    if not case.made:
        return load(bench, copied(bench, case.folder, "another"), case.head)
    return load(bench, other_shape(bench, case.model_type, case.head).folder, case.head)


def _spoil(one: Loaded) -> None:
    """What training may do to a model and a task to a tokenizer."""
    import torch

    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.zero_()
    if one.tokenizer is not None:
        one.tokenizer.chat_template = "spoilt"
    if isinstance(one.parts, dict):
        one.parts.clear()


def check_loads_each_head(plugin: object, bench: Bench | None = None) -> None:
    """Every head that it claims loads from a checkpoint of every model type that it claims, in transformers' class."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        model = _loaded(bench, case).model
        if not case.native:
            continue
        wanted, found = referred(bench, case).name, [cls.__name__ for cls in type(model).__mro__]
        if wanted not in found:
            raise Failed(f"{case} loads as {found[0]}, and transformers has {wanted} for it; load with the run's head")


def check_weights_are_the_checkpoints_own(plugin: object, bench: Bench | None = None) -> None:
    """Every weight is the checkpoint's, bit for bit, under the name that transformers gives it."""
    bench = bench_of("model", plugin, bench)
    for case in (case for case in cases(bench) if case.native):
        own = referred(bench, case).weights
        same_weights(loaded(bench, case).model.state_dict(), own, str(case), "load weights as they are")


def same_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, advice: str) -> None:
    """Both have the same tensors, bit for bit; Failed with the first that differs and the advice."""
    import torch

    odd = sorted(found.keys() ^ wanted.keys())
    if odd:
        raise Failed(f"the model of {what} {'has' if odd[0] in found else 'lacks'} tensor '{odd[0]}'; {advice}")
    for name, tensor in wanted.items():
        if found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
            raise Failed(f"tensor '{name}' of {what} is another; {advice}")


def check_answers_as_the_original(plugin: object, bench: Bench | None = None) -> None:
    """It answers as transformers' own from_pretrained does, also to padded batches and given positions.

    A checkpoint that transformers does not load itself is compared with the `input_ids` and `logits` of an
    `expected.safetensors` beside it, made with the original code.
    """
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        model = loaded(bench, case).model
        if case.expected is not None:
            _answers_as_expected(model, case.expected, case)
        elif case.native:
            known = referred(bench, case)
            for name, inputs in known.asked.items():
                _close(distance(answer(model, inputs), known.answers[name]), name, case)
    for case in (case for case in plain_cases(bench) if case.native):
        asked = questions(loaded(bench, case).model, case.head)["a batch"]
        models = (load(bench, case.folder, case.head).model, plain(case.folder, case.head))
        _close(distance(*(_in_training(model, asked) for model in models)), "a batch, in training,", case)


def _in_training(model: Any, asked: Mapping[str, Any]) -> Tensor:
    """What a model answers while it trains, which may drop some of what it knows."""
    with seeded(0, "dropout"):
        return answer(model.train(), asked)


def _close(apart: float, question: str, case: Case) -> None:
    if not apart <= EXACT:
        raise Failed(
            f"{case} answers {question} otherwise than the original, by {apart:.1e} of the largest logit; "
            "its config, attention or weights are not the checkpoint's"
        )


def _answers_as_expected(model: Any, file: Path, case: Case) -> None:
    from safetensors.torch import load_file

    held = load_file(file)
    if not {"input_ids", "logits"} <= held.keys():
        raise Failed(f"'{file}' holds no input_ids and logits of the original; write them, or take the file out")
    apart = distance(answer(model, {"input_ids": held["input_ids"].long()}), held["logits"].float())
    _close(apart, "what expected.safetensors asks", case)


def check_transformers_stays_as_it_was(plugin: object, bench: Bench | None = None) -> None:
    """Once it has loaded something, plain transformers answers as in a process that never saw it."""
    bench = bench_of("model", plugin, bench)
    for case in (case for case in cases(bench) if case.native):
        loaded(bench, case)
        own, wanted = plain(case.folder, case.head).eval(), referred(bench, case)
        if type(own).__name__ != wanted.name:
            raise Failed(f"after a load transformers makes {type(own).__name__} of {case}; do not register over it")
        for name, inputs in wanted.asked.items():
            if distance(answer(own, inputs), wanted.answers[name]) > EXACT:
                raise Failed(f"after a load plain transformers answers {name} of {case} otherwise; patch nothing in it")


def check_loads_in_a_fresh_process(plugin: object, bench: Bench | None = None) -> None:
    """A process that has done nothing yet loads the same model."""
    import torch

    bench = bench_of("model", plugin, bench)
    case = first(bench)
    there = fresh.call(
        "ftcore.testing.models.loading:seen_there",
        described=fresh.reference(bench.plugin),
        folder=str(case.folder),
        head=case.head,
    )
    here = _seen(loaded(bench, case), case.head)
    if there[0] != here[0]:
        raise Failed(f"{case} has other weights or parts in a fresh process; rely on nothing that ran before")
    if distance(torch.tensor(there[1]), torch.tensor(here[1])) > EXACT:
        raise Failed(f"{case} answers otherwise in a fresh process; rely on nothing that ran before")


def seen_there(described: Mapping[str, Any], folder: str, head: str) -> tuple[str, list[float]]:
    """What identifies the model that the described plugin loads here."""
    bench = Bench("model", fresh.rebuilt(described))
    return _seen(load(bench, folder, head), head)


def _seen(found: Loaded, head: str) -> tuple[str, list[float]]:
    """A digest of parts and weights, and some logits."""
    hashed = hashlib.sha256(json.dumps({role: list(names) for role, names in found.parts.items()}).encode())
    for name, tensor in found.model.state_dict().items():
        hashed.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    logits = answer(found.model, questions(found.model, head)["a single token"])
    return hashed.hexdigest(), logits.flatten().tolist()


def check_precision_is_as_asked(plugin: object, bench: Bench | None = None) -> None:
    """Weights come in the precision that the run asks for, whatever the checkpoint is stored in, rounded once."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _in_every_precision(bench, case)


def _in_every_precision(bench: Bench, case: Case) -> None:
    import torch

    stored = {"as it is": case.folder, "stored in bfloat16": _in_bfloat16(bench, case)}
    for how, folder in stored.items():
        for precision in ("auto", "fp32", "bf16", "fp16"):
            _as_asked(bench, replace(case, folder=folder, shape=f" {how}"), precision)
    planned = _kinds(load(bench, case.folder, case.head, intent="plan", precision="bf16").model)
    if planned != _kinds(load(bench, case.folder, case.head, precision="bf16").model):
        raise Failed(f"a plan on {case} has other dtypes than a run when --precision is bf16; pass dtype there too")
    exact = loaded(bench, case).model.state_dict()
    for name, tensor in load(bench, case.folder, case.head, precision="bf16").model.state_dict().items():
        if not torch.equal(tensor, exact[name].to(tensor.dtype)):
            raise Failed(
                f"tensor '{name}' is not the checkpoint's rounded to {tensor.dtype}; let the loader convert it"
            )


def _as_asked(bench: Bench, case: Case, precision: Any) -> None:
    """Each weight has the dtype that transformers gives it when asked for this precision."""
    wanted = dtype_of(Settings(precision=precision))
    model: Any = load(bench, case.folder, case.head, precision=precision).model
    own = _kinds(plain(case.folder, case.head, dtype=wanted)) if case.native else {}
    kinds = {"the embedding": wanted, **own}
    found = {"the embedding": model.get_input_embeddings().weight.dtype, **_kinds(model)}
    for name, kind in kinds.items():
        if found.get(name, kind) != kind:
            raise Failed(
                f"{case} loads {name} in {found[name]} when --precision is {precision}, which means {kind}; "
                "pass dtype=ftcore.settings.dtype_of(run.settings) to the loader"
            )


def _kinds(model: Any) -> dict[str, Any]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def _in_bfloat16(bench: Bench, case: Case) -> Path:
    """The same checkpoint, stored in half the bytes."""
    from safetensors.torch import load_file, save_file

    folder = copied(bench, case.folder, "bfloat16")
    for file in folder.glob("model*.safetensors"):
        halved = {name: t.bfloat16() if t.is_floating_point() else t for name, t in load_file(file).items()}
        save_file(halved, file, {"format": "pt"})
    change(folder / "config.json", **{"torch_dtype" if "torch_dtype" in case.config else "dtype": "bfloat16"})
    return folder


def check_keywords_reach_the_model(plugin: object, bench: Bench | None = None) -> None:
    """Keywords that other plugins want given to the loader reach the model, and an unknown one is an error."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _takes_keywords(bench, case)


def _takes_keywords(bench: Bench, case: Case) -> None:
    import torch

    found = load(bench, case.folder, case.head, wanted={"attn_implementation": "eager"}).model
    used = getattr(found.config, "_attn_implementation", "eager")
    if used != "eager":
        raise Failed(f"load_kwargs wanted attn_implementation 'eager' and the model has '{used}'; pass kwargs on")
    found = load(bench, case.folder, case.head, wanted={"dtype": torch.bfloat16}).model
    kind = found.get_input_embeddings().weight.dtype  # type: ignore[operator]
    if kind != torch.bfloat16:
        raise Failed(f"load_kwargs wanted dtype bfloat16 and the weights are {kind}; lay kwargs over your own keywords")
    if _loads(bench, case, {"no_such_keyword_of_any_loader": 1}):
        raise Failed("a keyword that no loader has is taken without a word; pass every keyword on, so that it is heard")


def _loads(bench: Bench, case: Case, wanted: Mapping[str, Any]) -> bool:
    try:
        load(bench, case.folder, case.head, wanted=wanted)
    except Exception:
        return False
    return True
