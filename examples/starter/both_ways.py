"""Make an encoder of a decoder of BERT's kind: the same weights, which from now on look at both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM


@click.command(help=__doc__)
@click.argument("merged", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(merged: Path, out: Path) -> None:
    """Write the checkpoint into OUT."""
    config = BertConfig.from_pretrained(merged, is_decoder=False)
    model: Any = BertForMaskedLM.from_pretrained(merged, config=config)
    for part in (model, AutoTokenizer.from_pretrained(merged)):
        part.save_pretrained(out)


if __name__ == "__main__":
    main()
