"""What is made of held-out rows: an output written for each, a line for each record, and scores over all lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore.textual import measured

from ftcore_seq2seq.rows import PairRow, Writer, reading

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Search:
    """How an output is looked for, greedily or as the best of several beams, and where it stops."""

    num_beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 128
    stop_ids: tuple[int, ...] = ()

    def settings(self, writer: Writer) -> Any:
        """The search as transformers takes it."""
        from transformers import GenerationConfig

        beams = {"length_penalty": self.length_penalty, "early_stopping": False} if self.num_beams > 1 else {}
        return GenerationConfig(
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            decoder_start_token_id=writer.start,
            eos_token_id=sorted({writer.stop, *self.stop_ids}),
            pad_token_id=writer.pad,
            **beams,
        )


def written(model: nn.Module, rows: Sequence[PairRow], writer: Writer, search: Search) -> list[str]:
    """What the model writes for each row, from its input alone."""
    import torch
    from accelerate.utils import extract_model_from_parallel

    plain: Any = extract_model_from_parallel(model)
    given = reading(rows, writer.pad) | {"decoder_input_ids": torch.tensor([writer.opening] * len(rows))}
    device = next(plain.parameters()).device
    with torch.inference_mode():
        out = plain.generate(**{n: t.to(device) for n, t in given.items()}, generation_config=search.settings(writer))
    said: list[str] = writer.tokenizer.batch_decode(out[:, len(writer.opening) :], skip_special_tokens=True)
    return [text.strip() for text in said]


def lines(rows: Sequence[PairRow], answers: Sequence[str]) -> list[dict[str, Any]]:
    """One object for each row: its input, what was written from it, and what is right where that is known."""
    return [
        {"input": row.text, "prediction": answer, **({"references": list(row.references)} if row.references else {})}
        for row, answer in zip(rows, answers, strict=True)
    ]


def score(lines: Sequence[Mapping[str, Any]], figures: Sequence[str], bleu_tokenizer: str) -> dict[str, float]:
    """The scores of lines that know what is right; those with one input are one, whose outputs are all right."""
    found: dict[str, tuple[str, dict[str, None]]] = {}
    for line in lines:
        for reference in line.get("references", ()):
            found.setdefault(line["input"], (line["prediction"], {}))[1][reference] = None
    said, known = [text for text, _ in found.values()], [list(right) for _, right in found.values()]
    return measured(figures, said, known, bleu_tokenizer)
