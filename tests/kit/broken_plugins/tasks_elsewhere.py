"""Sound tasks of other heads and habits than the core's own, and defects that only they can have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import Batch, Data, Example, Loaded, Refused, Run, Scoring, hookimpl, options
from ftcore.batches import IGNORED, TokenRow, collator, token_loss, token_row
from ftcore.problems import BadRow, Problem, Problems, filled, refuse, settle
from ftcore.records import Record, read_records
from ftcore.seeds import mix
from ftcore.settings import Settings

from broken_plugins import Broken, held_out

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Pair:
    """What is read and what is asked for, as tokens."""

    read: tuple[int, ...]
    asked: tuple[int, ...]
    place: str
    cut: bool = False

    @property
    def size(self) -> int:
        """Tokens that are read and asked for."""
        return len(self.read) + len(self.asked)

    def identity(self) -> bytes:
        """Both."""
        return repr((self.read, self.asked)).encode()


@options
class Pairs:
    """What tasks share here that read one text and are asked for something."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Every row as a pair; those that cannot be used are refused or counted."""
        settings, problems = run.settings, Problems()
        training, named = self.read(settings.data, problems), self.read(settings.eval_data, problems)
        training, apart = held_out(training, named, settings)
        train, held = self.pairs(training, loaded, settings, problems), self.pairs(apart, loaded, settings, problems)
        notice = settle(problems, settings.on_bad_row, len(train) + len(held)) if training or apart or problems else ""
        if notice:
            run.say(notice)
        return Data(
            train=train,
            eval=held,
            collate=lambda rows: self.batch(rows, loaded),
            loss=self.loss,
            counts=self.counts(train, len(problems)),
            stop_ids=loaded.stop_ids,
        )

    def counts(self, train: Sequence[Pair], left_out: int) -> dict[str, int]:
        cut = sum(row.cut for row in train)
        return {"rows": len(train), "rows_left_out": left_out, "rows_cut": cut, "tokens": sum(r.size for r in train)}

    def read(self, sources: Sequence[str], problems: Problems) -> list[Record]:
        found = read_records(sources, problems) if sources else []
        return [record for record in found if self.sound(record, problems)]

    def sound(self, record: Record, problems: Problems) -> bool:
        try:
            self.check(record.fields)
        except BadRow as bad:
            problems.add(replace(bad.problem, place=record.place))
            return False
        return True

    def check(self, fields: Mapping[str, object]) -> None:
        """BadRow where the fields are not those of a row."""
        raise NotImplementedError

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        """The row."""
        raise NotImplementedError

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        """The rows padded."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the rows."""
        raise NotImplementedError

    def pairs(self, records: Sequence[Record], loaded: Loaded, settings: Settings, problems: Problems) -> list[Pair]:
        rows, length = [], min(settings.max_length, loaded.max_positions)
        for record in records:
            try:
                rows.append(self.pair(record, loaded, length))
            except BadRow as bad:
                problems.add(replace(bad.problem, place=record.place))
        return rows

    def tokens(self, text: str, loaded: Loaded) -> list[int]:
        for special in loaded.tokenizer.all_special_tokens:
            if special in text:
                refuse("row", f"holds the special token '{special}'", "write it differently")
        ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of one width."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])


def mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """Where rows are no padding."""
    return padded([[1] * len(row) for row in rows], 0)


# --- sequence to sequence --------------------------------------------------------------------------------


@options
class Translate(Pairs):
    """A source is read and its target learned; the model shifts the labels and computes their mean."""

    head: ClassVar[str] = "seq2seq-lm"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"source": "The cat sat.", "target": "小猫在门口。"}, ("小猫在门口。",)),
        Example({"source": "A dog ran over the hill.", "target": "小狗去找它的球。"}, ("小狗去找它的球。",)),
    )

    def check(self, fields: Mapping[str, object]) -> None:
        filled(fields, "source")
        filled(fields, "target")

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        read = self.tokens(str(record.fields["source"]), loaded)
        asked = [*self.tokens(str(record.fields["target"]), loaded), loaded.tokenizer.eos_token_id]
        long = len(read) > length or len(asked) > length
        return Pair(tuple(read[:length]), tuple(asked[:length]), record.place, long)

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        read, asked = [row.read for row in rows], [row.asked for row in rows]
        labels = padded(asked, IGNORED)
        inputs = {"input_ids": padded(read, loaded.tokenizer.pad_token_id), "attention_mask": mask(read)}
        inputs["labels"] = labels
        tokens = sum(row.size for row in rows)
        return Batch(inputs, {}, float((labels != IGNORED).sum()), tokens, tuple(row.place for row in rows))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**batch.inputs, use_cache=False).loss * batch.weight


@options
class TranslateFromTarget(Translate):
    """The decoder reads the token that it is taught."""

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        batch = super().batch(rows, loaded)
        inputs = {**batch.inputs, "decoder_input_ids": batch.inputs["labels"].clamp(min=0)}
        return replace(
            batch, inputs={k: v for k, v in inputs.items() if k != "labels"}, targets={"labels": inputs["labels"]}
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs, use_cache=False).logits
        labels = batch.targets["labels"].reshape(-1)
        return cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels, reduction="sum")


@options
class TranslateWithPadding(Translate):
    """Padding is among the labels."""

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        batch = super().batch(rows, loaded)
        labels = padded([row.asked for row in rows], loaded.tokenizer.pad_token_id)
        return replace(batch, inputs={**batch.inputs, "labels": labels}, weight=float(labels.numel()))


@options
class TranslateUnended(Translate):
    """The target's end is not learned."""

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        pair = super().pair(record, loaded, length)
        return replace(pair, asked=pair.asked[:-1])


@options
class TranslateUnmasked(Translate):
    """The encoder sees the padding of the source."""

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        batch = super().batch(rows, loaded)
        return replace(batch, inputs={k: v for k, v in batch.inputs.items() if k != "attention_mask"})


# --- classes ---------------------------------------------------------------------------------------------


@options
class Classify(Pairs):
    """A text is read and its class, 0 or 1, is learned."""

    head: ClassVar[str] = "sequence-classification"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"text": "The cat sat by the door.", "label": 1}),
        Example({"text": "小狗去找它的球。", "label": 0}),
    )

    def check(self, fields: Mapping[str, object]) -> None:
        filled(fields, "text")
        if type(fields.get("label")) is not int or fields["label"] not in (0, 1):
            refuse("label", f"is {fields.get('label')!r}", "make it 0 or 1")

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        read = self.tokens(str(record.fields["text"]), loaded)
        label: Any = record.fields["label"]
        return ClassRow(tuple(read[:length]), (label,), record.place, len(read) > length)

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        import torch

        read = [row.read for row in rows]
        inputs = {"input_ids": padded(read, loaded.tokenizer.pad_token_id), "attention_mask": mask(read)}
        targets = {"labels": torch.tensor([row.asked[0] for row in rows])}
        return Batch(inputs, targets, float(len(rows)), sum(row.size for row in rows), tuple(r.place for r in rows))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(model(**batch.inputs).logits.float(), batch.targets["labels"], reduction="sum")


@dataclass(frozen=True)
class ClassRow(Pair):
    """A text with its class."""

    @property
    def size(self) -> int:
        """Tokens that are read."""
        return len(self.read)


@options
class ClassifyUnmasked(Classify):
    """Padding is read as text."""

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        batch = super().batch(rows, loaded)
        return replace(batch, inputs={"input_ids": batch.inputs["input_ids"]})


@options
class ClassifyByMean(Classify):
    """The loss of a batch is a mean."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) / batch.weight


@options
class ClassifyAnything(Classify):
    """A label that is none is class 0."""

    def check(self, fields: Mapping[str, object]) -> None:
        filled(fields, "text")

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        read = self.tokens(str(record.fields["text"]), loaded)
        label = 1 if record.fields["label"] == 1 else 0
        return ClassRow(tuple(read[:length]), (label,), record.place, len(read) > length)


@options
class ClassifyAndTell(Classify):
    """The class is predicted, too."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """The rows, and how they are answered."""
        data = Pairs.prepare_data(self, run, loaded)
        return replace(data, scoring=Scoring(partial(self.predict, data), self.lines, self.score))

    def predict(self, data: Data, model: nn.Module, rows: Sequence[ClassRow]) -> list[Any]:
        logits = model(**data.collate(rows).inputs).logits
        return [{"class": int(row.argmax()), "logits": row.tolist()} for row in logits]

    def lines(self, rows: Sequence[ClassRow], answers: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"prediction": a["class"], "label": row.asked[0]} for row, a in zip(rows, answers, strict=True)]

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        right = sum(line["prediction"] == line["label"] for line in lines)
        return {"accuracy": right / len(lines)} if lines else {}


@options
class TellsByNeighbours(ClassifyAndTell):
    """A row is answered by what is common to its batch."""

    def predict(self, data: Data, model: nn.Module, rows: Sequence[ClassRow]) -> list[Any]:
        logits = model(**data.collate(rows).inputs).logits
        return [{"class": int(row.argmax()), "logits": row.tolist()} for row in logits - logits.mean(0)]


@options
class TellsTensors(ClassifyAndTell):
    """Lines hold tensors."""

    def lines(self, rows: Sequence[ClassRow], answers: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        return [{**line, "label": torch.tensor(line["label"])} for line in super().lines(rows, answers)]


@options
class TellsFewer(ClassifyAndTell):
    """What is only to be answered is read in part."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """The rows, of those to be answered all but the last."""
        data = ClassifyAndTell.prepare_data(self, run, loaded)
        return replace(data, eval=data.eval[:-1]) if run.intent == "predict" else data


# --- masked tokens ---------------------------------------------------------------------------------------


@options
class FillIn(Pairs):
    """Every seventh token or so is hidden and learned, the same ones in every epoch."""

    head: ClassVar[str] = "masked-lm"
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"text": "The cat sat by the door and looked at the rain."}),
        Example({"text": "小狗去找它的球。小猫在门口看雨。"}),
    )

    def check(self, fields: Mapping[str, object]) -> None:
        filled(fields, "text")

    def pair(self, record: Record, loaded: Loaded, length: int) -> Pair:
        whole = self.tokens(str(record.fields["text"]), loaded)
        ids, hidden = whole[:length], loaded.tokenizer.pad_token_id
        chosen = {at for at in range(len(ids)) if mix(0, str(ids), at) % 7 == 0} or {0}
        read = [hidden if at in chosen else token for at, token in enumerate(ids)]
        asked = [token if at in chosen else IGNORED for at, token in enumerate(ids)]
        return ClassRow(tuple(read), tuple(asked), record.place, len(whole) > length)

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        read = [row.read for row in rows]
        labels = padded([row.asked for row in rows], IGNORED)
        inputs = {"input_ids": padded(read, loaded.tokenizer.pad_token_id), "attention_mask": mask(read)}
        weight, tokens = float((labels != IGNORED).sum()), sum(row.size for row in rows)
        return Batch(inputs, {"labels": labels}, weight, tokens, tuple(row.place for row in rows))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs).logits
        labels = batch.targets["labels"].reshape(-1)
        return cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels, reduction="sum")


@options
class FillInAnew(FillIn):
    """Other tokens are hidden each time."""

    def batch(self, rows: Sequence[Pair], loaded: Loaded) -> Batch:
        import torch

        batch = super().batch(rows, loaded)
        labels = torch.where(torch.rand(batch.targets["labels"].shape) < 0.5, batch.targets["labels"], IGNORED)
        labels = labels if (labels != IGNORED).any() else batch.targets["labels"]
        return replace(batch, targets={"labels": labels}, weight=float((labels != IGNORED).sum()))


# --- other habits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A text as tokens, the first `given` of them given."""

    ids: tuple[int, ...]
    given: int
    place: str

    @property
    def size(self) -> int:
        """Tokens that are read: all but the last, which is only asked for."""
        return len(self.ids) - 1

    def identity(self) -> bytes:
        """All."""
        return repr((self.ids, self.given)).encode()


@options
class Continue:
    """Inputs lack the last token and targets the first, rows are padded on the left, files are read with json."""

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Every prompt with its completion."""
        settings = run.settings
        training = list(self.lines(settings.data, loaded, settings))
        named = list(self.lines(settings.eval_data, loaded, settings))
        for problem in (p for p in (*training, *named) if isinstance(p, str)):
            if settings.on_bad_row == "error":
                raise Refused(problem)
        left_out = sum(isinstance(row, str) for row in (*training, *named))
        if left_out:
            run.say(f"{left_out} rows are left out")
        training = [row for row in training if isinstance(row, Line)]
        train, held = held_out(training, [row for row in named if isinstance(row, Line)], settings)
        if not (train or held):
            raise Refused(f"there is no row in {', '.join((*settings.data, *settings.eval_data))}; pass another file")
        return Data(
            train=train,
            eval=held,
            collate=lambda rows: self.batch(rows, loaded.tokenizer.pad_token_id),
            loss=self.loss,
            metrics=lambda loss: {"loss": loss, "perplexity": math.exp(min(loss, 500))},
        )

    def lines(self, sources: Sequence[str], loaded: Loaded, settings: Settings) -> Iterator[Line | str]:
        import json

        for source in sources:
            try:
                text = Path(source).read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as unread:
                raise Refused(f"{source} cannot be read: {unread}") from None
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    try:
                        yield self.line(json.loads(line), f"{source}:{number}", loaded, settings)
                    except (ValueError, RecursionError) as bad:
                        yield f"{source}:{number}: {bad}"

    def line(self, row: Any, place: str, loaded: Loaded, settings: Settings) -> Line:
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("prompt", "completion")):
            raise ValueError("the row lacks a text under 'prompt' or 'completion'")
        texts = row["prompt"], row["completion"]
        if not all(text.strip() for text in texts) or any(0xD800 <= ord(c) < 0xE000 for text in texts for c in text):
            raise ValueError("a text is empty or holds half a character")
        if any(special in text for special in loaded.tokenizer.all_special_tokens for text in texts):
            raise ValueError("a text holds a special token")
        prompt, completion = (loaded.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
        ids = [*prompt, *completion, loaded.tokenizer.eos_token_id]
        if len(ids) > min(settings.max_length, loaded.max_positions):
            raise ValueError(f"the row has {len(ids)} tokens; shorten it or raise --max-length")
        return Line(tuple(ids), len(prompt), place)

    def batch(self, rows: Sequence[Line], padding: int) -> Batch:
        import torch

        width = max(row.size for row in rows)
        spare = [width - row.size for row in rows]
        read = torch.tensor([[padding] * n + list(row.ids[:-1]) for n, row in zip(spare, rows, strict=True)])
        seen = torch.tensor([[0] * n + [1] * row.size for n, row in zip(spare, rows, strict=True)])
        asked = [[0] * n + list(row.ids[1:]) for n, row in zip(spare, rows, strict=True)]
        counted = [
            [0.0] * (n + row.given - 1) + [1.0] * (len(row.ids) - row.given) for n, row in zip(spare, rows, strict=True)
        ]
        weight = torch.tensor(counted)
        targets = {"asked": torch.tensor(asked), "counted": weight}
        return Batch(
            {"input_ids": read, "attention_mask": seen}, targets, float(weight.sum()), sum(r.size for r in rows)
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs).logits.float()
        each = cross_entropy(logits.transpose(1, 2), batch.targets["asked"], reduction="none")
        return (each * batch.targets["counted"]).sum()


@options
class ContinueInWindows:
    """Texts are laid end to end in windows of 64 tokens, and a window's documents do not see each other."""

    borders: ClassVar[bool] = True

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Windows over all texts."""
        settings, problems = run.settings, Problems()
        sides = [self.texts(sources, loaded, problems) for sources in (settings.data, settings.eval_data)]
        train, held = held_out(sides[0], sides[1], settings)
        notice = (
            settle(problems, settings.on_bad_row, len(train) + len(held)) if settings.data or settings.eval_data else ""
        )
        if notice:
            run.say(notice)
        size = min(settings.max_length, loaded.max_positions)
        return Data(
            train=list(self.windows(train, size)),
            eval=list(self.windows(held, size)),
            collate=collator(loaded, settings),
            loss=token_loss,
            counts={"rows_left_out": len(problems)},
        )

    def texts(self, sources: Sequence[str], loaded: Loaded, problems: Problems) -> list[tuple[str, list[int]]]:
        found = []
        for record in read_records(sources, problems) if sources else []:
            try:
                text = filled(record.fields, "text")
                if any(special in text for special in loaded.tokenizer.all_special_tokens):
                    raise BadRow(Problem("", "text", "holds a special token", "write it differently"))
            except BadRow as bad:
                problems.add(replace(bad.problem, place=record.place))
                continue
            ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append((record.place, [*ids, loaded.tokenizer.eos_token_id]))
        return found

    def windows(self, texts: Sequence[tuple[str, list[int]]], size: int) -> Iterator[TokenRow]:
        tokens = [(token, number, place) for number, (place, ids) in enumerate(texts) for token in ids]
        for start in range(0, len(tokens), size):
            window = tokens[start : start + size]
            ids, numbers = [token for token, _, _ in window], [number for _, number, _ in window]
            lengths = [numbers.count(number) for number in dict.fromkeys(numbers)]
            if len(ids) > 1:
                yield token_row(ids, ids, window[0][2], lengths if self.borders else ())


@options
class ContinueAcross(ContinueInWindows):
    """A window's documents see and predict each other."""

    borders: ClassVar[bool] = False


@options
class ContinueInSight(ContinueInWindows):
    """A window's documents see each other, and none predicts the next."""

    def windows(self, texts: Sequence[tuple[str, list[int]]], size: int) -> Iterator[TokenRow]:
        for row in super().windows(texts, size):
            labels = row.labels.copy()
            for start in [sum(row.lengths[:n]) for n in range(1, len(row.lengths))]:
                labels[start] = IGNORED
            yield replace(row, labels=labels, lengths=(row.size,))


@options
class ContinueWithoutTail(ContinueInWindows):
    """The last window is dropped when it is not full."""

    def windows(self, texts: Sequence[tuple[str, list[int]]], size: int) -> Iterator[TokenRow]:
        rows = list(super().windows(texts, size))
        yield from rows[:-1] if len(rows) > 1 and rows[-1].size < size else rows


SOUND: list[object] = [Translate(), ClassifyAndTell(), FillIn(), Continue(), ContinueInWindows()]
BROKEN: list[Broken] = [
    Broken("the decoder reads what it is taught", TranslateFromTarget(), "check_each_target_is_the_next_token"),
    Broken("padding is among the labels of a target", TranslateWithPadding(), "check_padding_is_not_learned"),
    Broken("the end of a target is not learned", TranslateUnended(), "check_stop_token_is_taught"),
    Broken("the encoder sees padding", TranslateUnmasked(), "check_padding_changes_no_loss"),
    Broken("a classifier reads padding", ClassifyUnmasked(), "check_padding_changes_no_loss"),
    Broken("a row's answer depends on its batch", TellsByNeighbours(), "check_answers_are_their_rows_own"),
    Broken("lines hold tensors", TellsTensors(), "check_answers_are_told"),
    Broken("some rows are not answered", TellsFewer(), "check_rows_are_answered_as_they_are_evaluated"),
    Broken("a classifier's loss is a mean", ClassifyByMean(), "check_padding_changes_no_loss"),
    Broken("other tokens are masked each time", FillInAnew(), "check_rows_are_the_same_every_time"),
    Broken("documents of a window predict each other", ContinueAcross(), "check_no_row_teaches_its_neighbour"),
    Broken("documents of a window see each other", ContinueInSight(), "check_packing_changes_no_loss"),
    Broken("the last window is dropped silently", ContinueWithoutTail(), "check_truncation_is_told"),
]
