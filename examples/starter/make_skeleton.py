"""Make a starter's skeleton: a tokenizer trained on plain text and a tiny config, in the shape of one family."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from ftcore.vocabularies import SPACE
from ftcore_chatglm import AFTER_PIECES, FOURTH, ROLES, WORDS
from ftcore_internlm import CHATML
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertTokenizer,
    BloomConfig,
    GenerationConfig,
    GlmConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    T5Config,
)

DOCUMENT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# The characters that have a token of their own where bytes stand in for the others.
LETTERS: Mapping[str, Any] = {"initial_alphabet": [chr(code) for code in range(33, 127)], "limit_alphabet": 400}
PIECES = rf"{SPACE}?\p{{L}}+|{SPACE}?[^\s\p{{L}}\p{{N}}{SPACE}]+|\p{{N}}|{SPACE}|\s"
SENTINELS = 32
GLM_STOPS = (DOCUMENT, "<|user|>", "<|observation|>")
BLOOM_WORDS = r" ?[^(\s|[.,!?…。，、।۔،])]+"
FIRST_A_DECODER = """\
python first_weights.py {out} ELDER --text …
ftcore run encoder-first.yaml --model auto --checkpoint {out} --output first
ftcore merge first --output read
python both_ways.py read encoder
ftcore run encoder.yaml --model {name} --checkpoint encoder"""
SMALL: Mapping[str, Any] = {"hidden_size": 128, "initializer_range": 0.05, "dtype": "float32"}
GROUPED: Mapping[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Family:
    """How a family's skeleton is made, which tokens stand around a document, and which end an answer.

    An encoder has none of these: it answers nothing, and its tokenizer knows what stands around a text.
    """

    tokenizer: Callable[[Sequence[str], int], PreTrainedTokenizerBase]
    config: Callable[..., PreTrainedConfig]
    architecture: str
    bos: str = ""
    eos: str = ""
    stops: tuple[str, ...] = ()
    task: str = "pretrain"


def documents(paths: tuple[Path, ...]) -> Iterator[str]:
    """Yield every document of the text files, in file order."""
    for path in paths:
        for text in path.read_text(encoding="utf-8").split(DOCUMENT):
            if text.strip():
                yield text.strip()


def byte_level(words: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A tokenizer of bytes that reads texts word by word and has yet to learn its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, words, decoders.ByteLevel()
    return tokenizer


def learned_of_bytes(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> dict[str, Any]:
    """The vocabulary and the merges, with every byte in it."""
    return learned(tokenizer, texts, size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Words by a regular expression, then their bytes."""
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def learned(tokenizer: Tokenizer, texts: Sequence[str], size: int, **alphabet: Any) -> dict[str, Any]:
    """The vocabulary and the merges that `size` tokens make of the texts."""
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": list(model["vocab"]), "merges": [tuple(pair) for pair in model["merges"]]}


def numbered(*groups: Sequence[str]) -> dict[str, int]:
    """The tokens of all groups, one number after the other."""
    return {token: number for number, token in enumerate(token for group in groups for token in group)}


def finished(
    tokenizer: Tokenizer, specials: Sequence[str], begin: Sequence[str], **own: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers saves it; its texts begin with `begin`."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A"],
            pair=[*begin, "$A", "$B"],
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in begin],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **own)


def qwen_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """Bytes under Qwen2's own normalizer and word split."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    specials = (DOCUMENT, TURN_START, TURN_END)
    found = learned_of_bytes(byte_level(qwen.pre_tokenizer, qwen.normalizer), texts, size - len(specials))
    return Qwen2Tokenizer(
        vocab=numbered(found["vocab"], specials),
        merges=found["merges"],
        unk_token=None,
        eos_token=TURN_END,
        pad_token=DOCUMENT,
        additional_special_tokens=[TURN_START],
        chat_template=QWEN_CHAT,
    )


def internlm_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """Characters, with bytes for the rare ones, and a mark for each blank, as InternLM2's sentencepiece has them."""
    first, last = ("<unk>", "<s>", "</s>"), (TURN_START, TURN_END)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    found = learned(tokenizer, texts, size - len(first) - len(spelled) - len(last), **LETTERS)
    vocabulary = numbered(first, spelled, found["vocab"], last)
    tokenizer.model = models.BPE(vocabulary, found["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return finished(tokenizer, (*first, *last), ("<s>",), chat_template=CHATML, **names)


def chatglm_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """Bytes under GLM-4's word split, with its special tokens after them."""
    specials = (DOCUMENT, *AFTER_PIECES, *ROLES)
    tokenizer = byte_level(split_by(WORDS))
    found = learned_of_bytes(tokenizer, texts, size - len(specials))
    tokenizer.model = models.BPE(numbered(found["vocab"], specials), found["merges"])
    names = {"eos_token": DOCUMENT, "pad_token": DOCUMENT, "padding_side": "left"}
    return finished(tokenizer, specials, ("[gMASK]", "<sop>"), chat_template=FOURTH, **names)


def bloom_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """Bytes under Bloom's word split, with its special tokens before them; it has no turns of a chat."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = byte_level(split_by(BLOOM_WORDS))
    found = learned_of_bytes(tokenizer, texts, size - len(names))
    tokenizer.model = models.BPE(numbered(tuple(names.values()), found["vocab"]), found["merges"])
    return finished(tokenizer, tuple(names.values()), (), padding_side="left", **names)


def bert_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """BERT's word pieces of lower-case words, with Chinese characters that the texts have most often."""
    plain = BertTokenizer()
    tokenizer = Tokenizer(models.WordPiece(unk_token=plain.unk_token))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        plain.backend_tokenizer.normalizer,
        pre_tokenizers.BertPreTokenizer(),
    )
    specials = sorted(plain.get_vocab(), key=plain.get_vocab().get)
    alphabet = {
        **LETTERS,
        "initial_alphabet": [letter for letter in LETTERS["initial_alphabet"] if not letter.isupper()],
    }
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False, **alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab())


def t5_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    """A unigram model as T5's, with bytes for rare characters, and what it puts in the place of left-out spans last."""
    first, sentinels = ("<pad>", "</s>", "<unk>"), [f"<extra_id_{number}>" for number in range(SENTINELS)]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    found = learned(tokenizer, texts, size - len(first) - len(spelled) - len(sentinels), **LETTERS)
    pieces = weighed(tokenizer, found["vocab"], texts)
    rare = min(pieces.values()) - 10
    vocabulary = [*dict.fromkeys(first, 0.0).items(), *dict.fromkeys(spelled, rare).items(), *pieces.items()]
    tokenizer.model = models.Unigram(vocabulary, first.index("<unk>"), byte_fallback=True)
    strips = [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), *strips])
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True, special=True) for token in sentinels])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": sentinels}
    made = finished(tokenizer, first, (), **names)
    ended = {"single": "$A </s>", "pair": "$A </s> $B </s>", "special_tokens": [("</s>", first.index("</s>"))]}
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(**ended)
    return made


def weighed(tokenizer: Tokenizer, pieces: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """The logarithm of each piece's share of the texts, as merges part them, a rare one counted once."""
    lines = [line for text in texts for line in text.splitlines() if line]
    counts = Counter(piece for found in tokenizer.encode_batch(lines) for piece in found.tokens)
    return {piece: math.log(max(1, counts[piece]) / counts.total()) for piece in pieces}


def qwen_config(context: int, **own: Any) -> PreTrainedConfig:
    """Qwen2 with input and output embeddings shared."""
    rope = {"rope_theta": 10000.0, "max_position_embeddings": context}
    return Qwen2Config(intermediate_size=448, tie_word_embeddings=True, **rope, **GROUPED, **own)


def internlm_config(context: int, **own: Any) -> PreTrainedConfig:
    """InternLM2 in Llama's class: grouped queries, no biases, a head of its own."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": context}
    return LlamaConfig(intermediate_size=256, rms_norm_eps=1e-5, tie_word_embeddings=False, **rope, **GROUPED, **own)


def chatglm_config(context: int, **own: Any) -> PreTrainedConfig:
    """GLM-4: half of each head turns, biases on q, k and v, gate and up in one, a head of its own."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    rope = {"rope_parameters": parameters, "max_position_embeddings": context, "head_dim": 32}
    return GlmConfig(intermediate_size=256, attention_bias=True, tie_word_embeddings=False, **rope, **GROUPED, **own)


def t5_config(context: int, **own: Any) -> PreTrainedConfig:
    """T5 1.1: a gate in the mlp; here with embeddings shared."""
    layers = {"d_model": own.pop("hidden_size"), "d_kv": 32, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3}
    del own["initializer_range"]
    shape = {"d_ff": 128, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": True}
    return T5Config(relative_attention_max_distance=64, **layers, **shape, **own)


def bloom_config(context: int, **own: Any) -> PreTrainedConfig:
    """Bloom: positions are biases by distance (ALiBi), so that nothing bounds them; embeddings are shared."""
    return BloomConfig(n_layer=4, n_head=4, tie_word_embeddings=True, **own)


def bert_config(context: int, **own: Any) -> PreTrainedConfig:
    """BERT without dropout, which a model this small has no need of."""
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(max_position_embeddings=context, **shape, **dropout, **own)


FAMILIES: Mapping[str, Family] = {
    "qwen": Family(qwen_tokenizer, qwen_config, "Qwen2ForCausalLM", DOCUMENT, DOCUMENT, (TURN_END,)),
    "internlm": Family(internlm_tokenizer, internlm_config, "LlamaForCausalLM", "<s>", "</s>", ("</s>", TURN_END)),
    "chatglm": Family(chatglm_tokenizer, chatglm_config, "GlmForCausalLM", "<sop>", DOCUMENT, GLM_STOPS),
    "bert": Family(bert_tokenizer, bert_config, "BertForMaskedLM"),
    "bloom": Family(bloom_tokenizer, bloom_config, "BloomForCausalLM", "<s>", "</s>", ("</s>",)),
    "t5": Family(t5_tokenizer, t5_config, "T5ForConditionalGeneration", "<pad>", "</s>", ("</s>",), "seq2seq"),
}


def token_numbers(family: Family, tokenizer: Any) -> dict[str, Any]:
    """The tokens that config.json names, by number."""
    padding = {"pad_token_id": tokenizer.pad_token_id}
    if not family.stops:
        return padding
    begin, *stops = tokenizer.convert_tokens_to_ids([family.bos, *family.stops])
    first = "bos_token_id" if family.task == "pretrain" else "decoder_start_token_id"
    return {first: begin, "eos_token_id": stops if len(stops) > 1 else stops[0], **padding}


def advice(name: str, out: Path) -> str:
    """The commands that make a starter's weights of a skeleton."""
    made = FAMILIES[name]
    if not made.stops:
        return FIRST_A_DECODER.format(out=out, name=name)
    if made.task != "pretrain":
        return f"python train_pairs.py {out} starter-{made.task}.yaml --family {name}"
    edges = f"--pretrain.bos '{made.bos}' --pretrain.eos '{made.eos}'"
    return f"ftcore run starter.yaml --model {name} --checkpoint {out} --{name}.weights random {edges}"


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--family", required=True, type=click.Choice(list(FAMILIES)))
@click.option("--text", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--vocab-size", default=2048, show_default=True, help="Tokens in all, special tokens included.")
@click.option("--context", default=1024, show_default=True, help="Positions the model may attend to.")
def main(out: Path, family: str, text: tuple[Path, ...], vocab_size: int, context: int) -> None:
    """Write the tokenizer, the model config and the generation settings into OUT; no weights."""
    made = FAMILIES[family]
    tokenizer = made.tokenizer(list(documents(text)), vocab_size)
    tokenizer.model_max_length = context
    numbers = token_numbers(made, tokenizer)
    config = made.config(context, vocab_size=len(tokenizer), architectures=[made.architecture], **SMALL, **numbers)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if made.task == "pretrain" else {}
    parts: list[Any] = [tokenizer, config]
    parts += [GenerationConfig(**sampling, **numbers)] if made.stops else []
    for part in parts:
        part.save_pretrained(out)
    click.echo(advice(family, out))


if __name__ == "__main__":
    main()
