"""Running text fills windows to the last token, documents never see each other, and its bits are counted right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore.batches import TokenRow, digest, sizes_of
from ftcore.hooks import Data, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing import task_checks
from ftcore_pretrain import Pretrain
from torch.nn.functional import cross_entropy

SEPARATOR = "\n<|endoftext|>\n"


def prepared(loaded: Loaded, data: Path, own: dict[str, Any] | None = None, **keys: Any) -> Data:
    """The task's rows for a run on `data`; `own` are its options."""
    run = Run(Settings(data=(str(data),), **keys), "train", "causal-lm")
    return Pretrain(**(own or {})).prepare_data(run, loaded)


def documents(file: Path) -> list[str]:
    """The texts that the story fixture wrote."""
    return file.read_text(encoding="utf-8").split(SEPARATOR)


def laid_out(rows: Sequence[TokenRow]) -> list[list[int]]:
    """The documents as the rows hold them: pieces, in order."""
    pieces = []
    for row in rows:
        start = 0
        for length in row.lengths:
            pieces.append(row.input_ids[start : start + length].tolist())
            start += length
    return pieces


@pytest.mark.parametrize("length", [2, 7, 40, 64, 10_000])
@pytest.mark.parametrize(
    ("edges", "before", "after"),
    [
        ({}, [], ["<|im_end|>"]),
        ({"bos": "<|im_start|>", "eos": "<|endoftext|>"}, ["<|im_start|>"], ["<|endoftext|>"]),
        ({"bos": "none", "eos": "none"}, [], []),
    ],
)
def test_windows_are_full_and_hold_every_document_between_its_edges(
    length: int, edges: dict[str, str], before: list[str], after: list[str],
    checkpoint: Callable[..., Path], story: Path,
) -> None:  # fmt: skip
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    own = {name: None if value == "none" else value for name, value in edges.items()}
    data = prepared(loaded, story, own, max_length=length)
    tokenizer = loaded.tokenizer
    wanted = [
        tokenizer.convert_tokens_to_ids([*before, *tokenizer.tokenize(text), *after]) for text in documents(story)
    ]
    size = min(length, loaded.max_positions)
    assert [row.size for row in data.train[:-1]] == [size] * (len(data.train) - 1)
    assert 2 <= data.train[-1].size <= size
    whole = [token for row in data.train for token in row.input_ids.tolist()]
    laid = [token for ids in wanted for token in ids]
    assert whole == laid[: len(whole)]
    assert len(laid) - len(whole) <= 1  # a single token left over has nothing to predict
    assert all(row.labels.tolist() == row.input_ids.tolist() for row in data.train)
    starts = {0}
    for ids in wanted:
        starts.add(max(starts) + len(ids))
    for row, offset in zip(data.train, range(0, len(whole), size), strict=True):
        assert sum(row.lengths) == row.size
        borders = {offset + sum(row.lengths[:i]) for i in range(len(row.lengths))} - {offset}
        assert borders == {start for start in starts if offset < start < offset + row.size}
    assert data.counts["documents"] == 4
    assert data.counts["supervised_tokens"] == sum(row.size - len(row.lengths) for row in data.train)


def test_the_pieces_of_the_rows_read_as_the_documents(checkpoint: Callable[..., Path], story: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    pieces = laid_out(prepared(loaded, story, max_length=9999).train)
    whole = "".join(loaded.tokenizer.decode(piece) for piece in pieces)
    assert whole == "".join(text + "<|im_end|>" for text in documents(story))


def test_without_a_separator_the_file_is_one_document(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("The cat sat.\n\nThe dog ran.\n", encoding="utf-8")
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    row = prepared(loaded, file, {"separator": None}).train[0]
    assert loaded.tokenizer.decode(row.input_ids.tolist()) == "The cat sat.\n\nThe dog ran.<|im_end|>"


def test_a_document_does_not_change_the_loss_of_another(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))

    def losses(first: str) -> list[float]:
        """The loss of each token of the last two documents beside `first`."""
        file = tmp_path / "text.txt"
        file.write_text(SEPARATOR.join([first, "The dog ran over the hill.", "The rain!"]), encoding="utf-8")
        row = prepared(loaded, file).train[0]
        assert len(row.lengths) == 3
        batch = Pretrain().prepare_data(Run(Settings(data=(str(file),)), "train", "causal-lm"), loaded).collate([row])
        with torch.no_grad():
            logits = loaded.model(**batch.inputs).logits[0]
        each = cross_entropy(logits, batch.targets["labels"], reduction="none").tolist()
        return each[row.lengths[0] - 1 :]

    assert losses("The cat sat by the door.") == pytest.approx(losses("小猫在门口看雨。"), rel=1e-5)
    assert len(losses("Lily said hello.")) > 5


def nats(folder: Path, texts: Sequence[str], before: list[int], after: list[int], length: int) -> tuple[float, int]:
    """The losses of each document on its own, at most `length` tokens at once, by plain transformers; and how many."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, predicted = 0.0, 0
    for text in texts:
        ids = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"], *after]
        while len(ids) > 1:
            seen = torch.tensor([ids[:length]])
            with torch.no_grad():
                total += float(model(input_ids=seen, labels=seen).loss) * (seen.shape[1] - 1)
            predicted += seen.shape[1] - 1
            ids = ids[length - 1 :]
    return total, predicted


@pytest.mark.parametrize("length", [256, 64, 9])
def test_bits_per_character_are_those_of_plain_transformers(
    length: int, checkpoint: Callable[..., Path], story: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2")
    outcome = ftcore.run(
        method="lora", task="pretrain", model="qwen", checkpoint=folder, data=story, eval_data=story, steps=1,
        output=tmp_path / "run", max_length=length, batch_size=3, pretrain={"bos": "<|endoftext|>"},
    )  # fmt: skip
    texts = documents(story)
    total, predicted = nats(folder, texts, [0], [2], length)
    assert outcome.before["tokens"] == predicted
    assert outcome.before["loss"] == pytest.approx(total / predicted, rel=1e-5)
    assert outcome.before["perplexity"] == pytest.approx(math.exp(total / predicted), rel=1e-4)
    bits = total / math.log(2) / sum(len(text) for text in texts)
    assert outcome.before["bits_per_character"] == pytest.approx(bits, rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["eval_bits_per_character"] == outcome.before["bits_per_character"]


def test_held_out_documents_are_measured_each_on_its_own(checkpoint: Callable[..., Path], story: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    data = prepared(loaded, story, eval_data=(str(story),), max_length=256)
    assert [len(row.lengths) for row in data.eval] == [1, 1, 1, 1]
    shared = prepared(loaded, story, eval_share=0.25, max_length=256)
    held = {loaded.tokenizer.decode(row.input_ids.tolist()) for row in shared.eval}
    assert len(held) == 1
    assert held.isdisjoint({loaded.tokenizer.decode(piece) for piece in laid_out(shared.train)})


def test_rows_with_text_are_documents_too(checkpoint: Callable[..., Path], story: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(story)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    one, other = prepared(loaded, story, max_length=50), prepared(loaded, file, max_length=50)
    assert [row.identity() for row in one.train] == [row.identity() for row in other.train]


def test_an_opening_begins_as_a_document_does(checkpoint: Callable[..., Path], story: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    probe = prepared(loaded, story, {"show": ("The cat",), "bos": "<|im_start|>"}).probes[0]
    assert loaded.tokenizer.decode(list(probe.input_ids)) == "<|im_start|>The cat"


@pytest.mark.parametrize(("edge", "token"), [("bos", "<s>"), ("eos", "The@@")])
def test_an_edge_that_is_no_token_is_refused(
    edge: str, token: str, checkpoint: Callable[..., Path], story: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    with pytest.raises(ftcore.Refused, match=f"option '{edge}' is '{token}', which is no token of this tokenizer"):
        prepared(loaded, story, {edge: token})


def test_the_built_in_sample_is_announced_and_usable(checkpoint: Callable[..., Path]) -> None:
    loaded, said = ftcore.load("qwen", checkpoint=checkpoint("qwen2")), list[str]()
    data = Pretrain().prepare_data(Run(Settings(), "train", "causal-lm", say=said.append), loaded)
    assert data.counts["documents"] == 38
    assert data.counts["duplicates"] == data.counts["held_out_rows_trained_on"] == 0
    assert len({row.place for row in data.eval}) == 7
    assert len(data.probes) == 2
    assert any("built-in sample is used; pass --data" in line for line in said)


def test_a_bad_document_is_refused_by_file_and_line_or_counted(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "The cat sat."}\n{"text": 3}\n{"text": "The dog ran."}\n', encoding="utf-8")
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: text is the number 3"):
        prepared(loaded, file)
    counts = prepared(loaded, file, on_bad_row="skip").counts
    assert (counts["documents"], counts["rows_left_out"]) == (2, 1)


@pytest.mark.parametrize("special", ["<|im_end|>", "<|endoftext|>"])
def test_a_special_token_written_in_a_document_is_refused_by_file_and_line(
    special: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "The cat sat."}}\n{{"text": "Say {special} now."}}\n', encoding="utf-8")
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    with pytest.raises(ftcore.Refused, match=r"rows\.jsonl:2: text holds the special token"):
        prepared(loaded, file)
    assert prepared(loaded, file, on_bad_row="skip").counts["rows_left_out"] == 1


def test_bad_held_out_documents_are_refused_when_there_are_no_others(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "heldout.jsonl"
    file.write_text('{"text": "The cat sat."}\n{"text": 3}\n', encoding="utf-8")
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    run = Run(Settings(eval_data=(str(file),)), "infer", "causal-lm")
    with pytest.raises(ftcore.Refused, match=r"heldout\.jsonl:2: text is the number 3"):
        Pretrain().prepare_data(run, loaded)


def story_rows(folder: Path, name: str, count: int, words: int) -> Path:
    """A JSONL file of so many documents of so many words, all different."""
    file = folder / f"{name}.jsonl"
    texts = [" ".join(f"{name}{number}w{word}" for word in range(words)) for number in range(count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def test_a_long_document_is_kept_in_parts_and_read_as_one(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    file = story_rows(tmp_path, "a", 3, 60)
    whole = prepared(loaded, file, max_length=50, eval_data=(str(file),))
    monkeypatch.setattr("ftcore_pretrain.LONGEST", 17)
    parted = prepared(loaded, file, max_length=50, eval_data=(str(file),))
    for one, other in ((whole.train, parted.train), (whole.eval, parted.eval)):
        assert [(row.identity(), row.place) for row in one] == [(row.identity(), row.place) for row in other]
    assert whole.metrics(1.0) == parted.metrics(1.0)
    assert {name: count for name, count in parted.counts.items() if "trained" not in name} == {
        name: count for name, count in whole.counts.items() if "trained" not in name
    }
    shared = prepared(loaded, file, max_length=50, eval_share=0.3)
    assert len({row.place for row in shared.eval}) == 1  # parts of a document are never parted


def test_windows_know_their_sizes_and_their_keys_tell_them_apart(checkpoint: Callable[..., Path], story: Path) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    digests = set()
    for length in (20, 33):
        rows = prepared(loaded, story, max_length=length).train
        assert list(sizes_of(rows)) == [row.size for row in rows]
        assert len(set(rows.keys())) == len(rows)
        assert digest(rows) == digest(prepared(loaded, story, max_length=length).train)
        digests.add(digest(rows))
    assert len(digests) == 2


def test_sources_with_weights_have_windows_of_their_own_and_their_share_of_an_epoch(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    one, two = story_rows(tmp_path, "a", 9, 60), story_rows(tmp_path, "b", 2, 90)
    data = Pretrain().prepare_data(
        Run(Settings(data=(f"{one}:0.25", f"{two}:0.75"), max_length=40), "train", "causal-lm"), loaded
    )
    (first, taken), (second, most) = data.shares
    assert first + second == len(data.train) == taken + most
    assert most == round(0.75 * len(data.train))
    for number, row in enumerate(data.train):
        text = loaded.tokenizer.decode(row.input_ids.tolist())
        assert "ba"[number >= first] not in text
        assert row.place.startswith(str(one if number < first else two))


@pytest.mark.parametrize("share", [None, 0.25])
def test_conversations_are_mixed_in_as_rows_of_their_own(
    share: float | None, checkpoint: Callable[..., Path], story: Path, tmp_path: Path
) -> None:
    loaded = ftcore.load("qwen", checkpoint=checkpoint("qwen2"))
    talks = tmp_path / "talks.jsonl"
    talks.write_text(json.dumps({"instruction": "Where?", "output": "Here."}) + "\n", encoding="utf-8")
    plain = prepared(loaded, story, max_length=30)
    data = prepared(loaded, story, {"instructions": (str(talks),), "instruction_share": share}, max_length=30)
    assert [row.identity() for row in data.train[:-1]] == [row.identity() for row in plain.train]
    last = data.train[-1]
    assert loaded.tokenizer.decode(last.input_ids[last.labels != -100].tolist()) == "Here.<|im_end|>"
    assert data.counts["conversations"] == 1
    assert data.counts["supervised_tokens"] == sum(row.supervised for row in data.train)
    assert data.counts["tokens"] == sum(row.size for row in data.train)
    count = len(plain.train)
    assert data.shares == (() if share is None else ((count, count), (1, round(count / 3))))
    held = prepared(loaded, story, {"instructions": (str(talks),)}, max_length=30, eval_share=0.25)
    assert str(talks) not in "".join(row.place for row in held.eval)


def test_each_document_is_told_how_well_it_is_predicted(checkpoint: Callable[..., Path], story: Path) -> None:
    folder = checkpoint("qwen2")
    loaded = ftcore.load("qwen", checkpoint=folder)
    settings = Settings(eval_data=(str(story),), max_length=20)
    data = Pretrain().prepare_data(Run(settings, "predict", "causal-lm"), loaded)
    assert data.scoring is not None
    with torch.no_grad():
        lines = data.scoring.lines(data.eval, data.scoring.predict(loaded.model, data.eval[:]))
    assert len(lines) == 4
    for line, text in zip(lines, documents(story), strict=True):
        total, predicted = nats(folder, [text], [], [2], 20)
        assert line["tokens"] == predicted
        assert line["prediction"] == pytest.approx(total / predicted, rel=1e-4)
        assert text.startswith(line["opening"])
    assert data.scoring.score(lines) == {}


MEASURE = """
import resource, sys
from ftcore.families import read_tokenizer
from ftcore.hooks import Loaded, Run
from ftcore.settings import Settings
from ftcore_pretrain import Pretrain

tokenizer = read_tokenizer(sys.argv[2])
run = Run(Settings(data=(sys.argv[1],), cache="off", eval_share=0.01), "train", "causal-lm")
data = Pretrain().prepare_data(run, Loaded(None, tokenizer, {}, "", 256, len(tokenizer)))
assert data.train[5].size == 256 and data.train[-2].size == 256
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(file: Path, documents: int, tokenizer: Path) -> int:
    """MiB that a process took at most to read so many documents of a kilobyte."""
    with file.open("w", encoding="utf-8") as text:
        for number in range(documents):
            text.write(f"{number} " + "rain " * 195 + SEPARATOR)
    command = [sys.executable, "-c", MEASURE, str(file), str(tokenizer)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return int(found.stdout.split()[-1])


@pytest.mark.slow
def test_eighty_more_megabytes_of_text_take_less_than_twenty_of_memory(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    small, large = (peak(tmp_path / "text.txt", count, checkpoint("qwen2")) for count in (20_000, 100_000))
    assert large - small < 20


@task_checks(Pretrain())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
