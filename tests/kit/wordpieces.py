"""Tiny encoders with a tokenizer of their kind: pieces of words between a classification token and separators."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftcore.hooks import Data, Intent, Loaded, Run
from ftcore.settings import Settings
from ftcore.testing.stage import WORDS, tiny_checkpoint

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpieces() -> Any:
    """A tokenizer of 300 pieces that lays [CLS] and [SEP] around one text or two, and begins pieces with ##."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator([WORDS, " ".join(letters), " ".join(f"a{letter}" for letter in letters)] * 4, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))],
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{f"{name}_token": text for name, text in names.items()})


def encoder(folder: Path, kind: str, head: str, **fields: Any) -> Path:
    """A random two-layer encoder of a transformers type in `folder`, with that tokenizer."""
    tokenizer = wordpieces()
    padding = tokenizer.pad_token_id
    made = tiny_checkpoint(kind, head, vocab_size=len(tokenizer), pad_token_id=padding, eos_token_id=None, **fields)
    shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("token*", "special*", "chat*"))
    tokenizer.save_pretrained(folder)
    return folder


def labelled(
    task: Any, head: Any, folder: Path, file: Path, own: Mapping[str, Any] = {}, intent: Intent = "train", **keys: Any
) -> tuple[Loaded, Data]:
    """The encoder with the labels that the rows decide where they are trained on, and the rows as `task` reads them."""
    from ftcore_bert import Bert

    data = {"data": (str(file),)} if intent == "train" else {"eval_data": (str(file),)}
    run = Run(Settings(checkpoint=str(folder), **{**data, **keys}), intent, head)
    filled = task(**own).fill_options(run) or {} if intent == "train" else {}
    asked = task(**{**own, **filled})
    loaded = Bert().load_model(run, asked.load_kwargs() or {})
    return loaded, asked.prepare_data(run, loaded)
