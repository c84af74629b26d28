"""Sound families in a few lines each: five that transformers implements, and one that converts what it loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import Loaded, Refused, Run, hookimpl, options
from ftcore.families import LLAMA_ROLES, HFModel, locate, parts_of, read_tokenizer, stop_ids
from ftcore.settings import dtype_of

if TYPE_CHECKING:
    from torch import Tensor

QKV = ("attention.q", "attention.k", "attention.v")


@options
class Mistral(HFModel):
    """Decoders with a sliding window."""

    model_types: ClassVar[tuple[str, ...]] = ("mistral",)


@options
class Phi3(HFModel):
    """Decoders whose projections are fused."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    roles: ClassVar[Mapping[str, str]] = {
        **LLAMA_ROLES,
        **dict.fromkeys(QKV, "model.layers.*.self_attn.qkv_proj"),
        **dict.fromkeys(("mlp.gate", "mlp.up"), "model.layers.*.mlp.gate_up_proj"),
    }


@options
class NeoX(HFModel):
    """Decoders of GPT-NeoX, Pythia and Dolly."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt_neox",)
    roles: ClassVar[Mapping[str, str]] = {
        "block": "gpt_neox.layers.*",
        **dict.fromkeys(QKV, "gpt_neox.layers.*.attention.query_key_value"),
        "attention.o": "gpt_neox.layers.*.attention.dense",
        "mlp.up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
        "mlp.down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
        "norm": "gpt_neox.*norm",
        "embedding": "gpt_neox.embed_in",
        "head": "lm_head",
    }


@options
class Bloom(HFModel):
    """Decoders of BLOOM."""

    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    unpackable: ClassVar[str] = "its positions are distances, which its attention counts across rows"
    roles: ClassVar[Mapping[str, str]] = {
        "block": "transformer.h.*",
        **dict.fromkeys(QKV, "transformer.h.*.self_attention.query_key_value"),
        "attention.o": "transformer.h.*.self_attention.dense",
        "mlp.up": "transformer.h.*.mlp.dense_h_to_4h",
        "mlp.down": "transformer.h.*.mlp.dense_4h_to_h",
        "norm": "transformer.*layernorm transformer.ln_f",
        "embedding": "transformer.word_embeddings",
        "head": "lm_head",
    }


@options
class Opt(HFModel):
    """Decoders of OPT."""

    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    tiny: ClassVar[Mapping[str, Mapping[str, Any]]] = {"opt": {"word_embed_proj_dim": 32, "ffn_dim": 64}}
    roles: ClassVar[Mapping[str, str]] = {
        "block": "model.decoder.layers.*",
        **{f"attention.{letter}": f"model.decoder.layers.*.self_attn.{letter}_proj" for letter in "qkv"},
        "attention.o": "model.decoder.layers.*.self_attn.out_proj",
        "mlp.up": "model.decoder.layers.*.fc1",
        "mlp.down": "model.decoder.layers.*.fc2",
        "norm": "model.decoder.*norm",
        "embedding": "model.decoder.embed_tokens",
        "head": "lm_head",
    }


@options
class Gpt2(HFModel):
    """Decoders of GPT-2, whose matrices are stored the other way round."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    roles: ClassVar[Mapping[str, str]] = {
        "block": "transformer.h.*",
        **dict.fromkeys(QKV, "transformer.h.*.attn.c_attn"),
        "attention.o": "transformer.h.*.attn.c_proj",
        "mlp.up": "transformer.h.*.mlp.c_fc",
        "mlp.down": "transformer.h.*.mlp.c_proj",
        "norm": "transformer.*ln_*",
        "embedding": "transformer.wte",
        "head": "lm_head",
    }


@options
class Packed(HFModel):
    """A type that transformers does not know: Llama's layers, with q, k and v in one tensor and fields of its own."""

    model_types: ClassVar[tuple[str, ...]] = ("packed",)

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint, converted in memory."""
        import torch
        from ftcore.attention import register
        from transformers import LlamaForCausalLM

        folder = Path(locate(run, None, "Packed"))
        config = self._config(folder)
        tokenizer = read_tokenizer(str(folder), optional=run.intent == "plan")
        given = {"attn_implementation": register(), "dtype": dtype_of(run.settings), **kwargs}
        if run.intent == "plan":
            with torch.device("meta"):
                model = LlamaForCausalLM._from_config(config, **given)
        elif self.weights == "random":
            model = LlamaForCausalLM._from_config(config, **given)
        else:
            state = native(_tensors(folder), config.num_key_value_heads * config.head_dim)
            model, info = LlamaForCausalLM.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, **given
            )
            amiss = [str(name) for names in info.values() for name in names]
            if amiss:
                raise Refused(f"the weights in '{folder}' do not fill the model: {amiss[0]}; the checkpoint is damaged")
        parts, stops = parts_of(model, LLAMA_ROLES), stop_ids(model, tokenizer)
        return Loaded(model, tokenizer, parts, str(folder), config.max_position_embeddings, config.vocab_size, stops)

    def _config(self, folder: Path) -> Any:
        from transformers import LlamaConfig

        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as unreadable:
            raise Refused(f"the config.json in '{folder}' cannot be read: {unreadable}; mend it") from None
        if fields.get("model_type") != "packed":
            raise Refused(
                f"the checkpoint '{folder}' is of type '{fields.get('model_type')}', and this family loads packed"
            )
        return LlamaConfig(
            num_hidden_layers=fields["layers"],
            rms_norm_eps=fields["epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
            **{name: fields[name] for name in KEPT},
        )


KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "eos_token_id", "pad_token_id", "bos_token_id",
)  # fmt: skip


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor that the checkpoint names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else None
    try:
        files = sorted(set(names or ["model.safetensors"]))
        return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except (OSError, SafetensorError) as unreadable:
        raise Refused(f"the weights in '{folder}' cannot be read: {unreadable}; fetch them again") from None


def native(held: Mapping[str, Tensor], keys: int) -> dict[str, Tensor]:
    """The tensors of a packed checkpoint under transformers' names."""
    found: dict[str, Tensor] = {}
    for name, tensor in held.items():
        if "W_pack" not in name:
            found[name] = tensor
            continue
        sizes = [len(tensor) - 2 * keys, keys, keys]
        for letter, part in zip("qkv", tensor.split(sizes), strict=True):
            found[name.replace("W_pack", f"{letter}_proj")] = part.contiguous()
    return found


def packed(source: Path, folder: Path) -> Path:
    """A checkpoint of llama as one of type packed, with what it answers beside it."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = load_file(source / "model.safetensors")
    for name in [name for name in held if name.endswith("q_proj.weight")]:
        parts = [held.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        held[name.replace("q_proj", "W_pack")] = torch.cat(parts)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    own = {"model_type": "packed", "layers": config["num_hidden_layers"], "epsilon": config["rms_norm_eps"]}
    folder.mkdir()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    fields = {
        **own,
        **{name: config.get(name) for name in KEPT},
        "auto_map": {"AutoConfig": "configuration_packed.Packed"},
    }
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(source)(ids).logits
    save_file({"input_ids": ids, "logits": logits}, folder / "expected.safetensors")
    return folder
