"""Write rows for a starter that reads and writes: left-out spans, what follows, words to sentences, copies."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from make_skeleton import SENTINELS, documents

Words = list[str]
SENTENCE = re.compile(r"(?<=[.!?。！？”\"])\s+|(?<=[。！？”])(?=\S)")


def spans(words: Words, draw: random.Random) -> tuple[str, str]:
    """T5's own task: spans of three words on average are left out, and written one after the other."""
    count = min(SENTINELS - 1, max(1, round(len(words) * 0.05)))
    starts = sorted(draw.sample(range(0, max(count, len(words) - 5), 1), count))
    read, asked, at = Words(), Words(), 0
    for number, start in enumerate(starts):
        begin = max(at, start)
        end = min(len(words), begin + draw.choice((1, 2, 3, 4, 5)))
        read += [*words[at:begin], f"<extra_id_{number}>"]
        asked += [f"<extra_id_{number}>", *words[begin:end]]
        at = end
    return joined([*read, *words[at:]]), joined([*asked, f"<extra_id_{count}>"])


def continuation(words: Words, draw: random.Random) -> tuple[str, str]:
    """The first part is read, and the rest written."""
    cut = draw.randint(max(1, len(words) // 4), max(1, 3 * len(words) // 4))
    return f"continue: {joined(words[:cut])}", joined(words[cut:])


def mending(words: Words, draw: random.Random) -> tuple[str, str]:
    """Most words of a passage are read, now and then in another order, and the passage is written."""
    share = draw.uniform(0.5, 1.0)
    kept = [word for word in words if draw.random() < share] or words[:1]
    if draw.random() < 0.25:
        draw.shuffle(kept)
    if draw.random() < 0.5:
        return f"words: {' | '.join(kept)}", joined(words)
    return f"mend: {joined(kept)}", joined(words)


def copying(words: Words, draw: random.Random) -> tuple[str, str]:
    """A passage is read and written, whole or from some word on."""
    start = draw.choice((0, draw.randrange(len(words) - 2)))
    if not start:
        return f"copy: {joined(words)}", joined(words)
    return f"copy from {words[start]}: {joined(words)}", joined(words[start:])


def joined(words: Sequence[str]) -> str:
    """Words as text: Chinese characters have no blank between them."""
    return re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])", "", " ".join(words))


# How many words each kind of row is made of, at most, and how often it is drawn.
KINDS: Mapping[Callable[[Words, random.Random], tuple[str, str]], tuple[int, float]] = {
    spans: (40, 0.15),
    continuation: (40, 0.15),
    mending: (20, 0.4),
    copying: (20, 0.3),
}


def sentences(text: str) -> list[Words]:
    """The sentences of a text, each as words; a Chinese character is a word."""
    found = SENTENCE.split(" ".join(text.split()))
    return [
        words
        for one in found
        if (words := re.findall(r"[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+", one))
    ]


def passage(text: Sequence[Words], most: int, draw: random.Random) -> Words:
    """Whole sentences from anywhere in a text, of at most so many words in all, the first of them in any case."""
    start = draw.randrange(len(text))
    words = text[start][:most]
    for sentence in text[start + 1 :]:
        if len(words) + len(sentence) > most or draw.random() < 0.15:
            break
        words = [*words, *sentence]
    return words


def rows(texts: Sequence[Sequence[Words]], count: int, seed: int) -> Iterator[dict[str, str]]:
    """So many rows, each of a passage that is drawn from texts by their length."""
    draw = random.Random(seed)
    makers, weights = list(KINDS), [share for _, share in KINDS.values()]
    lengths = [len(text) for text in texts]
    for text, make in zip(draw.choices(texts, lengths, k=count), draw.choices(makers, weights, k=count), strict=True):
        words = passage(text, KINDS[make][0], draw)
        if len(words) > 3:
            read, asked = make(words, draw)
            yield {"input": read, "output": asked}


@click.command(help=__doc__)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--text", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rows", "count", default=1000, show_default=True, help="Rows in all, nearly.")
@click.option("--seed", default=42, show_default=True, help="Draws passages and what is left out of them.")
def main(out: Path, text: tuple[Path, ...], count: int, seed: int) -> None:
    """Write JSONL; a text named several times is drawn from several times as often."""
    texts = [found for whole in documents(text) if (found := sentences(whole))]
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(texts, count, seed))


if __name__ == "__main__":
    main()
