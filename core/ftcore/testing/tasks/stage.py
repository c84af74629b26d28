"""How a task is tried: rows made from its examples, written to a file, prepared for a model of two layers."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore.declaring import options
from ftcore.discovery import Chosen, bind, choose, declared_datum, with_options
from ftcore.families import HFModel
from ftcore.hooks import Data, Example, Intent, Loaded, Row, Run
from ftcore.pipeline import load_model
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing.kit import Bench, Failed
from ftcore.testing.stage import STAGES, Encoder, tiny_checkpoint
from ftcore.testing.tasks.listening import Heard, listen
from ftcore.training import Core

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_HEADS = ("causal-lm", "seq2seq-lm")
TOKEN_HEADS = (*TEXT_HEADS, "masked-lm")
CLASSIFYING = ("sequence-classification", "token-classification", "question-answering")
POSITIONS = 4096  # enough for every file of the kit in one row, so that nothing is cut where nothing should be


@options
class Placed(HFModel):
    """A decoder whose answers change when a token stands at another position, and which can be packed."""

    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    roles: ClassVar[Mapping[str, str]] = {"norm": "*layer_norm", "block": "model.decoder.layers.*", "head": "lm_head"}


@options
class Unpacked(Placed):
    """The same decoder as a family that cannot be packed."""

    unpackable: ClassVar[str] = "the kit asked for padding"


@options
class Headed(Encoder):
    """An encoder that gets the head that a task asks for, with as many labels."""

    drawn_heads: ClassVar[tuple[str, ...]] = CLASSIFYING
    roles: ClassVar[Mapping[str, str]] = {**Encoder.roles, "head": "classifier qa_outputs"}


# Two layers of a decoder that is told positions, in its own spelling.
PLACED: Mapping[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# Rows in the shapes that many data sets have, tried on a task that declares no examples: the first group it takes.
BY, SAT = "By the door.", "The cat sat by the door."
CHAT = [
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": BY},
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "It ran over the hill."},
]
PAIRS = (
    ("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
    ("input", "output"), ("input", "target"), ("source", "target"), ("text", "summary"),
)  # fmt: skip
SHAPES: tuple[tuple[Example, ...], ...] = (
    (Example({"messages": CHAT[:2]}, (BY,)), Example({"messages": CHAT}, (BY, "It ran over the hill."))),
    *((Example({a: "Where is the cat?", b: BY}, (BY,)),) for a, b in PAIRS),
    (Example({"text": SAT}, (SAT,)),),
    (Example({"content": SAT}, (SAT,)),),
    (Example({"prompt": "Where is the cat?", "chosen": BY, "rejected": "It ran."}),),
    (Example({"text": SAT, "label": 1}), Example({"text": "The dog ran.", "label": 0})),
    (Example({"tokens": ["The", "cat", "sat"], "labels": [0, 1, 0]}),),
    (Example({"tokens": ["The", "cat", "sat"], "tags": [0, 1, 0]}),),
    (Example({"question": "Who?", "context": "The cat sat.", "answers": {"text": ["The cat"], "answer_start": [0]}}),),
)  # fmt: skip


# Texts that people write and that code trips over; each must reach the model as it is, or be refused.
ODD_TEXTS: Mapping[str, str] = {
    "emoji": "Yes 👩‍👩‍👧‍👦🏽 🇳🇵!",
    "Chinese": "小猫在门口看雨。",
    "right-to-left": "שלום عالم\u202eabc",
    "combining": "Zͣ̀ͅe\u0301 ﬁ ½ Å",
    "braces": "{output} {0} {} %s %(x)s $HOME",
    "a template": "{{ 1 / 0 }} {% for x in y %} {# no #}",
    "markup": "<b>&amp;</b> \\n \\u0041 \"quoted\" 'single'",
    "lines": "one\n\ntwo\n  three\n",
    "the word None": "None",
    "digits": "007",
    "1,500 letters": "It rains. " * 150,
}


@dataclass(frozen=True)
class Case:
    """A row, the texts in it that are to be learned, and a name that stands in it where it is `marked`."""

    row: Mapping[str, Any]
    learned: tuple[str, ...]
    name: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Sheet:
    """A file, and what case stands on which of its lines."""

    file: Path
    lines: Mapping[int, Case]


@dataclass(frozen=True)
class Tried:
    """What a task made of a file for a model, and the notices that it gave."""

    head: str
    data: Data
    loaded: Loaded
    file: Path
    said: tuple[str, ...]
    compares: bool = False
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def train(self) -> list[Row]:
        """The rows to train on."""
        return list(self.data.train)

    @cached_property
    def held(self) -> list[Row]:
        """The rows held out."""
        return list(self.data.eval)

    @cached_property
    def readings(self) -> list[tuple[Row, Heard]]:
        """What each row teaches as the only one of its batch, those to train on first."""
        return [(row, self.heard([row])) for row in (*self.train, *self.held)]

    @property
    def sides(self) -> tuple[list[tuple[Row, Heard]], list[tuple[Row, Heard]]]:
        """The readings of the rows to train on and of those held out."""
        return self.readings[: len(self.train)], self.readings[len(self.train) :]

    def tokens(self, row: Row) -> list[int]:
        """What a model reads of a row, and after it what a decoder says that reads otherwise."""
        inputs = self.data.collate([row]).inputs
        names = [name for name in inputs if name.endswith("input_ids")]
        names += ["labels"] if self.head == "seq2seq-lm" and "decoder_input_ids" not in names else []
        ids = [int(token) for name in names for token in inputs.get(name, inputs["input_ids"]).reshape(-1).tolist()]
        return [token for token in ids if token >= 0]

    def heard(self, rows: Sequence[Row]) -> Heard:
        """What the rows, which are its own, teach as one batch."""
        key = ("heard", *map(id, rows))
        if key not in self.made:
            self.made[key] = listen(self.loaded.model, self.data.loss, self.data.collate(rows))
        found: Heard = self.made[key]
        return found

    def cost(self, rows: Sequence[Row]) -> float:
        """The loss of the rows, which are its own, as one batch of the model itself."""
        import torch

        key = ("cost", *map(id, rows))
        if key not in self.made:
            with torch.no_grad():
                self.made[key] = float(self.data.loss(self.loaded.model, self.data.collate(rows)))
        found: float = self.made[key]
        return found

    @property
    def left_out(self) -> int | None:
        """How many rows it says it left out, or None where it says nothing."""
        return self.data.counts.get("rows_left_out")

    def mentions(self, number: int) -> bool:
        """Whether a notice names that number."""
        return any(str(number) in line.replace(",", " ").replace(".", " ").split() for line in self.said)


# --- the model and its tokenizer -------------------------------------------------------------------------


def head(plugin: object) -> str:
    """The head that a task asks for."""
    asked: str = declared_datum(plugin, "head")
    return asked


def family(bench: Bench, *, packed: bool = True) -> HFModel:
    """The kit's own family with the head that the task asks for."""
    wanted = head(bench.plugin)
    if wanted not in STAGES:
        raise Failed(
            f"it asks for the head '{wanted}', and there are {', '.join(STAGES)}; set its class attribute head"
        )
    if wanted == "causal-lm":
        return Placed() if packed else Unpacked()
    return Headed() if wanted in CLASSIFYING else STAGES[wanted][0]()


def checkpoint(bench: Bench) -> Path:
    """A checkpoint of that family, with positions for long rows."""
    wanted = head(bench.plugin)
    if wanted == "causal-lm":
        return tiny_checkpoint("opt", max_position_embeddings=POSITIONS, **PLACED)
    return tiny_checkpoint(STAGES[wanted][1], wanted, max_position_embeddings=POSITIONS)


def loaded(bench: Bench, *, packed: bool = True) -> Loaded:
    """The model of that checkpoint, with a tokenizer that nobody else holds."""
    chosen = _chosen(bench, bench.plugin, Run(Settings(), "infer", head(bench.plugin)))
    made = _with_head(bench, chosen, packed=packed)
    return replace(made, tokenizer=copy.deepcopy(made.tokenizer))


def _with_head(bench: Bench, chosen: Chosen, *, packed: bool = True) -> Loaded:
    """The model of that checkpoint with the head that the task asks for."""
    run = Run(Settings(checkpoint=str(checkpoint(bench))), "infer", head(bench.plugin))
    asked = bind([chosen], Core()).load_kwargs(run)
    hooks = bind([choose("model", family(bench, packed=packed), {}), chosen], Core())
    made: Loaded = bench.once(("loaded", packed, json.dumps(asked, sort_keys=True)), lambda: load_model(hooks, run))
    return made


def _chosen(bench: Bench, plugin: object, run: Run) -> Chosen:
    """The task with the options that its examples and the rows of a run decide, so that a row alone has them too."""
    chosen = replace(bench.chosen, plugin=plugin)
    if not hasattr(type(plugin), "fill_options"):
        return chosen
    examples = bench.once("examples", lambda: str(file_of(bench, _declared(bench))))
    run = replace(run, intent="plan", settings=replace(run.settings, data=(examples, *run.settings.data)))
    return with_options(chosen, bind([chosen], Core()).fill_options(run, chosen))


def other(bench: Bench) -> Loaded:
    """The same model with a tokenizer that begins texts with a token, ends, pads and talks otherwise."""
    made = loaded(bench)
    tokenizer = other_tokenizer(made.tokenizer)
    return replace(made, tokenizer=tokenizer, stop_ids=(tokenizer.eos_token_id,))


def other_tokenizer(tokenizer: Any) -> Any:
    """`tokenizer` changed in everything that a task must not take for granted."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|endoftext|>", "<|im_end|>"
    tokenizer.padding_side, tokenizer.chat_template = "left", OTHER_TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    return tokenizer


# --- files and what a task makes of them -----------------------------------------------------------------


def written(bench: Bench, lines: Iterable[str | bytes]) -> Path:
    """A file with these lines."""
    file = bench.place("rows.jsonl")
    file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return file


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of a file."""
    return json.dumps(row, ensure_ascii=False)


def file_of(bench: Bench, cases: Iterable[Case]) -> Path:
    """A file with the rows of these cases, a line each."""
    return written(bench, (line(case.row) for case in cases))


def prepare(
    bench: Bench, file: Path | None, *, plugin: object = None, base: Loaded | None = None, intent: Intent = "train",
    **settings: Any,
) -> Tried:  # fmt: skip
    """What the task makes of a file, as in a run with these settings."""
    said: list[str] = []
    given = Settings(**{"data": (str(file),) if file else (), "max_length": POSITIONS, **settings})
    run = Run(given, intent, head(bench.plugin), None, said.append)
    chosen = _chosen(bench, plugin or bench.plugin, run)
    hooks, base = bind([chosen], Core()), base or loaded(bench)
    labels = base.model.config.num_labels  # type: ignore[union-attr]
    if hooks.load_kwargs(run).get("num_labels", labels) != labels:
        base = replace(base, model=_with_head(bench, chosen).model)
    with seeded(given.seed, "data"):
        data = hooks.prepare_data(run, base)
    if not isinstance(data, Data):
        raise Failed(f"prepare_data returned {type(data).__name__}; return ftcore.Data")
    compares: bool = declared_datum(bench.plugin, "compares")
    return Tried(head(bench.plugin), data, base, file or Path(), tuple(said), compares)


# --- cases -----------------------------------------------------------------------------------------------


def cases(bench: Bench) -> tuple[Case, ...]:
    """The task's examples, or rows of a common shape that it takes; none when it reads no file."""
    found: tuple[Case, ...] = bench.once("cases", lambda: _declared(bench) or _guessed(bench))
    return found


def _declared(bench: Bench) -> tuple[Case, ...]:
    declared = declared_datum(bench.plugin, "examples")
    if not isinstance(declared, tuple) or not all(isinstance(one, Example) for one in declared):
        raise Failed("its class attribute 'examples' is no tuple of ftcore.Example; make it one")
    return tuple(Case(one.row, one.learned) for one in declared)


def _guessed(bench: Bench) -> tuple[Case, ...]:
    for shape in SHAPES:
        found = [Case(one.row, one.learned if head(bench.plugin) in TEXT_HEADS else ()) for one in shape]
        taken = [case for case in found if _takes(bench, case)]
        if taken and _reads(bench, taken[0]):
            return tuple(taken)
    return ()


def _takes(bench: Bench, case: Case) -> bool:
    """Whether the task makes a row of the case; what it raises otherwise is its own business here."""
    try:
        tried = prepare(bench, file_of(bench, [case, case]))
        return bool(len(tried.data.train)) and all(tried.data.collate([row]).weight > 0 for row in tried.data.train)
    except Exception:
        return False


def _reads(bench: Bench, case: Case) -> bool:
    """Whether what the task learns is another when each text in the row is another."""
    before = {row.identity() for row in prepare(bench, file_of(bench, [case])).data.train}
    for place, _ in leaves(case.row):
        changed = replace(case, row=with_leaf(case.row, place, "小猫在门口看雨。"))
        if not _takes(bench, changed):
            continue
        after = {row.identity() for row in prepare(bench, file_of(bench, [changed])).data.train}
        if before == after:
            return False
    return True


def reads_files(bench: Bench) -> bool:
    """Whether the rows come from a file at all."""
    return bool(cases(bench))


def crowd(bench: Bench, count: int = 10, first: int = 0) -> tuple[Case, ...]:
    """Rows made from the examples, of differing length and each with a mark, where the task takes such rows."""

    def make() -> tuple[Case, ...]:
        plain = cases(bench) or tuple(Case(one.row, ()) for one in SHAPES[0])
        numbers = range(first, first + count)
        marked = tuple(varied(plain[number % len(plain)], number) for number in numbers)
        if all(_takes(bench, case) for case in marked[: len(plain)]):
            return marked if _shows(bench, marked) else tuple(replace(case, marked=False) for case in marked)
        return tuple(replace(plain[number % len(plain)], name=f"row {number}") for number in numbers)

    made: tuple[Case, ...] = bench.once(("crowd", count, first), make)
    return made


def _shows(bench: Bench, marked: Sequence[Case]) -> bool:
    """Whether the names of cases can be read in the rows that the task makes of them; where texts are said, of most."""
    marked = marked[:10]
    tried = prepare(bench, file_of(bench, marked))
    text = " ".join(text_of(tried, row) for row in tried.train)
    readable = sum(case.name in text for case in marked)
    return readable == len(marked) or (head(bench.plugin) in TEXT_HEADS and 2 * readable > len(marked))


def varied(case: Case, number: int) -> Case:
    """The case with more to learn, or with a longer text where none is learned, and with its number as its name."""
    name = f"row{number:03d}"
    more = f"{' It rains.' * (number % 4)} {name}"
    texts = list(leaves(case.row))
    homes = {text: _homes(text, texts) for text in case.learned}
    if not homes or not all(homes.values()):
        place, text = max(texts, key=lambda found: len(found[1]), default=((), ""))
        return replace(case, row=with_leaf(case.row, place, f"{text}{more}"), name=name, marked=True)
    row: Any = case.row
    for text, places in homes.items():
        for place in places:
            row = with_leaf(row, place, dict(texts)[place].replace(text, text + more, 1))
    return Case(row, tuple(text + more for text in case.learned), name, marked=True)


def _homes(text: str, texts: Sequence[tuple[tuple[Any, ...], str]]) -> list[tuple[Any, ...]]:
    """Where a learned text stands: as a whole, else inside another text."""
    return [place for place, leaf in texts if leaf == text] or [place for place, leaf in texts if text in leaf]


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text in a row, with the keys that lead to it."""
    if isinstance(value, str):
        yield place, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield from leaves(held, (*place, key))


def with_leaf(value: Any, place: tuple[Any, ...], text: Any) -> Any:
    """The row with something else where `place` leads."""
    if not place:
        return text
    key, *rest = place
    held = dict(value) if isinstance(value, Mapping) else list(value)
    held[key] = with_leaf(held[key], tuple(rest), text)
    return held


def everything(bench: Bench, **settings: Any) -> Tried:
    """What the task makes of a crowd, with another crowd held out."""

    def make() -> Tried:
        held = {"eval_data": (str(file_of(bench, crowd(bench, 6, 100))),)}
        return prepare(bench, file_of(bench, crowd(bench)), **{**held, **settings})

    made: Tried = bench.once(("everything", tuple(sorted(settings.items()))), make)
    return made


def alone(bench: Bench) -> tuple[tuple[Case, Tried], ...]:
    """Each row of the crowd as the only one in its file."""

    def make() -> tuple[tuple[Case, Tried], ...]:
        return tuple((case, prepare(bench, file_of(bench, [case]))) for case in crowd(bench))

    made: tuple[tuple[Case, Tried], ...] = bench.once("alone", make)
    return made


# --- what is in rows -------------------------------------------------------------------------------------


def text_of(tried: Tried, row: Row) -> str:
    """All that a model reads and says with a row, as text."""
    return text_from(tried, tried.tokens(row))


def text_from(tried: Tried, ids: Sequence[int]) -> str:
    """Tokens as text."""
    return str(tokenizer_of(tried).decode(list(ids)))


def tokenizer_of(tried: Tried) -> PreTrainedTokenizerBase:
    """The tokenizer that a task was given."""
    assert tried.loaded.tokenizer is not None
    return tried.loaded.tokenizer


def sheet_of(bench: Bench, cases: Sequence[Case]) -> Sheet:
    """A file with a case on each line."""
    return Sheet(file_of(bench, cases), dict(enumerate(cases, start=1)))


def present(tried: Tried, rows: Sequence[Row], sheet: Sheet) -> Counter[str]:
    """How often each case of a sheet is in rows: its name in their texts, or its line as their place."""
    cases = {case.name: case for case in sheet.lines.values()}
    if not all(case.marked for case in cases.values()):
        at = {f"{sheet.file}:{number}": case.name for number, case in sheet.lines.items()}
        return Counter(at[row.place] for row in rows if row.place in at)
    texts = [text_of(tried, row) for row in rows]
    found = {name: sum(text.count(name) for text in texts) for name in cases}
    return Counter({name: count for name, count in found.items() if count})
