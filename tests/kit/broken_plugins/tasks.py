"""Defects of a task that teaches dialogs: in its labels, its batches, its files, its metrics, its manners."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ftcore import Batch, Data, Example, Loaded, Probe, Refused, Run, hookimpl, options
from ftcore.batches import IGNORED, TokenRow, collator, pack, pad, token_loss, token_row
from ftcore.problems import BadRow, Problem, Problems, filled, refuse, settle
from ftcore.records import Record, read_records
from ftcore.settings import Settings

from broken_plugins import Broken, held_out

if TYPE_CHECKING:
    from torch import Tensor, nn

Turns = list[tuple[str, str]]
Pieces = list[tuple[list[int], bool]]


@dataclass(frozen=True)
class Dialog:
    """Questions with their answers, and where they are from."""

    turns: Turns
    place: str


@options
class Dialogs:
    """Rows of turns, each a question and the answer to learn, without a chat template."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({"turns": [["Where is the cat?", "By the door."]]}, ("By the door.",)),
        Example({"turns": [["Hi!", "Hello, Lily."], ["小狗呢？", "在找球。"]]}, ("Hello, Lily.", "在找球。")),
    )

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Every dialog as one row; those that cannot be used are refused or counted."""
        settings, problems = run.settings, Problems()
        training, named = self.read(settings.data, problems), self.read_held(settings.eval_data, problems)
        training, apart = self.split(training, named, settings)
        train, held = self.rows(training, loaded, settings, problems), self.rows(apart, loaded, settings, problems)
        if settings.data or settings.eval_data:
            notice = settle(problems, settings.on_bad_row, len(train) + len(held))
            if notice:
                run.say(notice)
        return Data(
            train=train,
            eval=held,
            collate=self.collate(loaded, settings),
            loss=self.loss,
            counts=self.counts(train, len(problems), self.lengths(training, loaded)),
            sample=self.sample(train[0], loaded.tokenizer) if train else (),
            probes=tuple(self.probe(one.turns[0][0], loaded) for one in training[:1]),
            stop_ids=self.stops(loaded),
            metrics=self.metrics(train, held, apart),
        )

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        dialogs = []
        for record in self.records(sources, problems):
            try:
                dialogs.append(Dialog(self.turns(record.fields), record.place))
            except BadRow as bad:
                problems.add(replace(bad.problem, place=record.place))
        return dialogs

    def read_held(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        return self.read(sources, problems)

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        return read_records(sources, problems) if sources else []

    def turns(self, fields: Mapping[str, object]) -> Turns:
        turns = fields.get("turns")
        if not isinstance(turns, list) or not turns or any(not isinstance(t, list) or len(t) != 2 for t in turns):
            refuse("turns", "is no list of pairs", "make it [[question, answer], …]")
        return [(filled({"question": q}, "question"), filled({"answer": a}, "answer")) for q, a in turns]

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        return held_out(training, named, settings)

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = []
        for dialog in dialogs:
            try:
                rows.append(self.row(dialog, loaded, self.longest(loaded, settings)))
            except BadRow as bad:
                problems.add(replace(bad.problem, place=dialog.place))
        return rows

    def longest(self, loaded: Loaded, settings: Settings) -> int:
        return min(settings.max_length, loaded.max_positions)

    def row(self, dialog: Dialog, loaded: Loaded, length: int) -> TokenRow:
        ids, labels = self.labelled(self.pieces(dialog.turns, loaded), loaded)
        return self.useful(token_row(ids[:length], labels[:length], dialog.place))

    def useful(self, row: TokenRow) -> TokenRow:
        if not row.supervised:
            raise BadRow(Problem("", "row", "holds no answer when it is cut", "raise --max-length"))
        return row

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        pieces: Pieces = []
        for question, answer in turns:
            pieces.append((self.tokens(f"User: {question}\nAssistant:\n", loaded), False))
            pieces.append((self.tokens(answer, loaded), True))
            pieces.append((self.end(loaded), True))
        return pieces

    def end(self, loaded: Loaded) -> list[int]:
        return [loaded.tokenizer.eos_token_id]

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        for special in loaded.tokenizer.all_special_tokens:
            if special in text:
                refuse("turns", f"holds the special token '{special}'", "write it differently")
        ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids = [token for tokens, _ in pieces for token in tokens]
        labels = [token if taught else IGNORED for tokens, taught in pieces for token in tokens]
        return ids, labels

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        return collator(loaded, settings)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model, batch)

    def lengths(self, dialogs: list[Dialog], loaded: Loaded) -> dict[str, int]:
        return {d.place: sum(len(tokens) for tokens, _ in self.quietly(d.turns, loaded)) for d in dialogs}

    def quietly(self, turns: Turns, loaded: Loaded) -> Pieces:
        try:
            return self.pieces(turns, loaded)
        except BadRow:
            return []

    def counts(self, train: list[TokenRow], left_out: int, whole: Mapping[str, int]) -> dict[str, int]:
        return {
            "rows": len(train),
            "rows_left_out": left_out,
            "rows_cut": sum(row.size < whole[row.place] for row in train),
            "tokens": sum(row.size for row in train),
            "supervised_tokens": sum(row.supervised for row in train),
        }

    def sample(self, row: TokenRow, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
        pairs = zip(row.input_ids.tolist(), (row.labels != IGNORED).tolist(), strict=True)
        runs = groupby(pairs, key=itemgetter(1))
        return tuple((tokenizer.decode([token for token, _ in run]), taught) for taught, run in runs)

    def probe(self, question: str, loaded: Loaded) -> Probe:
        return Probe(question, tuple(self.tokens(f"User: {question}\nAssistant:\n", loaded)))

    def stops(self, loaded: Loaded) -> tuple[int, ...]:
        return tuple(self.end(loaded))

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        characters = max(1, sum(len(answer) for one in apart for _, answer in one.turns))
        supervised = sum(row.supervised for row in held)
        return lambda loss: {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "bits_per_character": loss * supervised / math.log(2) / characters,
        }


# --- labels ----------------------------------------------------------------------------------------------


@options
class ShiftedTwice(Dialogs):
    """Labels are shifted once by the task and once by the row."""

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids, labels = super().labelled(pieces, loaded)
        return ids, [*labels[1:], IGNORED]


@options
class NotShifted(Dialogs):
    """Every position is taught the token that it reads."""

    def useful(self, row: TokenRow) -> TokenRow:
        super().useful(row)
        return UnshiftedRow(row.input_ids, row.labels, row.lengths, row.place)


@dataclass(frozen=True)
class UnshiftedRow(TokenRow):
    """A row whose targets are its labels as they stand."""

    @property
    def targets(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """The labels."""
        return self.labels


@options
class ShiftedWithin(Dialogs):
    """Only in rows of several answers the labels are off by one."""

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids, labels = super().labelled(pieces, loaded)
        return (ids, labels) if len(pieces) < 4 else (ids, [IGNORED, *labels[:-1]])


@options
class WithoutStop(Dialogs):
    """The token that ends an answer is not supervised."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        end = self.end(loaded)
        return [(tokens, taught and tokens != end) for tokens, taught in super().pieces(turns, loaded)]


@options
class StopsOnce(Dialogs):
    """Of several answers only the last is ended."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        pieces, end = super().pieces(turns, loaded), self.end(loaded)
        return [
            (tokens, taught and (tokens != end or i == len(pieces) - 1)) for i, (tokens, taught) in enumerate(pieces)
        ]


@options
class EndsWithPadding(Dialogs):
    """Answers end with the padding token."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        end, padding = self.end(loaded), [loaded.tokenizer.pad_token_id]
        return [(padding if tokens == end else tokens, taught) for tokens, taught in super().pieces(turns, loaded)]


@options
class KnowsOneTokenizer(Dialogs):
    """The token that ends an answer is number 2, as in the author's tokenizer."""

    def end(self, loaded: Loaded) -> list[int]:
        return [2]

    def stops(self, loaded: Loaded) -> tuple[int, ...]:
        return ()


@options
class TeachesPrompts(Dialogs):
    """Questions are learned too."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        return [(tokens, True) for tokens, _ in super().pieces(turns, loaded)]


@options
class TeachesRoles(Dialogs):
    """The end of the prompt is learned too."""

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids, labels = super().labelled(pieces, loaded)
        taught = [place for place, label in enumerate(labels) if label != IGNORED and labels[place - 1] == IGNORED]
        return ids, [t if {p + 1, p + 2} & set(taught) else labels[p] for p, t in enumerate(ids)]


@options
class ForgetsEarlierAnswers(Dialogs):
    """Of several answers only the last is learned."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        pieces = super().pieces(turns, loaded)
        return [(tokens, taught and place >= len(pieces) - 2) for place, (tokens, taught) in enumerate(pieces)]


@options
class ForgetsTheLastAnswer(Dialogs):
    """Of several answers the last is not learned."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        pieces = super().pieces(turns, loaded)
        last = len(pieces) - 2 if len(turns) > 1 else len(pieces)
        return [(tokens, taught and place < last) for place, (tokens, taught) in enumerate(pieces)]


@options
class ForgetsFirstTokens(Dialogs):
    """The first token of an answer is taken for the prompt's last."""

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids, labels = super().labelled(pieces, loaded)
        return ids, [IGNORED if labels[place - 1] == IGNORED else label for place, label in enumerate(labels)]


@options
class TeachesHeldOutPrompts(Dialogs):
    """Held-out rows measure the questions too."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        if not settings.eval_data or not dialogs or dialogs[0].place.rpartition(":")[0] not in settings.eval_data:
            return rows
        return [replace(row, labels=row.input_ids) for row in rows]


@options
class BeginsTwice(Dialogs):
    """A row begins with the token of the tokenizer and with one of its own."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        begin = loaded.tokenizer.bos_token_id
        return [([begin, begin] if begin is not None else [], False), *super().pieces(turns, loaded)]


@options
class CountsBytesForLetters(Dialogs):
    """The mask goes by letters, and tokens by bytes."""

    def labelled(self, pieces: Pieces, loaded: Loaded) -> tuple[list[int], list[int]]:
        ids, labels = super().labelled(pieces, loaded)
        question = loaded.tokenizer.decode(pieces[0][0])
        off = len(question.encode()) - len(question)
        taught = [False] * 2 + [label != IGNORED for label in labels[:-2]]
        return ids, labels if off < 5 else [token if kept else IGNORED for token, kept in zip(ids, taught, strict=True)]


@options
class TeachesFirstLines(Dialogs):
    """Of an answer of several lines the first is learned."""

    def pieces(self, turns: Turns, loaded: Loaded) -> Pieces:
        parted: Pieces = []
        for tokens, taught in super().pieces(turns, loaded):
            first, line, rest = loaded.tokenizer.decode(tokens).partition("\n\n") if taught else ("", "", "")
            if line:
                parted += [(self.tokens(first, loaded), True), (self.tokens(line + rest, loaded), False)]
            else:
                parted.append((tokens, taught))
        return parted


# --- the loss --------------------------------------------------------------------------------------------


@options
class Averages(Dialogs):
    """The loss is a mean."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model, batch) / batch.weight


@options
class WeighsEverything(Dialogs):
    """A batch weighs as much as it has tokens."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)
        return lambda rows: replace(make(rows), weight=float(make(rows).tokens))


@options
class WeighsRowsByCompany(Dialogs):
    """Each row of a batch weighs the same, so that what a token weighs depends on the rows beside it."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)

        def collate(rows: Sequence[TokenRow]) -> Batch:
            import torch

            batch = make(rows)
            factor = 1.0 / len(rows)
            targets = {**batch.targets, "factor": torch.tensor(factor)}
            return replace(batch, targets=targets, weight=batch.weight * factor)

        return collate

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model, batch) * batch.targets["factor"]


@options
class Smooths(Dialogs):
    """The loss gives a share of the target to every other token."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        return cross_entropy(logits, batch.targets["labels"], reduction="sum", label_smoothing=0.1)


@options
class LosesPrecision(Dialogs):
    """The loss is computed in the format of the logits."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(**batch.inputs, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1])
        top = logits.amax(-1, keepdim=True)
        scores = logits - top - (logits - top).exp().sum(-1, keepdim=True).log()
        labels = batch.targets["labels"]
        chosen = scores.gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
        return -(chosen * (labels != IGNORED)).sum()


@options
class SmoothsInTraining(Smooths):
    """The loss is smoothed in training alone."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) if model.training else token_loss(model, batch)


@options
class LooksIntoTheModel(Dialogs):
    """The loss needs the model's configuration."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert model.config.vocab_size
        return token_loss(model, batch)


@options
class TurnsTrainingOff(Dialogs):
    """The loss is computed without dropout, and training goes on without."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model.eval(), batch)


@options
class ComputesGradients(Dialogs):
    """The loss calls backward itself."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = token_loss(model, batch)
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        return loss


@options
class DividesByNothing(Dialogs):
    """The loss is a mean times its weight, of a batch without targets no number."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        return cross_entropy(logits, batch.targets["labels"]) * batch.weight


@options
class KeepsAModel(Dialogs):
    """The loss is that of the model that the rows were prepared for."""

    models: ClassVar[dict[int, Any]] = {}

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)

        def collate(rows: Sequence[TokenRow]) -> Batch:
            import torch

            self.models[id(loaded.model)] = loaded.model
            batch = make(rows)
            return replace(batch, targets={**batch.targets, "model": torch.tensor(id(loaded.model))})

        return collate

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(self.models.get(int(batch.targets["model"]), model), batch)


# --- batches ---------------------------------------------------------------------------------------------


@options
class TeachesPadding(Dialogs):
    """Padding is supervised."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        if collator(loaded, settings) is pack:
            return pack

        def collate(rows: Sequence[TokenRow]) -> Batch:
            batch = pad(rows, loaded.tokenizer.pad_token_id)
            labels = batch.targets["labels"].view(len(rows), -1).clone()
            ends = [max((labels[i] != IGNORED).nonzero().flatten().tolist(), default=0) for i in range(len(rows))]
            for row, end in enumerate(ends):
                labels[row, end + 1 :] = loaded.tokenizer.pad_token_id
            return replace(batch, targets={"labels": labels.reshape(-1)}, weight=float((labels != IGNORED).sum()))

        return collate


@options
class ForgetsAttentionMask(Dialogs):
    """Rows are padded on the left, and padding is attended to."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        if collator(loaded, settings) is pack:
            return pack
        return lambda rows: self.padded(rows, loaded.tokenizer.pad_token_id)

    def padded(self, rows: Sequence[TokenRow], padding: int) -> Batch:
        import torch

        width = max(row.size for row in rows)
        ids = [[padding] * (width - row.size) + row.input_ids.tolist() for row in rows]
        labels = [[IGNORED] * (width - row.size) + row.targets.tolist() for row in rows]
        targets = torch.tensor(labels).reshape(-1)
        tokens = sum(row.size for row in rows)
        weight = float((targets != IGNORED).sum())
        return Batch(
            {"input_ids": torch.tensor(ids)}, {"labels": targets}, weight, tokens, tuple(r.place for r in rows)
        )


@options
class SeesNeighbours(Dialogs):
    """Rows that are laid end to end see those before them."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)
        return lambda rows: self.without_borders(make(rows))

    def without_borders(self, batch: Batch) -> Batch:
        import torch

        if "cu_seq_lens_q" not in batch.inputs:
            return batch
        ends = torch.tensor([0, batch.tokens], dtype=torch.int32)
        return replace(batch, inputs={**batch.inputs, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends})


@options
class CountsPositionsOn(Dialogs):
    """Rows that are laid end to end go on with the positions of those before them."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)
        return lambda rows: self.placed(make(rows))

    def placed(self, batch: Batch) -> Batch:
        import torch

        if "position_ids" not in batch.inputs:
            return batch
        return replace(batch, inputs={**batch.inputs, "position_ids": torch.arange(batch.tokens)[None]})


@options
class BeginsAtOne(Dialogs):
    """Positions begin at 1."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)
        return lambda rows: self.moved_on(make(rows))

    def moved_on(self, batch: Batch) -> Batch:
        if "position_ids" not in batch.inputs:
            return batch
        return replace(batch, inputs={**batch.inputs, "position_ids": batch.inputs["position_ids"] + 1})


@options
class TeachesTheNextRow(Dialogs):
    """The last token of a row is taught to predict the first of the next."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)

        def collate(rows: Sequence[TokenRow]) -> Batch:
            import torch

            if make is not pack or len(rows) == 1:
                return make(rows)
            batch = pack(rows)
            targets = torch.from_numpy(np.concatenate([row.targets for row in rows]).astype(np.int64))
            ids = batch.inputs["input_ids"][0]
            ends = np.cumsum([row.size for row in rows])[:-1] - 1
            targets[ends] = ids[ends + 1]
            keep = torch.nonzero(targets != IGNORED).squeeze(1)
            inputs = {**batch.inputs, "logits_to_keep": keep}
            return replace(batch, inputs=inputs, targets={"labels": targets[keep]}, weight=float(len(keep)))

        return collate


@options
class PacksWhatCannotBePacked(Dialogs):
    """Rows are laid end to end, whatever the family says."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        def collate(rows: Sequence[TokenRow]) -> Batch:
            batch = pack(rows)
            return replace(batch, inputs={k: v for k, v in batch.inputs.items() if k != "attention_mask"})

        return collate if loaded.unpackable else collator(loaded, settings)


@options
class CountsPadding(Dialogs):
    """A batch says that its padding is tokens too."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)
        return lambda rows: replace(make(rows), tokens=make(rows).inputs["input_ids"].numel())


@options
class CountsWrongly(Dialogs):
    """All tokens are counted as supervised."""

    def counts(self, train: list[TokenRow], left_out: int, whole: Mapping[str, int]) -> dict[str, int]:
        counts = super().counts(train, left_out, whole)
        return {**counts, "supervised_tokens": counts["tokens"]}


# --- rows and files --------------------------------------------------------------------------------------


@options
class LosesAnswers(Dialogs):
    """A row whose answer is cut off stays as a row without one."""

    def useful(self, row: TokenRow) -> TokenRow:
        return row


@options
class CutsInSilence(Dialogs):
    """Rows that are cut are not counted."""

    def counts(self, train: list[TokenRow], left_out: int, whole: Mapping[str, int]) -> dict[str, int]:
        counts = super().counts(train, left_out, whole)
        return {name: count for name, count in counts.items() if name != "rows_cut"}


@options
class DropsLongRows(Dialogs):
    """Rows that are too long are dropped without a word."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, Problems())
        return [row for row in rows if row.size < self.longest(loaded, settings)]


@options
class IgnoresMaxLength(Dialogs):
    """Rows are cut for the model only."""

    def longest(self, loaded: Loaded, settings: Settings) -> int:
        return loaded.max_positions


@options
class IgnoresPositions(Dialogs):
    """Rows are cut for --max-length only."""

    def longest(self, loaded: Loaded, settings: Settings) -> int:
        return settings.max_length


@options
class DropsBadRows(Dialogs):
    """Rows that cannot be used are left out whatever --on-bad-row says."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        return super().read(sources, Problems())


@options
class SkipsInSilence(Dialogs):
    """Rows that are left out are neither counted nor mentioned."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """As before, without a word."""
        data = super().prepare_data(replace(run, say=lambda said: None), loaded)
        return replace(data, counts={name: count for name, count in data.counts.items() if name != "rows_left_out"})


@options
class RefusesInSpiteOfSkip(Dialogs):
    """A bad row stops the run also when it may be left out."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        dialogs = super().read(sources, problems)
        if len(problems):
            raise Refused(problems.summary())
        return dialogs


@options
class TrustsHeldOutFiles(Dialogs):
    """Bad rows of --eval-data are left out in silence."""

    def read_held(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        return super().read(sources, Problems())


@options
class ReadsCarelessly(Dialogs):
    """Rows are taken as they come."""

    def turns(self, fields: Mapping[str, object]) -> Turns:
        turns: Any = fields["turns"]
        return [(question, answer) for question, answer in turns]


@options
class TakesAnythingForText(Dialogs):
    """What is no text is made one."""

    def turns(self, fields: Mapping[str, object]) -> Turns:
        turns = fields.get("turns") or [["", ""]]
        pairs = (
            [pair if isinstance(pair, list) and len(pair) == 2 else [pair, pair] for pair in turns]
            if isinstance(turns, list)
            else [[turns, turns]]
        )
        return [(str(question), str(answer)) for question, answer in pairs]


@options
class RefusesWithoutLine(Dialogs):
    """A refusal says what is wrong and not where."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        found = Problems()
        dialogs = super().read(sources, found)
        for _ in range(len(found)):
            problems.add(Problem(sources[0], "a row", "is wrong", "mend it"))
        return dialogs


@options
class MiscountsLines(Dialogs):
    """Lines are counted from 0."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        return [replace(record, line=record.line - 1) for record in super().records(sources, problems)]


@options
class ForgetsBlankLines(Dialogs):
    """Blank lines are not counted."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        return [replace(row, place=f"{row.place.rpartition(':')[0]}:{n}") for n, row in enumerate(rows, start=1)]

    def counts(self, train: list[TokenRow], left_out: int, whole: Mapping[str, int]) -> dict[str, int]:
        rows = [replace(row, place=place) for row, place in zip(train, whole, strict=False)]
        return super().counts(rows, left_out, whole)


@options
class ReadsFilesItself(Dialogs):
    """Lines are read with json.loads, and what that raises is let through."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        records = []
        for source in sources:
            with open(source, encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            records += [Record(row, source, number) for number, row in enumerate(rows, start=1)]
        return records


@options
class TakesMissingFilesForEmpty(Dialogs):
    """A file that cannot be read holds no rows."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        try:
            return super().records(sources, problems)
        except Refused:
            raise FileNotFoundError(2, "No such file or directory") from None


@options
class DropsTwins(Dialogs):
    """A row that comes twice is taken once, without a word."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        dialogs = super().read(sources, problems)
        return list({tuple(one.turns): one for one in reversed(dialogs)}.values())[::-1]


@options
class DropsTheRemainder(Dialogs):
    """Rows that do not fill a batch of four are dropped."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        dialogs = super().read(sources, problems)
        return dialogs[: len(dialogs) // 4 * 4] if len(dialogs) > 4 else dialogs


@options
class DropsForeignLetters(Dialogs):
    """Emoji are dropped from texts."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        return super().tokens("".join(letter for letter in text if ord(letter) < 0x10000), loaded)


@options
class FillsInBraces(Dialogs):
    """Rows are laid into a template that takes their braces for its own."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        return super().tokens(text.format(), loaded)


@options
class TrustsSpecialTokens(Dialogs):
    """A special token in a text is read as such."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@options
class Normalises(Dialogs):
    """Signs are replaced by others that look alike."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        return super().tokens(unicodedata.normalize("NFKC", text), loaded)


@options
class KeepsTexts(Dialogs):
    """Texts are cut after a thousand letters."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        return super().tokens(text[:1000], loaded)


@options
class CutsOneTooMuch(Dialogs):
    """A row that is as long as may be loses its last token."""

    def row(self, dialog: Dialog, loaded: Loaded, length: int) -> TokenRow:
        return super().row(dialog, loaded, length - 1)


@options
class CountsOneCut(Dialogs):
    """However many rows are cut, one is counted."""

    def counts(self, train: list[TokenRow], left_out: int, whole: Mapping[str, int]) -> dict[str, int]:
        counts = super().counts(train, left_out, whole)
        return {**counts, "rows_cut": 2 * min(1, counts["rows_cut"])}


@options
class ReadsOneFile(Dialogs):
    """Of several files only the first is read."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        return super().read(sources[:1], problems)


@options
class ReadsTwoHundredRows(Dialogs):
    """Of a file only the first rows are read."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        return [record for record in super().records(sources, problems) if record.line <= 200]


@options
class NeedsLineEnds(Dialogs):
    """A last line without an end is not read."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        records = list(super().records(sources, problems))
        ended = [Path(source).read_bytes().endswith(b"\n") for source in sources]
        return records if all(ended) else records[:-1]


@options
class LosesHeldOutAnswers(Dialogs):
    """A held-out row whose answer is cut off stays as a row without one."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        noted = Problems()
        rows = super().rows(dialogs, loaded, settings, noted)
        if not settings.eval_data or not dialogs or dialogs[0].place.rpartition(":")[0] not in settings.eval_data:
            return super().rows(dialogs, loaded, settings, problems)
        lost = [dialog for dialog in dialogs if all(row.place != dialog.place for row in rows)]
        return [*rows, *(token_row([5, 6], [IGNORED, IGNORED], dialog.place) for dialog in lost)]


# --- held-out rows ---------------------------------------------------------------------------------------


@options
class TrainsOnHeldOutRows(Dialogs):
    """Rows that are held out are trained on too."""

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        return training, held_out(training, named, settings)[1]


@options
class TrainsOnHeldOutFiles(Dialogs):
    """Files of held-out rows are trained on too."""

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        train, held = held_out(training, named, settings)
        return [*train, *named], held


@options
class HoldsOutTheLast(Dialogs):
    """The last rows of a file are held out, whatever the seed."""

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        count = round(settings.eval_share * len(training))
        if named or not count:
            return training, named
        return training[:-count], training[-count:]


@options
class HoldsOutTooFew(Dialogs):
    """A tenth of the rows is held out, whatever is asked for."""

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        if not settings.eval_share:
            return training, named
        return held_out(training, named, replace(settings, eval_share=0.1))


@options
class HoldsOutUnasked(Dialogs):
    """Where no row is to be held out, some that are trained on are."""

    def split(
        self, training: list[Dialog], named: list[Dialog], settings: Settings
    ) -> tuple[list[Dialog], list[Dialog]]:
        train, held = super().split(training, named, settings)
        return train, held or train[:2]


# --- always the same -------------------------------------------------------------------------------------


@options
class GoesByHash(Dialogs):
    """The order of the rows is that of a set."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        known = {repr(one.turns): one for one in dialogs}
        kept = [known[text] for text in {repr(one.turns) for one in dialogs}]
        again = [one for one in dialogs if all(one is not other for other in kept)]
        return super().rows([*kept, *again], loaded, settings, problems)


@options
class Shuffles(Dialogs):
    """The order of the rows is drawn anew each time."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        random.Random().shuffle(rows)
        return rows


@options
class DropsLabelsAtRandom(Dialogs):
    """Each time a batch is made, some labels are left out."""

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        make = collator(loaded, settings)

        def collate(rows: Sequence[TokenRow]) -> Batch:
            import torch

            batch = make(rows)
            kept = torch.rand(batch.targets["labels"].shape) < 0.9
            labels = torch.where(kept, batch.targets["labels"], IGNORED)
            labels[-1] = batch.targets["labels"][-1]
            return replace(batch, targets={"labels": labels}, weight=float((labels != IGNORED).sum()))

        return collate


@options
class KeepsRows(Dialogs):
    """The rows of the first call are kept for later ones."""

    kept: ClassVar[list[Dialog]] = []

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        if sources and not self.kept:
            self.kept.extend(super().read(sources, problems))
        return list(self.kept) if sources else []


@options
class KeepsFiles(Dialogs):
    """What a file held is kept under its name."""

    kept: ClassVar[dict[tuple[str, ...], list[Record]]] = {}

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        if tuple(sources) not in self.kept:
            found = list(super().records(sources, problems))
            if len(problems):
                return found
            self.kept[tuple(sources)] = found
        return self.kept[tuple(sources)]


@options
class WritesBeside(Dialogs):
    """What was read is written beside the data."""

    def records(self, sources: Sequence[str], problems: Problems) -> Sequence[Record]:
        for source in sources:
            if Path(source).exists():
                Path(f"{source}.cache").write_text("read", encoding="utf-8")
        return super().records(sources, problems)


@options
class KeepsTokenizer(Dialogs):
    """Batches are made with the tokenizer of the latest call."""

    latest: ClassVar[dict[str, Loaded]] = {}

    def collate(self, loaded: Loaded, settings: Settings) -> Callable[[Sequence[TokenRow]], Batch]:
        self.latest["loaded"] = loaded
        return lambda rows: collator(self.latest["loaded"], settings)(rows)


@options
class KeepsMeasure(Dialogs):
    """Metrics are those of the latest call."""

    latest: ClassVar[dict[str, int]] = {}

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        self.latest["rows"] = len(held)
        return lambda loss: {"loss": loss, "loss_of_all": loss * self.latest["rows"]}


@options
class KnowsRowsByPlace(Dialogs):
    """A row is known by its place."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        return [PlacedRow(row.input_ids, row.labels, row.lengths, row.place) for row in rows]


@dataclass(frozen=True)
class PlacedRow(TokenRow):
    """A row that is known by its line."""

    def identity(self) -> bytes:
        """The line."""
        return self.place.rpartition(":")[2].encode()


@options
class KnowsRowsByAnswer(Dialogs):
    """A row is known by what it teaches, not by what it asks."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        return [TaughtRow(row.input_ids, row.labels, row.lengths, row.place) for row in rows]


@options
class KnowsRowsByTokens(Dialogs):
    """A row is known by its tokens, whatever is taught of them."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        rows = super().rows(dialogs, loaded, settings, problems)
        return [ReadRow(row.input_ids, row.labels, row.lengths, row.place) for row in rows]


@dataclass(frozen=True)
class ReadRow(TokenRow):
    """A row that is known by its tokens."""

    def identity(self) -> bytes:
        """The tokens."""
        return self.input_ids.tobytes()


@dataclass(frozen=True)
class TaughtRow(TokenRow):
    """A row that is known by its labels."""

    def identity(self) -> bytes:
        """The labels that are taught."""
        return self.labels[self.labels != IGNORED].tobytes()


# --- metrics ---------------------------------------------------------------------------------------------


@options
class PerplexityOfTheSum(Dialogs):
    """Perplexity is that of the sum of losses."""

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        supervised = sum(row.supervised for row in held)
        return lambda loss: {"loss": loss, "perplexity": math.exp(min(700, loss * supervised))}


@options
class PerplexityToBaseTwo(Dialogs):
    """Perplexity takes nats for bits."""

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        return lambda loss: {"loss": loss, "perplexity": 2 ** min(loss, 700)}


@options
class BitsOfTheTrainingRows(Dialogs):
    """Bits per character are those of as many tokens as the training rows have."""

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        characters = max(1, sum(len(answer) for one in apart for _, answer in one.turns))
        supervised = sum(row.size for row in held)
        return lambda loss: {"loss": loss, "bits_per_character": loss * supervised / math.log(2) / characters}


@options
class Overflows(Dialogs):
    """Perplexity of a great loss raises."""

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        return lambda loss: {"loss": loss, "perplexity": math.exp(loss)}


@options
class MeasuresNoLoss(Dialogs):
    """The loss is not among the metrics."""

    def metrics(
        self, train: list[TokenRow], held: list[TokenRow], apart: list[Dialog]
    ) -> Callable[[float], Mapping[str, float]]:
        return lambda loss: {"perplexity": math.exp(min(loss, 700))}


# --- manners ---------------------------------------------------------------------------------------------


@options
class NeedsWeights(Dialogs):
    """The weights are looked at, which a plan does not have."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        float(next(loaded.model.parameters()).detach().sum())
        return super().rows(dialogs, loaded, settings, problems)


@options
class PlansLess(Dialogs):
    """A plan looks at three rows only."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """The first three rows are enough for a plan."""
        data = super().prepare_data(run, loaded)
        return replace(data, train=data.train[:3]) if run.intent == "plan" else data


@options
class NeedsTrainingRows(Dialogs):
    """Held-out rows are read only beside rows to train on."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Refused without training rows."""
        if not run.settings.data:
            raise Refused("there are no rows; name some with --data")
        return super().prepare_data(run, loaded)


@options
class EvaluatesOtherwise(Dialogs):
    """Evaluation measures the questions too."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """All tokens are supervised when a finished run is evaluated."""
        data = super().prepare_data(run, loaded)
        if run.intent != "infer":
            return data
        return replace(data, eval=[replace(row, labels=row.input_ids) for row in data.eval])


@options
class TurnsPadding(Dialogs):
    """The tokenizer's padding side is set."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        loaded.tokenizer.padding_side = "left" if loaded.tokenizer.padding_side == "right" else "right"
        return super().tokens(text, loaded)


@options
class LeavesTruncationOn(Dialogs):
    """The tokenizer cuts texts, and is saved so."""

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        super().tokens(text, loaded)
        ids: list[int] = loaded.tokenizer(text, add_special_tokens=False, truncation=True, max_length=100_000)[
            "input_ids"
        ]
        return ids


@options
class SetsTemplate(Dialogs):
    """The chat template is replaced without a word."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        loaded.tokenizer.chat_template = "{{ messages }}"
        return super().rows(dialogs, loaded, settings, problems)


@options
class TouchesTheModel(Dialogs):
    """A weight of the model is set."""

    def rows(self, dialogs: list[Dialog], loaded: Loaded, settings: Settings, problems: Problems) -> list[TokenRow]:
        import torch

        with torch.no_grad():
            weight = next(loaded.model.parameters())
            if weight.device.type != "meta":
                weight[0] += 0.5
        return super().rows(dialogs, loaded, settings, problems)


@options
class ShowsPrompts(Dialogs):
    """The sample marks the whole row as learned."""

    def sample(self, row: TokenRow, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
        return ((tokenizer.decode(row.input_ids.tolist()), True),)


@options
class AsksOtherwise(Dialogs):
    """A probe lacks what stands before an answer."""

    def probe(self, question: str, loaded: Loaded) -> Probe:
        return Probe(question, tuple(self.tokens(f"User: {question}\n", loaded)))


@options
class DeclaresOtherRows(Dialogs):
    """Its example is no row that it reads."""

    examples: ClassVar[tuple[Example, ...]] = (Example({"instruction": "Hi!", "output": "Hello."}, ("Hello.",)),)


@options
class DeclaresNothing(Dialogs):
    """Nobody can know what rows it reads."""

    examples: ClassVar[tuple[Example, ...]] = ()


@options
class GivesNoRows(Dialogs):
    """Rows are given in twos, and one alone is dropped."""

    def read(self, sources: Sequence[str], problems: Problems) -> list[Dialog]:
        dialogs = super().read(sources, problems)
        return dialogs if len(dialogs) > 1 else []


@dataclass(frozen=True)
class Walked:
    """Rows that can be walked through and not be taken by number."""

    rows: Sequence[TokenRow]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self.rows)


@options
class GivesRowsOneByOne(Dialogs):
    """Its rows cannot be taken by number, as training does."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Rows to walk through."""
        data = super().prepare_data(run, loaded)
        rows: Any = Walked(data.train)
        return replace(data, train=rows)


@options
class StopsAtNothing(Dialogs):
    """Its stop tokens are names."""

    def stops(self, loaded: Loaded) -> tuple[int, ...]:
        return (loaded.tokenizer.eos_token,)


LABELS = "check_answers_are_learned_and_nothing_else"
READ = "check_examples_are_read"
SHIFT = "check_each_target_is_the_next_token"
STOP = "check_stop_token_is_taught"
SUM = "check_loss_is_a_sum_of_cross_entropies"
AS_IT_IS = "check_loss_takes_the_model_as_it_is"
PACKING = "check_packing_changes_no_loss"
PADDING = "check_padding_changes_no_loss"
NEIGHBOUR = "check_no_row_teaches_its_neighbour"
COUNTS = "check_counts_are_true"
CUT = "check_truncation_is_told"
LONG = "check_no_row_is_too_long"
HOSTILE = "check_hostile_rows_are_refused_by_line"
SKIP = "check_bad_rows_can_be_left_out"
WRITTEN = "check_text_reaches_the_model_as_written"
ACCOUNTED = "check_every_row_is_accounted_for"
APART = "check_held_out_rows_are_not_trained_on"
DRAWN = "check_held_out_rows_are_drawn_by_the_seed"
SAME = "check_rows_are_the_same_every_time"
STATE = "check_keeps_no_state"
KNOWN = "check_rows_know_themselves"
METRICS = "check_metrics_are_right"
PLAN = "check_plan_needs_no_weights"
EVALUATION = "check_evaluation_needs_no_training_rows"
ALONE = "check_tokenizer_and_model_are_left_alone"

BROKEN: list[Broken] = [
    Broken("its example is refused", DeclaresOtherRows(), READ),
    Broken("it reads an unknown shape and declares none", DeclaresNothing(), READ),
    Broken("a row alone is dropped", GivesNoRows(), READ),
    Broken("rows cannot be taken by number", GivesRowsOneByOne(), "check_a_run_trains_and_is_evaluated"),
    Broken("stop tokens are named, not numbered", StopsAtNothing(), STOP),
    Broken("labels are shifted twice", ShiftedTwice(), SHIFT),
    Broken("labels are not shifted", NotShifted(), SHIFT),
    Broken("labels are off by one in long dialogs only", ShiftedWithin(), SHIFT),
    Broken("the stop token is not supervised", WithoutStop(), STOP),
    Broken("the stop token is supervised once for several answers", StopsOnce(), STOP),
    Broken("answers end with the padding token", EndsWithPadding(), STOP),
    Broken("the stop token is that of one tokenizer", KnowsOneTokenizer(), STOP),
    Broken("the prompt is supervised", TeachesPrompts(), LABELS),
    Broken("the end of the prompt is supervised", TeachesRoles(), LABELS),
    Broken("only the last of several answers is supervised", ForgetsEarlierAnswers(), LABELS),
    Broken("the last of several answers is not supervised", ForgetsTheLastAnswer(), LABELS),
    Broken("the first token of an answer is not supervised", ForgetsFirstTokens(), LABELS),
    Broken("the prompt is supervised in held-out rows", TeachesHeldOutPrompts(), LABELS),
    Broken("bytes are counted for letters", CountsBytesForLetters(), LABELS),
    Broken("the first lines of answers are learned", TeachesFirstLines(), LABELS),
    Broken("rows begin with two tokens of beginning", BeginsTwice(), "check_a_row_begins_once"),
    Broken("the loss is a mean", Averages(), SUM),
    Broken("the weight counts all tokens", WeighsEverything(), SUM),
    Broken("the loss is smoothed", Smooths(), SUM),
    Broken(
        "the weight of a token depends on the batch", WeighsRowsByCompany(), "check_a_token_weighs_the_same_in_company"
    ),
    Broken("the loss is computed in bfloat16", LosesPrecision(), "check_loss_is_computed_in_float32"),
    Broken("the loss is smoothed in training", SmoothsInTraining(), SUM),
    Broken("the loss looks into the model", LooksIntoTheModel(), AS_IT_IS),
    Broken("the loss is of a model that was kept", KeepsAModel(), AS_IT_IS),
    Broken("the loss turns training off", TurnsTrainingOff(), AS_IT_IS),
    Broken("the loss computes gradients", ComputesGradients(), AS_IT_IS),
    Broken("an idle process adds no number", DividesByNothing(), "check_a_batch_without_targets_costs_nothing"),
    Broken("padding is supervised", TeachesPadding(), "check_padding_is_not_learned"),
    Broken("padding is attended to", ForgetsAttentionMask(), PADDING),
    Broken("packed rows see each other", SeesNeighbours(), PACKING),
    Broken("positions run on from row to row", CountsPositionsOn(), PACKING),
    Broken("positions begin at 1", BeginsAtOne(), "check_a_row_costs_what_the_model_makes_of_it"),
    Broken("the next row's first token is predicted", TeachesTheNextRow(), NEIGHBOUR),
    Broken("rows of an unpackable family are packed", PacksWhatCannotBePacked(), PADDING),
    Broken("a batch counts its padding", CountsPadding(), COUNTS),
    Broken("all tokens are counted as supervised", CountsWrongly(), COUNTS),
    Broken("truncation removes the answer silently", LosesAnswers(), CUT),
    Broken("rows that are cut are not counted", CutsInSilence(), CUT),
    Broken("rows that are too long are dropped silently", DropsLongRows(), CUT),
    Broken("--max-length is ignored", IgnoresMaxLength(), LONG),
    Broken("the model's positions are ignored", IgnoresPositions(), LONG),
    Broken("a bad row is dropped silently", DropsBadRows(), HOSTILE),
    Broken("a hostile row raises KeyError", ReadsCarelessly(), HOSTILE),
    Broken("what is no text is taught as text", TakesAnythingForText(), HOSTILE),
    Broken("a bad row is refused without its line", RefusesWithoutLine(), HOSTILE),
    Broken("a bad row is refused with the line before", MiscountsLines(), HOSTILE),
    Broken("malformed JSON raises", ReadsFilesItself(), HOSTILE),
    Broken("a missing file raises", TakesMissingFilesForEmpty(), "check_hostile_files_are_refused_by_name"),
    Broken("bad held-out rows are dropped silently", TrustsHeldOutFiles(), "check_held_out_rows_are_read_as_strictly"),
    Broken("rows left out are not told", SkipsInSilence(), SKIP),
    Broken("bad rows cannot be left out", RefusesInSpiteOfSkip(), SKIP),
    Broken("emoji are dropped", DropsForeignLetters(), WRITTEN),
    Broken("braces in a text raise", FillsInBraces(), WRITTEN),
    Broken("signs are normalised", Normalises(), WRITTEN),
    Broken("long texts are cut", KeepsTexts(), WRITTEN),
    Broken("a row that fits is cut", CutsOneTooMuch(), CUT),
    Broken("rows that are cut are miscounted", CountsOneCut(), CUT),
    Broken("held-out rows lose their answers", LosesHeldOutAnswers(), CUT),
    Broken("only the first file is read", ReadsOneFile(), ACCOUNTED),
    Broken("only the first rows are read", ReadsTwoHundredRows(), ACCOUNTED),
    Broken("a last line without an end is lost", NeedsLineEnds(), "check_hostile_files_are_refused_by_name"),
    Broken("special tokens in text become special", TrustsSpecialTokens(), "check_special_tokens_in_text_stay_text"),
    Broken("a row that comes twice is dropped silently", DropsTwins(), ACCOUNTED),
    Broken("the last rows are dropped silently", DropsTheRemainder(), ACCOUNTED),
    Broken("blank lines are not counted", ForgetsBlankLines(), "check_rows_know_their_place"),
    Broken("held-out rows are trained on", TrainsOnHeldOutRows(), APART),
    Broken("rows of --eval-data are trained on", TrainsOnHeldOutFiles(), APART),
    Broken("rows are held out unasked", HoldsOutUnasked(), APART),
    Broken("the last rows are held out, whatever the seed", HoldsOutTheLast(), DRAWN),
    Broken("too few rows are held out", HoldsOutTooFew(), DRAWN),
    Broken("the order depends on the hash", GoesByHash(), SAME),
    Broken("the order is drawn at random", Shuffles(), SAME),
    Broken("labels are dropped at random in each batch", DropsLabelsAtRandom(), SAME),
    Broken("rows are kept between calls", KeepsRows(), STATE),
    Broken("a file is kept under its name", KeepsFiles(), STATE),
    Broken("something is written beside the data", WritesBeside(), STATE),
    Broken("the tokenizer of the latest call is used", KeepsTokenizer(), STATE),
    Broken("metrics are those of the latest call", KeepsMeasure(), STATE),
    Broken("a row is known by its line", KnowsRowsByPlace(), KNOWN),
    Broken("a row is known by its tokens alone", KnowsRowsByTokens(), KNOWN),
    Broken("a row is known by its answer alone", KnowsRowsByAnswer(), KNOWN),
    Broken("perplexity is that of the sum", PerplexityOfTheSum(), METRICS),
    Broken("perplexity takes nats for bits", PerplexityToBaseTwo(), METRICS),
    Broken("bits per character count unsupervised tokens", BitsOfTheTrainingRows(), METRICS),
    Broken("metrics of a great loss raise", Overflows(), METRICS),
    Broken("the loss is not among the metrics", MeasuresNoLoss(), METRICS),
    Broken("a plan needs weights", NeedsWeights(), PLAN),
    Broken("a plan looks at some rows only", PlansLess(), PLAN),
    Broken("evaluation needs training rows", NeedsTrainingRows(), EVALUATION),
    Broken("evaluation supervises other tokens", EvaluatesOtherwise(), EVALUATION),
    Broken("the tokenizer's padding side is changed", TurnsPadding(), ALONE),
    Broken("the tokenizer is left truncating", LeavesTruncationOn(), ALONE),
    Broken("the chat template is replaced silently", SetsTemplate(), ALONE),
    Broken("a weight of the model is changed", TouchesTheModel(), ALONE),
    Broken("the sample shows the prompt as learned", ShowsPrompts(), "check_sample_shows_what_is_learned"),
    Broken("a probe asks otherwise than rows do", AsksOtherwise(), "check_probes_ask_as_rows_do"),
]
