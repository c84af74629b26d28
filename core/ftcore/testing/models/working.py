"""What a family promises at work: rows that do not see each other, gradients, generation, a whole run and its merge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import ftcore
from ftcore.adapters import select
from ftcore.batches import TokenRow, pack, pad
from ftcore.declaring import options
from ftcore.errors import Refused
from ftcore.hooks import Batch, Data, Loaded, Run, hookimpl
from ftcore.seeds import seeded
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import (
    GENERATES,
    Case,
    answer,
    cases,
    distance,
    load,
    loaded,
    plain,
    plain_cases,
    questions,
    vocabulary,
)
from ftcore.testing.models.files import tensors
from ftcore.testing.stage import Recital, recital_row

if TYPE_CHECKING:
    from torch import Tensor, nn

ROUNDING = 2e-5  # of the largest number: the same sums in another order and shape, measured below 3e-6

HALVED = 0.1  # in bfloat16, which rounds to 4e-3; a row that sees another is off by about 1


def check_rows_do_not_see_each_other(plugin: object, bench: Bench | None = None) -> None:
    """A row's answers are the same alone, padded among others, and laid end to end with others.

    A family that cannot lay rows end to end says why in `unpackable`.
    """
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        _reason_is_a_sentence(found.unpackable)
        if case.head != "causal-lm":
            _beside_padding(found.model, case)
            continue
        _in_company(found, str(case), ROUNDING)
        halved = load(bench, case.folder, case.head, precision="bf16")
        _in_company(halved, f"{case}, in bfloat16,", HALVED)


def _reason_is_a_sentence(unpackable: Any) -> None:
    if not isinstance(unpackable, str) or (unpackable and len(unpackable.split()) < 3):
        raise Failed(f"Loaded.unpackable is {unpackable!r}; say in words why rows cannot be laid end to end")


def _in_company(found: Loaded, case: str, tolerance: float) -> None:
    rows = [recital_row(number, vocabulary(found.model)) for number in (3, 1, 2, 0)]
    ways: dict[str, Callable[[Sequence[TokenRow]], Batch]] = {"padded": lambda rows: pad(rows, 0)}
    if not found.unpackable:
        ways["laid end to end"] = pack
    alone = [_alone(found.model, row) for row in rows]
    for way, collate in ways.items():
        given = _answered(found.model, collate(rows), rows, f"{case} cannot answer rows {way}", ADVICE[way])
        for row, wanted, answers in zip(rows, alone, given, strict=True):
            if distance(answers, wanted) > tolerance:
                raise Failed(
                    f"{case} answers a row of {row.size} tokens otherwise when it is {way} with others, by "
                    f"{distance(answers, wanted):.1e}; {ADVICE[way]}"
                )


ADVICE = {
    "padded": "its forward must heed attention_mask and logits_to_keep",
    "laid end to end": "load with attn_implementation=ftcore.attention.register(), or say why not in 'unpackable'",
}


def _alone(model: Any, row: TokenRow) -> Tensor:
    """The logits at every supervised position of a row by itself."""
    import torch

    logits = answer(model, {"input_ids": torch.tensor(row.input_ids[None].astype("int64"))})[0]
    return logits[torch.from_numpy(row.targets != -100)]


def _answered(model: Any, batch: Batch, rows: Sequence[TokenRow], what: str, advice: str) -> Sequence[Tensor]:
    """The logits at every supervised position of each row of a batch."""
    import torch

    try:
        logits = answer(model, {**batch.inputs, "use_cache": False})
    except Exception as fault:
        raise Failed(f"{what} ({type(fault).__name__}: {fault}); {advice}") from fault
    kept = batch.targets["labels"].reshape(logits.shape[0], -1) != -100
    if logits.shape[1] != kept.shape[1]:
        raise Failed(f"asked for the logits of {kept.shape[1]} positions, the model gives those of {logits.shape[1]}; "
                     "its forward must heed logits_to_keep")  # fmt: skip
    return torch.split(logits[kept], [row.supervised for row in rows])


def _beside_padding(model: Any, case: Case) -> None:
    """A row with an attention mask answers as without the padding."""
    asked = questions(model, case.head)["a batch padded on the right"]
    together = answer(model, asked)
    for number, size in enumerate(asked["attention_mask"].sum(1).tolist()):
        row = {name: tensor[number : number + 1] for name, tensor in asked.items() if name != "attention_mask"}
        row["input_ids"] = row["input_ids"][:, :size]
        apart = answer(model, row)[0]
        given = together[number]
        given = given[: len(apart)] if apart.ndim > 1 else given
        if distance(given, apart) > ROUNDING:
            raise Failed(f"{case} answers a row of {size} tokens otherwise beside longer ones, by "
                         f"{distance(given, apart):.1e}; its forward must heed attention_mask")  # fmt: skip


def check_activations_can_be_recomputed(plugin: object, bench: Bench | None = None) -> None:
    """With gradient checkpointing every block computes twice and the gradients are the same."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        stored = _gradients(bench, case, recomputed=False)
        again = _gradients(bench, case, recomputed=True)
        for name, gradient in stored.items():
            if name not in again or distance(again[name], gradient) > ROUNDING:
                raise Failed(
                    f"the gradient of '{name}' in {case} is another with gradient checkpointing; pass every keyword on "
                    "to the blocks, and let transformers checkpoint them"
                )


def _gradients(bench: Bench, case: Case, *, recomputed: bool) -> dict[str, Tensor]:
    found = load(bench, case.folder, case.head, gradient_checkpointing=recomputed)
    model: Any = found.model.train().requires_grad_(True)
    counts: dict[str, int] = {}
    for block in found.parts["block"]:
        norm = next(name for name in found.parts["norm"] if name.startswith(f"{block}."))
        model.get_submodule(norm).register_forward_hook(_counting(counts, block))
    data = Echo(head=case.head).prepare_data(Run(_settings(), "train", case.head), found)
    with seeded(0, "dropout"):
        data.loss(model, data.collate(data.train[:3])).backward()
    idle = [block for block, count in counts.items() if recomputed and count < 2]
    if idle:
        raise Failed(f"with gradient checkpointing the block '{idle[0]}' is not recomputed, so that it saves no memory")
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _settings() -> Any:
    from ftcore.settings import Settings

    return Settings()


def _counting(counts: dict[str, int], block: str) -> Callable[..., None]:
    def count(*ignored: object) -> None:
        counts[block] = counts.get(block, 0) + 1

    return count


def check_generates_alike_with_a_cache(plugin: object, bench: Bench | None = None) -> None:
    """Generating with keys and values kept says what it says when all is computed anew for each token."""
    import torch

    bench = bench_of("model", plugin, bench)
    for case in (case for case in cases(bench) if case.head in GENERATES):
        model: Any = loaded(bench, case).model
        asked = questions(model, case.head)["a batch padded on the left"]
        given = {name: asked[name] for name in ("input_ids", "attention_mask")}
        said = {
            cache: model.generate(
                **given, max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )
            for cache in (True, False)
        }  # fmt: skip
        for step, (kept, anew) in enumerate(zip(said[True].logits, said[False].logits, strict=True), start=1):
            if distance(kept, anew) > ROUNDING:
                raise Failed(f"{case} predicts token {step} of an answer otherwise with a cache than without, by "
                             f"{distance(kept, anew):.1e}; its attention must heed the cache and the mask")  # fmt: skip
        if not torch.equal(said[True].sequences, said[False].sequences):
            raise Failed(f"{case} says something else with a cache than without")


@options
class Tuner:
    """The kit's method of parts: the weights that some roles name train as they are."""

    parts: Annotated[tuple[str, ...], Field(description="Roles whose weights train.")] = ("attention", "mlp", "norm")

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with these weights trainable."""
        for name in select(loaded.parts, self.parts):
            model.get_submodule(name).requires_grad_(True)
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is: its weights are the trained ones."""
        return model


@options
class Echo:
    """The kit's task for any head: numbers to go on with, to fill in, or to sort into two classes."""

    head: Annotated[str, Field(description="The head it is for.")]

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Rows as the kit's own task has them, with labels that the head takes."""
        data = Recital().prepare_data(run, loaded)
        if self.head == "causal-lm":
            return data

        def collate(rows: Sequence[TokenRow]) -> Batch:
            return _labelled(pad(rows, 0), rows, self.head)

        return replace(data, collate=collate, loss=_own_loss)


def _labelled(batch: Batch, rows: Sequence[TokenRow], head: str) -> Batch:
    """The padded rows with labels of the head's own kind among the inputs."""
    import torch

    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    ids, first = inputs["input_ids"], torch.zeros(len(rows), dtype=torch.long)
    labels: Mapping[str, Mapping[str, Tensor]] = {
        "seq2seq-lm": {"labels": ids},
        "masked-lm": {"labels": ids},
        "token-classification": {"labels": ids % 2},
        "sequence-classification": {"labels": ids[:, 0] % 2},
        "question-answering": {"start_positions": first, "end_positions": first + 2},
    }
    return Batch({**inputs, **labels[head]}, {}, float(len(rows)), batch.tokens, batch.places)


def _own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that transformers computes from the labels, times what it is a mean of."""
    loss: Tensor = model(**batch.inputs).loss * batch.weight
    return loss


@dataclass(frozen=True)
class Trained:
    """A finished run on the family, and the plugins it is reopened with."""

    output: Path
    plugins: Mapping[str, Any]


def trained(bench: Bench, case: Case) -> Trained:
    """A run of four steps."""
    return bench.once(("trained", case), lambda: _trained(bench, case, bench.place("run")))


def _trained(bench: Bench, case: Case, output: Path) -> Trained:
    there = {role.partition(".")[0] for role in loaded(bench, case).parts}
    method = Tuner(parts=tuple(part for part in Tuner().parts if part in there))
    plugins: dict[str, Any] = {"method": method, "task": Echo(head=case.head), "model": bench.plugin}
    ftcore.run(
        **plugins, checkpoint=case.folder, output=output, steps=4, batch_size=4, lr=1e-2, save_every=2, keep=2,
        log_every=1,
    )  # fmt: skip
    return Trained(output, plugins)


def check_a_run_trains_and_resumes(plugin: object, bench: Bench | None = None) -> None:
    """A run trains the weights that roles name, all of them, and goes on after a stop as if there had been none."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _trains_and_resumes(bench, case)


def _trains_and_resumes(bench: Bench, case: Case) -> None:
    import torch
    from safetensors.torch import load_file

    run, base = trained(bench, case), loaded(bench, case)
    adapter = load_file(run.output / "adapter_model.safetensors")
    before = base.model.state_dict()
    for name in select(base.parts, run.plugins["method"].parts):
        weight = next(key for key in (f"{name}.weight", *before) if key.startswith(f"{name}."))
        if weight not in adapter or torch.equal(adapter[weight].float(), before[weight].float()):
            raise Failed(f"a run that trains attention, mlp and norm leaves '{weight}' as it was")
    stopped = Path(shutil.copytree(run.output, bench.place("stopped")))
    for file in stopped.iterdir():
        if file.is_file() and file.name not in ("ftcore.json", "metrics.jsonl"):
            file.unlink()
    shutil.rmtree(max((stopped / "checkpoints").glob("step-*")))
    _trained(bench, case, stopped)
    for name, tensor in load_file(stopped / "adapter_model.safetensors").items():
        if not torch.equal(tensor, adapter[name]):
            raise Failed(f"'{name}' is another after a run that was stopped and resumed; load the same model each time")


def check_an_attached_run_answers_as_trained(plugin: object, bench: Bench | None = None) -> None:
    """A finished run opened again answers as its base does with the trained weights put in."""
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _answers_as_trained(bench, case)


def _answers_as_trained(bench: Bench, case: Case) -> None:
    import torch
    from safetensors.torch import load_file

    run, model = trained(bench, case), load(bench, case.folder, case.head).model
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in load_file(run.output / "adapter_model.safetensors").items():
            state[name].copy_(tensor)
    attached = ftcore.attach(run.output, **run.plugins).model
    asked = questions(model, case.head)["a batch padded on the right"]
    if distance(answer(attached, asked), answer(model, asked)) > 0:
        raise Failed(f"a run on {case} answers otherwise once opened again; the intent may not change the model")


def check_merges_into_a_plain_checkpoint(plugin: object, bench: Bench | None = None) -> None:
    """A merged run is a checkpoint that plain transformers loads and that answers as the adapted model.

    One of a class that transformers does not have is loaded by the family again.
    """
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _merges(bench, case)


def _merged(bench: Bench, case: Case) -> Path:
    """The run of the case merged in memory."""
    run = trained(bench, case)
    return bench.once(("merged", case), lambda: ftcore.merge(run.output, output=bench.place("merged"), **run.plugins))


def _merges(bench: Bench, case: Case) -> None:
    run = trained(bench, case)
    attached, folder = ftcore.attach(run.output, **run.plugins), _merged(bench, case)
    asked = questions(attached.model, case.head)
    known = type(attached.model).__module__.startswith("transformers.")
    merged = plain(folder, case.head) if known else load(bench, folder, case.head).model
    for name, inputs in asked.items():
        apart = distance(answer(merged, inputs), answer(attached.model, inputs))
        if not apart <= ROUNDING:
            raise Failed(
                f"the merged checkpoint of {case} answers {name} otherwise than the adapted model, by {apart:.1e}; "
                "what save_pretrained writes must load again as it is"
            )


def check_merges_by_blocks(plugin: object, bench: Bench | None = None) -> None:
    """Merging block by block gives the tensors that merging in memory gives.

    A family whose models name tensors otherwise than the checkpoint does is refused it.
    """
    bench = bench_of("model", plugin, bench)
    for case in plain_cases(bench):
        _merges_by_blocks(bench, case)


def _merges_by_blocks(bench: Bench, case: Case) -> None:
    import torch

    run, whole = trained(bench, case), tensors(_merged(bench, case))
    try:
        blocks = tensors(ftcore.merge(run.output, output=bench.place("blocks"), stream=True, **run.plugins))
    except Refused:
        if tensors(case.folder).keys() <= loaded(bench, case).model.state_dict().keys():
            raise
        return
    odd = sorted(whole.keys() ^ blocks.keys())
    if odd:
        raise Failed(f"merged by blocks, {case} has other tensors than merged in memory, for one '{odd[0]}'")
    for name, tensor in whole.items():
        if not torch.equal(tensor, blocks[name]):
            raise Failed(f"merged by blocks, tensor '{name}' of {case} is another; the role 'block' or a plan is wrong")
