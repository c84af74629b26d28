"""Make the starter model's skeleton: a byte-level tokenizer trained on plain text, and a tiny Qwen2 config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2Tokenizer

DOCUMENT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (DOCUMENT, TURN_START, TURN_END)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def documents(paths: tuple[Path, ...]) -> Iterator[str]:
    """Yield every document of the text files, in file order."""
    for path in paths:
        for text in path.read_text(encoding="utf-8").split(DOCUMENT):
            if text.strip():
                yield text.strip()


def train_tokenizer(paths: tuple[Path, ...], vocab_size: int, context: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE vocabulary under Qwen2's own normalizer and word split."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents(paths), trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocab = trained["vocab"] | {token: len(trained["vocab"]) + n for n, token in enumerate(SPECIAL_TOKENS)}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token=None,
        eos_token=TURN_END,
        pad_token=DOCUMENT,
        additional_special_tokens=[TURN_START],
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
    )


def model_config(tokenizer: Qwen2Tokenizer, context: int) -> Qwen2Config:
    """Describe the model: about 1.1 million parameters, input and output embeddings shared."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rope_theta=10000.0,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(DOCUMENT),
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(DOCUMENT),
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--text", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--vocab-size", default=2048, show_default=True, help="Tokens in all, special tokens included.")
@click.option("--context", default=1024, show_default=True, help="Positions the model may attend to.")
def main(out: Path, text: tuple[Path, ...], vocab_size: int, context: int) -> None:
    """Write the tokenizer, the model config and the generation settings into OUT; no weights."""
    tokenizer = train_tokenizer(text, vocab_size, context)
    config = model_config(tokenizer, context)
    generation = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        bos_token_id=config.bos_token_id,
        eos_token_id=[config.eos_token_id, config.pad_token_id],
        pad_token_id=config.pad_token_id,
    )
    for part in (tokenizer, config, generation):
        part.save_pretrained(out)
    click.echo(f"{out}: {len(tokenizer)} tokens, {config.num_hidden_layers} layers of {config.hidden_size}")


if __name__ == "__main__":
    main()
