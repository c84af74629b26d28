"""Train a starter that reads and writes: the run of starter-seq2seq.yaml, with each tensor's learning rate by its size.

What T5 begins with differs in size by a hundred: embeddings are near 1, and what makes queries is near 1/64. With one
learning rate for all, queries are noise before embeddings have moved, and the decoder does not find what was read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import ftcore
import yaml
from ftcore import Run, hookimpl, options
from ftcore.progress import screen_for

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer


@options
class BySize:
    """AdamW that steps by as much of a tensor's first size as of any other's (Adafactor's relative steps)."""

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer:
        """A learning rate for each tensor."""
        import torch
        from ftcore.training import adam_settings, parameter_groups

        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, run.settings, lambda name: size(name, shapes[name]))
        return torch.optim.AdamW(groups, **adam_settings(run.settings))


def size(name: str, shape: torch.Size) -> float:
    """How large the numbers of a tensor are that T5 begins with."""
    if len(shape) < 2 or name == "shared.weight":
        return 1.0
    return float((shape[1] * (32 if name.endswith(".q.weight") else 1)) ** -0.5)


@click.command(help=__doc__)
@click.argument("skeleton", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--family", required=True)
@click.option("--output", default="run", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--merged", default="merged", show_default=True, type=click.Path(file_okay=False, path_type=Path))
def main(skeleton: Path, recipe: Path, family: str, output: Path, merged: Path) -> None:
    """Run the recipe from random weights, then write a plain checkpoint; run again, it goes on where it was stopped."""
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    begun = {"model": family, "checkpoint": str(skeleton), family: {"weights": "random"}, "with": BySize()}
    ftcore.run(**{**keys, **begun, "output": str(output)}, screen=screen_for(sys.stderr))
    ftcore.merge(output, output=merged, **{"with": BySize()})


if __name__ == "__main__":
    main()
