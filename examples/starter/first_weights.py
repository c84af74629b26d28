"""Give an encoder's skeleton first weights, so that little text teaches it much.

Words begin as another starter has them, positions as waves, each head looking one or two tokens to a side, and each
token as likely as it is frequent. The model is a decoder at first, to which a text teaches every token and not only the
hidden ones, which is what a short run needs (arXiv:2507.00994). `both_ways.py` makes an encoder of what it has become.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from make_skeleton import documents
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

SLOWEST = 200.0  # of the waves, in tokens for each radian
LOOKING = (-1, 1, -2, 2)  # where the heads of a layer look
SHARPNESS = 2.0


def waves(positions: int, width: int) -> Tensor:
    """Sine and cosine, in turn, of each position at `width / 2` speeds."""
    angles = torch.arange(positions)[:, None] * speeds(width)
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(positions, width)


def speeds(width: int) -> Tensor:
    """Radians for each token, from 1 down."""
    return SLOWEST ** (-torch.arange(0, width, 2) / width)


def look_beside(query: Tensor, key: Tensor, heads: int) -> None:
    """A head's first dimensions compare waves, its query's turned by as many tokens as it is to look away."""
    width = len(query) // 2
    turns = speeds(width)
    for head, away in enumerate(LOOKING):
        for place, wave in enumerate(range(head, width // 2, heads)):
            row, column, turn = head * len(query) // heads + 2 * place, 2 * wave, float(turns[wave]) * away
            query[row : row + 2], key[row : row + 2] = 0.0, 0.0
            sine, cosine = SHARPNESS * math.sin(turn), SHARPNESS * math.cos(turn)
            query[row : row + 2, column : column + 2] = torch.tensor([[cosine, sine], [-sine, cosine]])
            key[row : row + 2, column : column + 2] = SHARPNESS * torch.eye(2)


def spellings(token: str) -> list[str]:
    """How a token stands in a text: a piece within a word, a word after a blank, or anything else."""
    if token.startswith("##"):
        return [token[2:]]
    word = token.isascii() and token.isalpha()
    return [f" {token}", f" {token}", f" {token.capitalize()}"] if word else [token, f" {token}"]


def words_of(elder: Path, tokenizer: Any, width: int) -> Tensor:
    """What another starter embeds the spellings of each token as, in the `width` directions that tell most."""
    old, rows = AutoTokenizer.from_pretrained(elder), []
    known = AutoModelForCausalLM.from_pretrained(elder).get_input_embeddings().weight.detach()
    for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        ids = [old(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings(token)]
        rows.append(torch.stack([known[one].mean(0) for one in ids]).mean(0))
    found = torch.stack(rows)
    left, size, _ = torch.linalg.svd(found - found.mean(0), full_matrices=False)
    best = (left * size)[:, :width] @ torch.linalg.qr(torch.randn(width, width))[0]
    length = best.norm(dim=1, keepdim=True)
    usual = length.median()
    best = best / length.clamp(min=0.3 * usual) * length.clamp(min=0.5 * usual, max=2 * usual)
    return best / best.square().mean().sqrt()


def surprise(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """The logarithm of how often each token is in the texts, around 0."""
    count: Counter[int] = Counter()
    for text in texts:
        count.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    often = torch.tensor([count[token] + 1.0 for token in range(len(tokenizer))]).log()
    return often - often.mean()


@click.command(help=__doc__)
@click.argument("skeleton", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("elder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(skeleton: Path, elder: Path, text: tuple[Path, ...]) -> None:
    """Write weights into SKELETON; ELDER is the directory of a decoder's starter."""
    torch.manual_seed(0)
    config, tokenizer = BertConfig.from_pretrained(skeleton), AutoTokenizer.from_pretrained(skeleton)
    config.is_decoder, config.architectures = True, [BertLMHeadModel.__name__]
    model: Any = BertLMHeadModel(config)
    half, scale = config.hidden_size // 2, config.initializer_range
    with torch.no_grad():
        embeddings = model.bert.embeddings
        embeddings.position_embeddings.weight.zero_()
        embeddings.position_embeddings.weight[:, :half] = (
            math.sqrt(2) * scale * waves(config.max_position_embeddings, half)
        )
        embeddings.word_embeddings.weight[:, :half] *= 0.1
        embeddings.word_embeddings.weight[:, half:] = scale * words_of(elder, tokenizer, half)
        for layer in model.bert.encoder.layer:
            attention = layer.attention.self
            look_beside(attention.query.weight, attention.key.weight, config.num_attention_heads)
        model.cls.predictions.bias.copy_(surprise(list(documents(text)), tokenizer))
    model.save_pretrained(skeleton)


if __name__ == "__main__":
    main()
