"""Store a merged checkpoint in half the bytes: weights rounded to bfloat16, loaded as float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file

KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@click.command(help=__doc__)
@click.argument("merged", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(merged: Path, out: Path) -> None:
    """Write the files of a starter into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (merged / name).is_file(), KEPT):
        shutil.copyfile(merged / name, out / name)
    weights = load_file(merged / "model.safetensors")
    save_file({name: w.to(torch.bfloat16) for name, w in weights.items()}, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{out}: {sum(file.stat().st_size for file in out.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
