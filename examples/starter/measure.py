"""Bits per character of held-out stories under a starter: each story whole, every token but the first counted once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import ftcore
import torch
from make_skeleton import FAMILIES, Family, documents


def nats(model: Any, tokenizer: Any, family: Family, story: str) -> float:
    """What the story and the token that ends it cost after the token that begins it."""
    begin, end = tokenizer.convert_tokens_to_ids([family.bos, family.eos])
    ids = torch.tensor([[begin, *tokenizer(story, add_special_tokens=False)["input_ids"], end]])
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--family", required=True, type=click.Choice(list(FAMILIES)))
@click.option("--weights", default="pretrained", show_default=True, type=click.Choice(["pretrained", "random"]))
def main(checkpoint: Path, text: Path, family: str, weights: str) -> None:
    """Print one number."""
    loaded = ftcore.load(family, checkpoint=checkpoint, weights=weights)
    stories = list(documents((text,)))
    cost = sum(nats(loaded.model, loaded.tokenizer, FAMILIES[family], story) for story in stories)
    click.echo(f"{cost / math.log(2) / sum(map(len, stories)):.3f} bits per character on {len(stories)} stories")


if __name__ == "__main__":
    main()
