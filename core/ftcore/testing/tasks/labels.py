"""What a task promises of its labels: each learned text and the token that ends it, from the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ftcore.errors import Refused
from ftcore.hooks import Row
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.tasks.listening import Heard
from ftcore.testing.tasks.stage import (
    ODD_TEXTS,
    TEXT_HEADS,
    Case,
    Tried,
    alone,
    cases,
    crowd,
    everything,
    file_of,
    head,
    leaves,
    other,
    prepare,
    reads_files,
    text_from,
    text_of,
    tokenizer_of,
    with_leaf,
)  # fmt: skip


def shown(text: str) -> str:
    """A text as messages show it."""
    return repr(text if len(text) <= 60 else f"{text[:40]}…{text[-19:]}")


def brief(refused: Refused) -> str:
    """A refusal in one line."""
    said = " ".join(str(refused).split())
    return said if len(said) <= 200 else f"{said[:199]}…"


def check_examples_are_read(task: object, bench: Bench | None = None) -> None:
    """The rows that it declares as `examples` are rows that it reads, and each holds something to learn."""
    bench = bench_of("task", task, bench)
    found = cases(bench)
    if not found:
        _has_rows_of_its_own(bench)
    for number, case in enumerate(found):
        try:
            tried = prepare(bench, file_of(bench, [case]))
        except Refused as refused:
            raise Failed(
                f"example {number + 1} is refused: {brief(refused)}; declare a row that the task reads"
            ) from None
        if not tried.train:
            raise Failed(f"example {number + 1} alone gives no row to train on; give every sound row to the model")
        _batches_have_weight(tried)


def _has_rows_of_its_own(bench: Bench) -> None:
    try:
        tried = prepare(bench, file_of(bench, crowd(bench)))
    except Refused as refused:
        raise Failed(
            f"it reads rows of no common shape ({brief(refused)}), so there is nothing to try it on; declare "
            'examples: ClassVar = (ftcore.Example({"question": "…", "answer": "…"}, learned=("…",)),)'
        ) from None
    if not tried.train:
        raise Failed("it gives no row to train on; declare the rows that it reads as its class attribute 'examples'")
    _batches_have_weight(tried)


def _batches_have_weight(tried: Tried) -> None:
    for row in (*tried.train, *tried.held):
        batch = tried.data.collate([row])
        if not batch.weight > 0:
            raise Failed(f"the row {row.place} has weight {batch.weight}, so nothing is learned from it")


def voices(bench: Bench) -> list[Voice]:
    """Each row of a crowd alone in a file, to train on, held out, with another tokenizer; then rows that mislead."""

    def make() -> list[Voice]:
        made = crowd(bench)
        found = [Voice(case, tried, 0) for case, tried in alone(bench)]
        for case in made[: max(4, len(cases(bench)))]:
            apart = str(file_of(bench, [case]))
            found.append(Voice(case, prepare(bench, file_of(bench, made[-1:]), eval_data=(apart,)), 1))
            found += _voiced(bench, case, base=other(bench))
        for case in misleading(cases(bench)):
            with suppress(Exception):  # what a task raises is for the checks of hostile rows to say
                found += _voiced(bench, case)
        return found

    made: list[Voice] = bench.once("voices", make)
    return made


@dataclass(frozen=True)
class Voice:
    """A case alone among the rows to train on (side 0) or among those held out (side 1)."""

    case: Case
    tried: Tried
    side: int

    @property
    def readings(self) -> list[tuple[Row, Heard]]:
        """What its rows teach."""
        return self.tried.sides[self.side]


def _voiced(bench: Bench, case: Case, **settings: Any) -> list[Voice]:
    """The case to train on, unless the task refuses it or reads a text otherwise than it is written."""
    try:
        tried = prepare(bench, file_of(bench, [case]), **settings)
    except Refused:
        return []
    read = " ".join(text_of(tried, row) for row in tried.train)
    return [Voice(case, tried, 0)] if all(text.strip() in read for text in case.learned) else []


def misleading(cases: Sequence[Case]) -> Iterator[Case]:
    """Rows whose texts are of many bytes and lines, or that say in the prompt what the answer says and the reverse."""
    for case in cases[:3]:
        for text in case.learned[:1]:
            places = [place for place, leaf in leaves(case.row) if leaf == text]
            for odd in ODD_TEXTS.values() if places and case is cases[0] else ():
                said = f"{text} {odd.strip()} now"
                yield Case(with_leaf(case.row, places[0], said), (said, *case.learned[1:]))
            for place, leaf in leaves(case.row):
                if leaf not in case.learned:
                    yield Case(with_leaf(case.row, place, f"🙂小狗 {leaf}"), case.learned)
                    yield Case(with_leaf(case.row, place, f"{leaf} {text}"), case.learned)
                    yield Case(with_leaf(case.row, place, text), case.learned)
                if leaf not in case.learned and places:
                    said = f"{leaf} {text}"
                    yield Case(with_leaf(case.row, places[0], said), (said, *case.learned[1:]))


def check_each_target_is_the_next_token(task: object, bench: Bench | None = None) -> None:
    """What a position is taught to predict is the token that comes next in its row, neither an earlier nor a later."""
    bench = bench_of("task", task, bench)
    tries = [voice.tried for voice in voices(bench)] if reads_files(bench) else [everything(bench)]
    for tried in tries:
        for row, heard in tried.readings:
            _follows(tried, row, heard)


def _follows(tried: Tried, row: Row, heard: Heard) -> None:
    name = "decoder_input_ids" if "decoder_input_ids" in heard.inputs else "input_ids"
    if name == "input_ids" and "labels" in heard.inputs and len(heard.logits) != heard.inputs["input_ids"].numel():
        return  # an encoder-decoder shifts its labels itself
    if not heard.placed or name not in heard.inputs:
        raise Failed(f"{row.place}: the kit cannot tell which token its logits belong to; excuse the check")
    ids, real = heard.inputs[name], _real(heard, name)
    for one in heard.taught:
        seen = [place for place in range(ids.shape[1]) if place > one.position and real[one.row][place]]
        if seen and int(ids[one.row, seen[0]]) != one.target:
            found, asked = (shown(text_from(tried, [token])) for token in (ids[one.row, seen[0]], one.target))
            raise Failed(
                f"{row.place}: after position {one.position} comes {found}, and {asked} is to be predicted there; "
                f"{_shift(ids[one.row].tolist(), one.position, one.target)}"
            )


def _real(heard: Heard, name: str) -> list[list[bool]]:
    """Which tokens of a batch are none of its padding."""
    mask = heard.inputs.get("decoder_attention_mask" if name.startswith("decoder") else "attention_mask")
    ids = heard.inputs[name]
    if mask is None or mask.shape != ids.shape:
        return [[True] * ids.shape[1]] * ids.shape[0]
    found: list[list[bool]] = mask.bool().tolist()
    return found


def _shift(ids: Sequence[int], position: int, target: int) -> str:
    for distance, told in (
        (0, "labels are not shifted: a position is taught the token it reads"),
        (2, "shifted twice"),
    ):
        if position + distance < len(ids) and ids[position + distance] == target:
            return told if distance == 0 else f"labels are {told}: shift them once"
    return "the label of a position must be the token that follows it"


def check_answers_are_learned_and_nothing_else(task: object, bench: Bench | None = None) -> None:
    """Every text that is to be learned is learned whole, and nothing of the prompt, the roles or the rest of a row."""
    bench = bench_of("task", task, bench)
    for voice in voices(bench) if reads_files(bench) else []:
        _learns(voice.case, voice.tried, voice.readings)


def _learns(case: Case, tried: Tried, side: Sequence[tuple[Row, Heard]]) -> None:
    ids, place = lesson(tried, side), side[0][0].place
    said = without(tried, ids)
    rest = said
    for text in case.learned:
        before, found, rest = rest.partition(text.strip())
        if not found:
            raise Failed(
                f"{place}: {shown(text)} is to be learned, and what is learned is {shown(said)}; "
                "supervise every token of every answer"
            )
        if before.strip():
            raise Failed(f"{place}: {shown(before)} is learned too, and is no answer; mask it with -100")
    strange = next(_strangers(ids, special_ids(tried), stop_ids(tried)), None) if case.learned else None
    if strange is not None:
        named = tokenizer_of(tried).convert_ids_to_tokens(strange)
        raise Failed(f"{place}: the token {named!r} is learned too, and is no answer; mask it with -100")
    if case.learned and rest.strip():
        raise Failed(f"{place}: {shown(rest)} is learned too, and is no answer; mask it with -100")


def _strangers(ids: Sequence[int], specials: frozenset[int], stops: frozenset[int]) -> Iterator[int]:
    """Special tokens that do not follow a text, in the place of its stop token."""
    before: int | None = None
    for token in ids:
        if token in specials - stops and (before is None or before in specials):
            yield token
        before = token


def lesson(tried: Tried, side: Sequence[tuple[Row, Heard]]) -> list[int]:
    """The tokens that rows teach, in order, with the first of a row where nothing stands before it."""
    ids: list[int] = []
    for row, heard in side:
        ordered = sorted(heard.taught, key=lambda one: (one.row, one.position))
        read = tried.tokens(row)
        begins = tried.head == "causal-lm" and heard.placed and bool(ordered) and ordered[0].position == 0
        if begins and read[0] not in special_ids(tried):
            ids.append(read[0])
        ids += [one.target for one in ordered]
    return ids


def special_ids(tried: Tried) -> frozenset[int]:
    """The tokens that are no text, stop tokens included."""
    return frozenset(tokenizer_of(tried).all_special_ids) | stop_ids(tried)


def stop_ids(tried: Tried) -> frozenset[int]:
    """The tokens that end what a model says."""
    return frozenset(tried.data.stop_ids) | frozenset(tried.loaded.stop_ids)


def without(tried: Tried, ids: Sequence[int]) -> str:
    """Tokens as text, those that are no text left out."""
    specials = special_ids(tried)
    return str(tokenizer_of(tried).decode([token for token in ids if token not in specials]))


def check_stop_token_is_taught(task: object, bench: Bench | None = None) -> None:
    """After every learned text, and nowhere else, a token is learned at which the model will be stopped."""
    bench = bench_of("task", task, bench)
    for voice in voices(bench) if reads_files(bench) else []:
        if voice.case.learned:
            _stops(voice.case, voice.tried, voice.readings)


def _stops(case: Case, tried: Tried, side: Sequence[tuple[Row, Heard]]) -> None:
    ids, stops = lesson(tried, side), stop_ids(tried)
    for token in tried.data.stop_ids:
        if not isinstance(token, int) or not 0 <= token < tried.loaded.vocab_size:
            raise Failed(f"{token!r} is among the stop tokens and no token of the model; name tokens by their numbers")
    said = [without(tried, part).strip() for part in _parts(ids, stops)]
    wanted = [text.strip() for text in case.learned]
    if len(said) > len(wanted) and said[: len(wanted)] == wanted and not any(said[len(wanted) :]):
        return
    tokenizer = tokenizer_of(tried)
    after = next((i for i, text in enumerate(wanted) if i >= len(said) - 1 or said[i] != text), len(wanted) - 1)
    named = ", ".join(tokenizer.convert_ids_to_tokens(sorted(stops)))
    strange = [token for token in ids if token in special_ids(tried) - stops]
    found = f"; {tokenizer.convert_ids_to_tokens(strange[0])!r} is learned, which stops nothing" if strange else ""
    raise Failed(
        f"{side[0][0].place}: after {shown(wanted[after])} no stop token ({named}) is learned{found}: "
        "such a model would not end that answer; supervise the token that the model is stopped at"
    )


def _parts(ids: Sequence[int], stops: frozenset[int]) -> list[list[int]]:
    """Tokens parted after each stop token; the last part is what comes after the last of them."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token in stops:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def check_a_row_begins_once(task: object, bench: Bench | None = None) -> None:
    """A text that a tokenizer begins with a token of its own begins with one, not with two."""
    bench = bench_of("task", task, bench)
    for tried in [voice.tried for voice in voices(bench)] if reads_files(bench) else []:
        begin: Any = tokenizer_of(tried).bos_token_id
        for row in (*tried.train, *tried.held):
            ids = tried.tokens(row)
            if begin is not None and ids[:2] == [begin, begin]:
                raise Failed(
                    f"{row.place} begins with {tokenizer_of(tried).bos_token!r} twice, from the template and from the "
                    "tokenizer; pass add_special_tokens=False to one of them"
                )


def supervised_texts(task: object) -> bool:
    """Whether a task's head says texts."""
    return head(task) in TEXT_HEADS
