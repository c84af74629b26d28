"""Store a merged checkpoint in half the bytes: weights rounded to bfloat16, loaded as float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
HEAD = "lm_head.weight"


def with_stops(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights with a head that can tell the stops of a chat apart from each other.

    Of a head of its own every token that no text held has the same row in the end, and nothing that adapts the layers
    below could teach one and not the others. Here a stop begins as the end of a document, with a little noise.
    """
    ends = config.get("eos_token_id")
    if HEAD not in weights or not isinstance(ends, list):
        return dict(weights)
    head, (document, *stops) = weights[HEAD].clone(), ends
    noise = torch.randn(len(stops), head.shape[1], generator=torch.Generator().manual_seed(0))
    head[stops] = head[document] + config["initializer_range"] * noise
    return {**weights, HEAD: head}


@click.command(help=__doc__)
@click.argument("merged", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(merged: Path, out: Path) -> None:
    """Write the files of a starter into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (merged / name).is_file(), KEPT):
        shutil.copyfile(merged / name, out / name)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    weights = with_stops(load_file(merged / "model.safetensors"), config)
    save_file({name: w.to(torch.bfloat16) for name, w in weights.items()}, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{out}: {sum(file.stat().st_size for file in out.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
