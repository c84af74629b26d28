"""What a starter makes of held-out stories: a decoder's bits per character, the hidden words that an encoder finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import ftcore
import torch
from ftcore.hooks import Run
from ftcore.settings import Settings
from ftcore_mlm import Mlm
from make_skeleton import FAMILIES, Family, documents

MEASURED = [name for name, family in FAMILIES.items() if family.task == "pretrain"]


def nats(model: Any, tokenizer: Any, family: Family, story: str) -> float:
    """What the story and the token that ends it cost after the token that begins it."""
    begin, end = tokenizer.convert_tokens_to_ids([family.bos, family.eos])
    ids = torch.tensor([[begin, *tokenizer(story, add_special_tokens=False)["input_ids"], end]])
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)


def bits_per_character(loaded: Any, family: Family, stories: Sequence[str]) -> str:
    """Each story whole, every token but the first counted once."""
    cost = sum(nats(loaded.model, loaded.tokenizer, family, story) for story in stories)
    return f"{cost / math.log(2) / sum(map(len, stories)):.3f} bits per character"


def hidden_words(loaded: Any, text: Path) -> str:
    """What the task `mlm` hides of the stories, in four ways, and how much of it is found."""
    data = Mlm(duplicates=4).prepare_data(Run(Settings(data=(str(text),)), "train", "masked-lm"), loaded)
    right, cost, count = 0, 0.0, 0
    for start in range(0, len(data.train), 16):
        batch = data.collate(data.train[start : start + 16])
        with torch.inference_mode():
            logits = loaded.model(**batch.inputs).logits
        wanted = batch.targets["labels"]
        chances, asked = logits[wanted != -100].log_softmax(-1), wanted[wanted != -100]
        right += int((chances.argmax(-1) == asked).sum())
        cost -= float(chances.gather(1, asked[:, None]).sum())
        count += len(asked)
    return (
        f"{100 * right / count:.1f} % of {count} hidden tokens right, pseudo-perplexity {math.exp(cost / count):.2f},"
    )


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--family", required=True, type=click.Choice(MEASURED))
@click.option("--weights", default="pretrained", show_default=True, type=click.Choice(["pretrained", "random"]))
def main(checkpoint: Path, text: Path, family: str, weights: str) -> None:
    """Print one line."""
    made, stories = FAMILIES[family], list(documents((text,)))
    loaded = ftcore.load(family, "pretrain" if made.stops else "mlm", checkpoint, weights=weights)
    found = bits_per_character(loaded, made, stories) if made.stops else hidden_words(loaded, text)
    click.echo(f"{found} on {len(stories)} stories")


if __name__ == "__main__":
    main()
