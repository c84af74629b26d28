"""Learning from which answers people prefer: DPO, IPO, ORPO, SimPO and KTO, with the base itself as the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Data, Example, Loaded, Probe, Run, hookimpl, options
from ftcore.batches import Order, collator, moved, sizes_of, token_row
from ftcore.hooks import Batch, Piece, Scoring
from ftcore.problems import BadRow, Problems
from ftcore.records import iter_records, weighted
from ftcore.rows import Reading, read
from ftcore.settings import Settings, dtype_of
from ftcore.templates import Template
from pydantic import Field

from ftcore_preference.answers import (
    BETTER,
    STRANGE,
    WORSE,
    Answers,
    Reader,
    collated,
    prompt_of,
    said,
    with_reference,
    with_strange_answers,
)
from ftcore_preference.figures import figures, lines
from ftcore_preference.losses import WITH_REFERENCE, Kind, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn

Collate = Callable[[Sequence[Answers]], Batch]
SAMPLE = Path(__file__).parent / "sample"
CAT = "Where is the cat?"


@options
class Preference:
    """Which of two answers is better, or whether one is good: rows of `chosen` and `rejected`, or with a `label`."""

    compares: ClassVar[bool] = True
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"prompt": CAT, "chosen": "The cat sits by the door.", "rejected": "No."}),
        Example({"instruction": "Add.", "input": "1 + 1", "output": ["It makes 2.", "That is too hard."]}),
        Example(
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hi!"},
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": "小狗在哪里？"},
                ],
                "chosen": {"role": "assistant", "content": "小狗在门口看着外面的雨，等雨停了再出去。"},
                "rejected": {"role": "assistant", "content": "不知道。"},
            }
        ),
    )

    loss: Annotated[
        Kind,
        Field(description="What compares answers; kto also takes rows that hold one answer and a label."),
    ] = "dpo"
    beta: Annotated[
        float | None,
        Field(
            gt=0,
            description="How much a difference counts: how near to stay to the reference, the weight of ORPO's odds, "
            "or SimPO's scale; 0.1 where none is given, and 2 for simpo.",
        ),
    ] = None
    gamma: Annotated[float, Field(ge=0, description="The margin that simpo asks for between two rewards.")] = 1.0
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5, description="Share of pairs that may be the wrong way round; for dpo, orpo and simpo."),
    ] = 0.0
    sft_weight: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of the better answer's mean cross-entropy beside the loss; orpo has it once already.",
        ),
    ] = 0.0
    desirable_weight: Annotated[float, Field(gt=0, description="Weight of good answers in kto.")] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0, description="Weight of bad answers in kto.")] = 1.0
    template: Annotated[
        str | None,
        Field(description="File with a Jinja chat template to use instead of the tokenizer's own."),
    ] = None
    show: Annotated[
        tuple[str, ...], Field(description="Questions to answer before and after training; separated by commas.")
    ] = ()

    @property
    def objective(self) -> Objective:
        """The loss with its numbers."""
        beta = self.beta or (2.0 if self.loss == "simpo" else 0.1)
        weights = (self.sft_weight, self.desirable_weight, self.undesirable_weight)
        return Objective(self.loss, beta, self.gamma, self.label_smoothing, *weights)

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Each answer with its prompt, tokenised and masked; what the base makes of them where the loss asks for it."""
        template = Template.of(loaded, self.template, run.say)
        reader = Reader(template, min(run.settings.max_length, loaded.max_positions))
        encode = reader.any if run.intent == "predict" else reader.judged if self.loss == "kto" else reader.pairs
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        rows = read(run, loaded, Reading(self, encode, Answers, sample, Answers.counted))
        collate = partial(collated, collator(loaded, run.settings))
        train, held = (self._beside(run, loaded, side, collate, reader.length) for side in (rows.train, rows.eval))
        questions = self.show or (() if rows.built_in else _questions(run))
        return Data(
            train=train,
            eval=held,
            collate=collate,
            loss=partial(compared, self.objective),
            counts=rows.counts,
            sample=_shown(template, rows.train[0]) if len(rows.train) else (),
            probes=tuple(Probe(text, tuple(template.question(text))) for text in questions),
            scoring=Scoring(partial(worths, self.objective, collate), lines, figures),
            shares=rows.shares,
        )

    def _beside(
        self, run: Run, loaded: Loaded, rows: Sequence[Answers], collate: Collate, length: int
    ) -> Sequence[Answers]:
        """The rows with all that the loss wants to know of them."""
        if self.loss == "kto" and run.intent != "predict":
            rows = with_strange_answers(rows, length, run.settings.seed)
        if self.loss not in WITH_REFERENCE or run.intent == "plan" or not len(rows):
            return rows
        run.say(f"the base answers {len(rows)} rows first: its log-probabilities are the reference of {self.loss}")
        settings = run.settings
        order = Order(sizes_of(rows), settings.seed, settings.batch_size, settings.batch_tokens, 1)
        with _in_precision(settings, loaded.model):
            return with_reference(rows, collate, loaded.model, order)


def compared(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    """The sum of what the pairs, or the judged answers, of a batch cost."""
    answers, worth = said(model, batch), batch.targets["worth"]
    better, worse = answers[worth == BETTER], answers[worth == WORSE]
    if objective.kind == "kto":
        return objective.of_judged(better, worse, answers[worth == STRANGE]).sum()
    return objective.of_pairs(better, worse).sum()


def worths(objective: Objective, collate: Collate, model: nn.Module, rows: Sequence[Answers]) -> list[list[float]]:
    """The reward of each answer of each row."""
    batch = moved(collate(rows), next(model.parameters()).device)
    rewards = iter(objective.rewards(said(model, batch)).tolist())
    every = [[next(rewards) for _ in row.lengths] for row in rows]
    return [found[: len(row.texts)] for found, row in zip(every, rows, strict=True)]


def _shown(template: Template, row: Answers) -> tuple[Piece, ...]:
    """The row's documents in pieces, each with whose answer it teaches."""
    names = {BETTER: "chosen", WORSE: "rejected"}
    shown = []
    for (ids, labels), worth in zip(row.documents, row.worth, strict=True):
        document = token_row(ids.tolist(), labels.tolist(), row.place)
        shown += [piece._replace(role=names[worth]) for piece in template.pieces(document)]
    return tuple(shown)


def _questions(run: Run) -> tuple[str, ...]:
    """The first question that has nothing before it, for a run that shows answers."""
    specs = (*run.settings.eval_data, *run.settings.data) if run.intent in ("train", "plan") else ()
    for record in iter_records([weighted(spec)[0] for spec in specs], Problems()):
        with suppress(BadRow):
            prompt = prompt_of(record)
            if len(prompt) == 1:
                return (prompt[0].content,)
    return ()


def _in_precision(settings: Settings, model: nn.Module) -> AbstractContextManager[Any]:
    """The forward pass as training makes it."""
    import torch

    kind = dtype_of(settings)
    device = next(model.parameters()).device.type
    return nullcontext() if kind == torch.float32 else torch.autocast(device, dtype=kind)
