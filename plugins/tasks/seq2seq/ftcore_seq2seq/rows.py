"""Pairs as tokens: what the encoder reads, what the decoder hears before each token, and what it is taught to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ftcore import Loaded, Refused
from ftcore.batches import IGNORED
from ftcore.hooks import Batch
from ftcore.problems import refuse
from ftcore.shapes import Pair

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
SENTINEL = "<extra_id_"


@dataclass(frozen=True)
class PairRow:
    """A pair as tokens: the decoder gets `decoder_input_ids[i]` where it is taught `labels[i]`; -100 is not taught.

    `text` is the input, `references` are the outputs that are right, the first of which is taught; `cut` tells that the
    encoder reads the beginning of the input only.
    """

    input_ids: Ids
    decoder_input_ids: Ids
    labels: Ids
    text: str
    references: tuple[str, ...]
    place: str
    cut: bool = False

    @property
    def size(self) -> int:
        """Tokens that encoder and decoder read."""
        return len(self.input_ids) + len(self.decoder_input_ids)

    @property
    def supervised(self) -> int:
        """Tokens that the decoder is taught."""
        return int((self.labels != IGNORED).sum())

    def identity(self) -> bytes:
        """All tokens, and where the encoder's end."""
        parts = self.input_ids, self.decoder_input_ids, self.labels
        return b"".join(part.tobytes() for part in parts) + str(len(self.input_ids)).encode()

    def counted(self) -> dict[str, int]:
        """What is counted of the row."""
        return {"rows_cut": int(self.cut), "tokens": self.size, "supervised_tokens": self.supervised}


@dataclass(frozen=True)
class Writer:
    """How texts become tokens for one model: what stands before and after them, and how long they may be.

    `before` and `after` are what the tokenizer itself puts around a text; `start` is what the decoder begins with, and
    `stop` what ends an output.
    """

    tokenizer: PreTrainedTokenizerBase
    before: tuple[int, ...]
    after: tuple[int, ...]
    start: int
    stop: int
    longest_input: int
    longest_output: int
    prefix: str = ""
    sentinels: bool = False

    @property
    def pad(self) -> int:
        """What fills up a row that is shorter than others of its batch."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    @property
    def opening(self) -> tuple[int, ...]:
        """What the decoder hears before it says anything."""
        return (self.start, *self.before)

    def row(self, pair: Pair) -> PairRow:
        """The pair as tokens; BadRow for an output that is too long or a special token that is written out."""
        for field, texts in (("input", (pair.input,)), ("output", pair.outputs)):
            for text in texts:
                self._refuse_specials(field, text)
        read, cut = self._read(pair.input)
        asked = self._asked(pair.outputs[0] if pair.outputs else "")
        labels = [IGNORED] * len(self.before) + asked
        arrays = (np.asarray(ids, dtype=np.int32) for ids in (read, [*self.opening, *asked[:-1]], labels))
        return PairRow(*arrays, pair.input, pair.outputs, pair.place, cut)  # type: ignore[call-arg, arg-type]

    def _read(self, text: str) -> tuple[list[int], bool]:
        """The encoder's tokens of an input, and whether it had to be cut to its longest."""
        ids = self._ids(self.prefix + text)
        room = max(0, self.longest_input - len(self.before) - len(self.after))
        return [*self.before, *ids[:room], *self.after], len(ids) > room

    def _asked(self, output: str) -> list[int]:
        asked = [*self._ids(output), self.stop]
        length = len(self.before) + len(asked)
        if length > self.longest_output:
            remedy = "shorten it, or raise --seq2seq.max_target_length and --max-length"
            refuse("output", f"has {length} tokens, more than {self.longest_output}", remedy)
        return asked

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _refuse_specials(self, field: str, text: str) -> None:
        for token in self.tokenizer.added_tokens_decoder.values():
            allowed = self.sentinels and token.content.startswith(SENTINEL)
            if token.special and token.content in text and not allowed:
                found = f"holds the special token '{token.content}' as text"
                refuse(field, found, "write it differently, or remove the row")


def writer_of(loaded: Loaded, longest_input: int, longest_output: int | None, prefix: str, sentinels: bool) -> Writer:
    """How texts become tokens for that model; Refused when it lacks what an output begins or ends with."""
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise Refused(f"the checkpoint '{loaded.checkpoint}' has no tokenizer; add its tokenizer.json")
    config: Any = loaded.model.config
    start, stop = config.decoder_start_token_id, ending(tokenizer, config)
    if start is None:
        raise Refused(f"the config.json of '{loaded.checkpoint}' names no decoder_start_token_id; add it")
    if stop is None:
        raise Refused(f"the tokenizer of '{loaded.checkpoint}' has no token that ends a text; set its eos_token")
    before, after = edges(tokenizer, stop)
    asked = min(longest_input, loaded.max_positions)
    longest = min(longest_output or longest_input, loaded.max_positions)
    return Writer(tokenizer, before, after, start, stop, asked, longest, prefix, sentinels)


def ending(tokenizer: Any, config: Any) -> int | None:
    """The token that ends a text, which a BERT tokenizer leaves to the model's config (BART in Chinese)."""
    own: int | None = tokenizer.eos_token_id
    return config.eos_token_id if own is None else own


def edges(tokenizer: Any, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer puts before and after a text: its tokens of none at all, parted where the text would stand."""
    around = tuple(tokenizer("")["input_ids"])
    begins = around.index(stop) if stop in around else len(around)
    return around[:begins], around[begins:]


def collate(rows: Sequence[PairRow], pad_id: int) -> Batch:
    """One batch, padded on the right to the longest input and to the longest output."""
    labels = padded([row.labels for row in rows], IGNORED)
    return Batch(
        {**reading(rows, pad_id), "decoder_input_ids": padded([row.decoder_input_ids for row in rows], pad_id)},
        {"labels": labels.reshape(-1)},
        float(sum(row.supervised for row in rows)),
        sum(row.size for row in rows),
        tuple(row.place for row in rows),
    )


def reading(rows: Sequence[PairRow], pad_id: int) -> dict[str, Tensor]:
    """What the encoder gets."""
    ids = [row.input_ids for row in rows]
    return {"input_ids": padded(ids, pad_id), "attention_mask": padded([np.ones_like(one) for one in ids], 0)}


def padded(parts: Sequence[Ids], padding: int) -> Tensor:
    """The parts as rows of one width, filled up on the right."""
    import torch

    table = torch.full((len(parts), max(map(len, parts))), padding)
    for index, part in enumerate(parts):
        table[index, : len(part)] = torch.from_numpy(part.astype(np.int64))
    return table
