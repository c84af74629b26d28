"""A reward model: a head of one number that scores the better of two answers higher (Ouyang et al. 2022, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Data, Example, Loaded, Refused, Run, hookimpl, options
from ftcore.batches import moved
from ftcore.hooks import Batch, Piece, Scoring
from ftcore.rows import Reading, read
from ftcore.templates import Template
from pydantic import Field

from ftcore_reward.answers import Answers, Encoder, Reader, padder, rendered, separated

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLE = Path(__file__).parent / "sample"
CAT = "Where is the cat?"


@options
class Reward:
    """Which of two answers is better, learned as a score for each: rows of `chosen` and `rejected`."""

    head: ClassVar[str] = "sequence-classification"
    compares: ClassVar[bool] = True
    unpackable: ClassVar[str] = "a score is read where a row of the batch ends"
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

    margin: Annotated[
        str | None,
        Field(description="Column with a number: by how much the chosen answer's score is to be above the other's."),
    ] = None
    center: Annotated[
        float,
        Field(ge=0, description="Weight of the square of both scores' sum, which keeps scores around zero."),
    ] = 0.0
    template: Annotated[
        str | None,
        Field(description="File with a Jinja chat template to use instead of the tokenizer's own."),
    ] = None

    @hookimpl
    def load_kwargs(self) -> Mapping[str, Any]:
        """The head has one number."""
        return {"num_labels": 1}

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Each answer with its prompt as tokens; rows that cannot be compared are refused or counted."""
        encode = self._encoder(run, loaded, min(run.settings.max_length, loaded.max_positions))
        reader = Reader(encode, self.margin)
        sample = SAMPLE / "train.jsonl", SAMPLE / "heldout.jsonl"
        reading = Reading(
            self, reader.any if run.intent == "predict" else reader.pairs, Answers, sample, Answers.counted
        )
        rows = read(run, loaded, reading)
        config: Any = loaded.model.config
        collate = padder(config.pad_token_id or 0)
        return Data(
            train=rows.train,
            eval=rows.eval,
            collate=collate,
            loss=partial(compared, self.center),
            counts=rows.counts,
            sample=_shown(loaded.tokenizer, rows.train[0]) if len(rows.train) else (),
            scoring=Scoring(partial(scores, collate), lines, figures),
            shares=rows.shares,
        )

    def _encoder(self, run: Run, loaded: Loaded, length: int) -> Encoder:
        """A tokenizer that knows pairs of texts and no chats reads a pair; any other has, or gets, a template."""
        tokenizer: Any = loaded.tokenizer
        if tokenizer is None:
            raise Refused(f"the checkpoint '{loaded.checkpoint}' has no tokenizer; add its tokenizer.json")
        if self.template is None and not tokenizer.chat_template and tokenizer.sep_token is not None:
            return separated(tokenizer, length)
        return rendered(Template.of(loaded, self.template, run.say), length)


def read_scores(model: nn.Module, batch: Batch) -> Tensor:
    """The score of each answer of a batch, in float32."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits[:, 0].float()


def compared(center: float, model: nn.Module, batch: Batch) -> Tensor:
    """The sum of what the pairs of a batch cost: minus the log-likelihood of each preference (Bradley and Terry)."""
    from torch.nn.functional import logsigmoid

    better, worse = read_scores(model, batch).reshape(-1, 2).unbind(1)
    cost = -logsigmoid(better - worse - batch.targets["margin"]) + center * (better + worse) ** 2
    return cost[batch.targets["pairs"] > 0].sum()


def scores(
    collate: Callable[[Sequence[Answers]], Batch], model: nn.Module, rows: Sequence[Answers]
) -> list[list[float]]:
    """The score of each answer of each row."""
    batch = moved(collate(rows), next(model.parameters()).device)
    found = iter(read_scores(model, batch).tolist())
    return [[next(found) for _ in row.lengths] for row in rows]


def lines(rows: Sequence[Answers], answers: Sequence[Sequence[float]]) -> list[Mapping[str, Any]]:
    """An object for each record: both answers with their scores and the one preferred, or one answer with its score."""
    return [_line(row.texts, found) for row, found in zip(rows, answers, strict=True)]


def _line(texts: Sequence[str], found: Sequence[float]) -> Mapping[str, Any]:
    if len(texts) == 1:
        return {"answer": texts[0], "prediction": found[0]}
    better, worse = found
    preferred = "neither" if better == worse else "chosen" if better > worse else "rejected"
    told = {"chosen": texts[0], "rejected": texts[1], "score_chosen": better, "score_rejected": worse}
    return {**told, "prediction": preferred}


def figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How often the better answer has the higher score (a tie counts half), by how much, and both mean scores."""
    pairs = [(line["score_chosen"], line["score_rejected"]) for line in lines if "score_chosen" in line]
    if not pairs:
        return {}
    won = sum((better > worse) + 0.5 * (better == worse) for better, worse in pairs)
    means = [sum(side) / len(pairs) for side in zip(*pairs, strict=True)]
    return {
        "accuracy": won / len(pairs),
        "margin": means[0] - means[1],
        "score_chosen": means[0],
        "score_rejected": means[1],
    }


def _shown(tokenizer: Any, row: Answers) -> tuple[Piece, ...]:
    """The row token by token; what is learned stands behind the last of each answer."""
    shown = []
    for (ids, _), learned in zip(row.documents, ("better", "worse"), strict=True):
        *before, last = (tokenizer.decode([token]) for token in ids.tolist())
        shown += [*(Piece(text, False, learned) for text in before), Piece(last, learned, learned)]
    return tuple(shown)
