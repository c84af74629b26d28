"""What plugins are tried on: checkpoints of two layers, families and a task of the kit's own, another method."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ftcore.batches import TokenRow, collator, token_loss, token_row
from ftcore.declaring import options
from ftcore.families import HEADS, LLAMA_ROLES, HFModel
from ftcore.hooks import Data, Loaded, Run, hookimpl
from ftcore.seeds import mix, seeded

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

WORDS = (
    "The cat sat by the door and looked at the rain. A small dog ran over the hill to find its ball. "
    "Lily said hello to the old man, and he smiled at her. 小猫在门口看雨。小狗去找它的球。"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The fields of a two-layer config, in the spelling that transformers translates for most architectures.
TINY: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "ernie": {"type_vocab_size": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "mt5": {
        "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "dropout_rate": 0.0,
    },
}  # fmt: skip


@cache
def _shelf() -> Path:
    """Where the tiny checkpoints of this process are."""
    folder = Path(tempfile.mkdtemp(prefix="ftcore-stage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def tiny_checkpoint(model_type: str, head: str = "causal-lm", **fields: Any) -> Path:
    """The directory of a random two-layer model of a transformers `model_type`, with a byte-level tokenizer.

    Weights are far enough from zero that a wrong computation gives other answers. `fields` are laid over its config.
    """
    key = json.dumps([model_type, head, fields], sort_keys=True)
    folder = _shelf() / f"{model_type}-{mix(0, key):x}"
    if folder.exists():
        return folder
    model: Any = tiny_model(tiny_config(model_type, **fields), head)
    model.save_pretrained(folder)
    tiny_tokenizer(masks=head == "masked-lm").save_pretrained(folder)
    return folder


def tiny_config(model_type: str, **fields: Any) -> PreTrainedConfig:
    """The config of a two-layer model of a transformers `model_type`, with `fields` laid over it."""
    import transformers

    tokenizer = tiny_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    given = {"vocab_size": len(tokenizer), **TINY, **ids, **SHAPES.get(model_type, {}), **fields}
    try:
        config: PreTrainedConfig = transformers.AutoConfig.for_model(model_type, **given)
    except NotImplementedError:  # a type without a limit of positions takes none
        given.pop("max_position_embeddings")
        config = transformers.AutoConfig.for_model(model_type, **given)
    return config


def tiny_model(config: PreTrainedConfig, head: str, **given: Any) -> nn.Module:
    """The model of `config` with `head` and weights that are always the same; `given` are keywords of `from_config`."""
    import torch
    import transformers

    with seeded(0, "stage"):
        model: nn.Module = getattr(transformers, HEADS[head]).from_config(config, **given)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:  # biases are no zeros and norms no ones, so that losing one of them shows
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@cache
def tiny_tokenizer(*, masks: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 tokens with a chat template, trained on a few words; the last may be a mask."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320 - masks,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    if masks:
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


@options
class Decoder(HFModel):
    """A decoder with a projection for each of q, k, v."""

    model_types: ClassVar[tuple[str, ...]] = ("granite",)


@options
class FusedDecoder(HFModel):
    """A decoder whose q, k and v are one projection, and whose gate and up are one."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        **dict.fromkeys(("attention.q", "attention.k", "attention.v"), "model.layers.*.self_attn.qkv_proj"),
        **dict.fromkeys(("mlp.gate", "mlp.up"), "model.layers.*.mlp.gate_up_proj"),
    }


@options
class Encoder(HFModel):
    """An encoder that reads in both directions."""

    model_types: ClassVar[tuple[str, ...]] = ("ernie",)
    heads: ClassVar[tuple[str, ...]] = (
        "masked-lm", "sequence-classification", "token-classification", "question-answering",
    )  # fmt: skip
    drawn_heads: ClassVar[tuple[str, ...]] = ("sequence-classification",)  # with whose head methods train
    unpackable: ClassVar[str] = "the kit pads encoders"
    roles: ClassVar[Mapping[str, str]] = {
        "head": "classifier",
        "block": "ernie.encoder.layer.*",
        "attention.q": "ernie.encoder.layer.*.attention.self.query",
        "attention.k": "ernie.encoder.layer.*.attention.self.key",
        "attention.v": "ernie.encoder.layer.*.attention.self.value",
        "attention.o": "ernie.encoder.layer.*.attention.output.dense",
        "mlp.up": "ernie.encoder.layer.*.intermediate.dense",
        "mlp.down": "ernie.encoder.layer.*.output.dense",
        "norm": "*LayerNorm",
        "embedding": "ernie.embeddings.word_embeddings",
    }


@options
class EncoderDecoder(HFModel):
    """An encoder and a decoder that looks at it."""

    model_types: ClassVar[tuple[str, ...]] = ("mt5",)
    heads: ClassVar[tuple[str, ...]] = ("seq2seq-lm",)
    unpackable: ClassVar[str] = "the kit pads encoder-decoders"
    roles: ClassVar[Mapping[str, str]] = {
        "block": "*coder.block.*",
        "attention.q": "*coder.block.*.layer.*.*Attention.q",
        "attention.k": "*coder.block.*.layer.*.*Attention.k",
        "attention.v": "*coder.block.*.layer.*.*Attention.v",
        "attention.o": "*coder.block.*.layer.*.*Attention.o",
        "mlp.gate": "*coder.block.*.layer.*.DenseReluDense.wi_0",
        "mlp.up": "*coder.block.*.layer.*.DenseReluDense.wi_1",
        "mlp.down": "*coder.block.*.layer.*.DenseReluDense.wo",
        "norm": "*layer_norm",
        "embedding": "shared",
        "head": "lm_head",
    }


# A family and a model type for each head that a method may be asked to adapt.
STAGES: Mapping[str, tuple[type[HFModel], str]] = {
    "causal-lm": (Decoder, "granite"),
    "masked-lm": (Encoder, "ernie"),
    "sequence-classification": (Encoder, "ernie"),
    "token-classification": (Encoder, "ernie"),
    "question-answering": (Encoder, "ernie"),
    "seq2seq-lm": (EncoderDecoder, "mt5"),
}


@options
class Recital:
    """The kit's own task: rows of numbers to go on with, without a file and without a tokenizer."""

    rows: Annotated[int, Field(ge=2, description="Training rows.")] = 12

    @hookimpl
    def prepare_data(self, run: Run, loaded: Loaded) -> Data:
        """Rows of 5 to 14 tokens, the first three of each not supervised, and four rows held out."""
        drawn = [recital_row(number, loaded.vocab_size) for number in range(self.rows + 4)]
        train, apart = drawn[: self.rows], drawn[self.rows :]
        counts = {"rows": len(train), "tokens": sum(r.size for r in train)}
        return Data(train, apart, collator(loaded, run.settings), token_loss, counts)


def recital_row(number: int, vocab_size: int) -> TokenRow:
    """The row of that number: the same for ever."""
    size = 5 + 3 * number % 10
    ids = [3 + mix(number, "token", place) % (vocab_size - 3) for place in range(size)]
    return token_row(ids, [-100] * 3 + ids[3:], f"recital:{number + 1}")


@options
class Companion:
    """The kit's other method: one module's weight trains, and is plain already when it is merged."""

    module: Annotated[str, Field(description="The module whose weight trains.")] = "model.norm"

    @hookimpl
    def inject_adapter(self, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with one more weight that trains."""
        for name, module in model.named_modules():
            if f".{name}".endswith(f".{self.module}"):
                module.weight.requires_grad_(True)
        return model

    @hookimpl
    def merge(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model


def unpacked(loaded: Loaded) -> Loaded:
    """The same model, with rows to be padded."""
    return replace(loaded, unpackable="the kit asked for padding")


def rows_file(file: Path, rows: Sequence[object]) -> Path:
    """`file` holds one JSON row a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file
