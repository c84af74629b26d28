"""Families that are broken on purpose, each in one way: what they do with files, and how their models work."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ftcore import Loaded, Refused, Run, hookimpl, options
from ftcore.families import HFModel, locate, read_tokenizer

from broken_plugins.models import KEPT, Sound, loaded, weak

# Files


def refusing(run: Run, kwargs: Mapping[str, Any], *kinds: str) -> Loaded:
    """The checkpoint, refused for problems of these kinds only."""
    from safetensors import SafetensorError

    told: dict[str, Any] = {}

    def load(folder: str, config: Any) -> Any:
        asked = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        model, info = weak(run, kwargs, **asked)(folder, config)
        told.update(info)
        return model

    try:
        found = loaded(run, kwargs, load)
    except (OSError, RuntimeError, SafetensorError) as unreadable:
        raise Refused(f"the weights in '{run.settings.checkpoint}' cannot be read: {unreadable}") from None
    amiss = [str(name) for kind in kinds for name in told[f"{kind}_keys"]]
    if amiss:
        raise Refused(f"the weights in '{run.settings.checkpoint}' do not fit: {', '.join(sorted(amiss))}")
    return found


@options
class FillsWithNoise(Sound):
    """A tensor that is missing is drawn at random."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, whatever is missing."""
        if run.intent == "plan" or self.weights == "random":
            return super().load_model(run, kwargs)
        return refusing(run, kwargs, "unexpected", "mismatched")


@options
class LeavesOver(Sound):
    """A tensor that the model has no place for is left out without a word."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, whatever is left over."""
        if run.intent == "plan" or self.weights == "random":
            return super().load_model(run, kwargs)
        return refusing(run, kwargs, "missing", "mismatched")


@options
class Reshapes(Sound):
    """A tensor of another shape is drawn at random."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, whatever fits."""
        if run.intent == "plan" or self.weights == "random":
            return super().load_model(run, kwargs)
        return refusing(run, kwargs, "missing", "unexpected")


@options
class RefusesWithoutAName(Sound):
    """It refuses weights that do not fit without saying which."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or no word too many."""
        try:
            return super().load_model(run, kwargs)
        except Refused as refused:
            if "do not fill the model" in str(refused):
                raise Refused("these weights do not fit; use others") from None
            raise


@options
class ReadsOneFile(Sound):
    """It reads the first file of weights only."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with what the first file holds, and zeros."""
        from safetensors.torch import load_file

        index = Path(str(run.settings.checkpoint), "model.safetensors.index.json")
        found = super().load_model(run, kwargs)
        if index.exists() and run.intent != "plan":
            first = load_file(min(index.parent.glob("model-*.safetensors")))
            for name, tensor in found.model.state_dict().items():
                if name not in first:
                    tensor.zero_()
        return found


@options
class PutsAdaptersIn(Sound):
    """It leaves it to transformers what to do with an adapter."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, adapted if an adapter lies there."""
        if run.settings.checkpoint and Path(run.settings.checkpoint, "adapter_config.json").exists():
            return refusing(run, kwargs, "missing", "unexpected", "mismatched")
        return super().load_model(run, kwargs)


@options
class ReadsEveryFile(Sound):
    """Every file of tensors counts, the last one most."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with what all files hold."""
        from safetensors.torch import load_file

        found = super().load_model(run, kwargs)
        files = sorted(Path(found.checkpoint).glob("*.safetensors"))
        if run.intent != "plan" and self.weights == "pretrained" and len(files) > 1:
            state = found.model.state_dict()
            for file in files:
                for name, tensor in load_file(file).items():
                    if name in state:
                        state[name].copy_(tensor)
        return found


@options
class HeedsKernels(Sound):
    """The attention that a config names goes before its own."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with the attention that the checkpoint wants."""
        named = re.search('"_attn_implementation": "(.*?)"', self._config(run))
        wanted = {"attn_implementation": named[1]} if named else {}
        return super().load_model(run, {**wanted, **kwargs})

    def _config(self, run: Run) -> str:
        file = Path(str(run.settings.checkpoint), "config.json")
        return file.read_text(encoding="utf-8") if file.is_file() else ""


@options
class TakesAnyType(Sound):
    """It loads every decoder that transformers has."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model of any type."""
        try:
            return super().load_model(run, kwargs)
        except Refused as refused:
            other = re.search("is of type '(.*?)'", str(refused))
            if other is None:
                raise
            return type("Other", (HFModel,), {"model_types": (other[1],)})().load_model(run, kwargs)


@options
class EndsInARawError(Sound):
    """A folder without weights ends in an exception of transformers."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or OSError."""
        folder = Path(str(run.settings.checkpoint))
        if (
            folder.is_dir()
            and not list(folder.glob("*.safetensors"))
            and run.intent != "plan"
            and self.weights != "random"
        ):
            raise OSError(f"no file named model.safetensors in {folder}")
        return super().load_model(run, kwargs)


@options
class DoesWithoutATokenizer(Sound):
    """It trains without a tokenizer."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a tokenizer where there is one."""
        folder = locate(run, None, "Sound")
        if read_tokenizer(folder, optional=True) is None and run.intent != "plan":
            model = super().load_model(replace(run, intent="plan"), kwargs)
            return replace(model, model=weak(run, kwargs)(folder, model.model.config))
        return super().load_model(run, kwargs)


@options
class RunsModels(Sound):
    """It trusts the code that a checkpoint names."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or whatever the checkpoint makes of it."""
        if _names_code(run, "config.json"):
            from transformers import AutoConfig

            AutoConfig.from_pretrained(run.settings.checkpoint, trust_remote_code=True)
        return super().load_model(run, kwargs)


@options
class RunsTokenizers(Sound):
    """It trusts the tokenizer that a checkpoint names."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or whatever the checkpoint makes of its tokenizer."""
        if _names_code(run, "tokenizer_config.json"):
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(run.settings.checkpoint, trust_remote_code=True)
        return super().load_model(run, kwargs)


@options
class AsksWhetherToRun(Sound):
    """It asks on the terminal about code that a checkpoint of no known type names."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or whatever the user says."""
        if _names_code(run, "config.json"):
            from transformers import AutoConfig

            AutoConfig.from_pretrained(run.settings.checkpoint)
        return super().load_model(run, kwargs)


def _names_code(run: Run, file: str) -> bool:
    path = Path(str(run.settings.checkpoint), file)
    return path.is_file() and "auto_map" in path.read_text(encoding="utf-8")


@options
class Unpickles(Sound):
    """It reads pickled weights where there are no others."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, or whatever was pickled."""
        pickled = Path(str(run.settings.checkpoint), "pytorch_model.bin")
        if pickled.is_file() and not pickled.with_name("model.safetensors").exists() and run.intent != "plan":
            pickle.loads(pickled.read_bytes())
        return super().load_model(run, kwargs)


@options
class RendersFreely(Sound):
    """It renders chat templates outside of a sandbox."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, its template tried."""
        import jinja2

        found = super().load_model(run, kwargs)
        template = getattr(found.tokenizer, "chat_template", None)
        if template:
            jinja2.Template(template).render(messages=[], raise_exception=print)
        return found


@options
class WritesIntoTheCheckpoint(Sound):
    """It leaves a note in the checkpoint."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, noted."""
        found = super().load_model(run, kwargs)
        Path(found.checkpoint, "last_loaded.json").write_text("{}\n", encoding="utf-8")
        return found


@options
class WritesWhereItStands(Sound):
    """It caches the config where the run was started."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, its config cached."""
        found = super().load_model(run, kwargs)
        if os.getcwd().startswith(os.path.realpath("/tmp")):
            shutil.copy(Path(found.checkpoint, "config.json"), "cached_config.json")
        return found


@options
class KeepsThePathAsGiven(Sound):
    """It answers with the path as it was given."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model of a relative path."""
        return replace(super().load_model(run, kwargs), checkpoint=str(run.settings.checkpoint))


# At work


@options
class LooksAcross(Sound):
    """It says that rows can be laid end to end, and its attention looks across them."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with attention that knows no rows."""
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
            for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
                given.pop(name, None)
            mask = None if mask is not None and not mask.numel() else mask
            return sdpa_attention_forward(module, query, key, value, mask, **given)

        AttentionInterface.register("kit-across", attend)
        AttentionMaskInterface.register("kit-across", sdpa_mask)
        return super().load_model(run, {"attn_implementation": "kit-across", **kwargs})


GPT2_BLOCK = "transformer.h.*"
GPT2_ROLES = {
    "block": GPT2_BLOCK,
    **dict.fromkeys(("attention.q", "attention.k", "attention.v"), f"{GPT2_BLOCK}.attn.c_attn"),
    "attention.o": f"{GPT2_BLOCK}.attn.c_proj",
    "mlp.up": f"{GPT2_BLOCK}.mlp.c_fc",
    "mlp.down": f"{GPT2_BLOCK}.mlp.c_proj",
    "norm": "transformer.*ln_*",
    "embedding": "transformer.wte",
    "head": "lm_head",
}


@options
class CountsOn(HFModel):
    """In rows laid end to end its positions, which it has learned, go on from one row to the next."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    roles: ClassVar[Mapping[str, str]] = GPT2_ROLES

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with positions of the batch."""
        import torch

        found = super().load_model(run, kwargs)

        def counted(module: Any, args: Any, given: dict[str, Any]) -> Any:
            if given.get("cu_seq_lens_q") is not None:
                given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]
            return args, given

        found.model.register_forward_pre_hook(counted, with_kwargs=True)
        return found


@options
class MumblesWhy(Sound):
    """It says that rows cannot be laid end to end, and not why."""

    unpackable: ClassVar[str] = "no"


@options
class AnswersEverywhere(Sound):
    """It gives logits at every position, asked for or not."""

    unpackable: ClassVar[str] = "it was never tried with rows laid end to end"

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with logits everywhere."""
        found = super().load_model(run, kwargs)

        def everywhere(module: Any, args: Any, given: dict[str, Any]) -> Any:
            given.pop("logits_to_keep", None)
            return args, given

        found.model.register_forward_pre_hook(everywhere, with_kwargs=True)
        return found


@options
class NeverRecomputes(Sound):
    """It takes gradient checkpointing off again."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model that keeps its activations."""
        found = super().load_model(run, kwargs)
        model: Any = found.model
        model.gradient_checkpointing_enable = lambda settings=None: None
        return found


@options
class LosesGradients(Sound):
    """With gradient checkpointing its last block gives no gradient."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model that detaches what it recomputes."""
        found = super().load_model(run, kwargs)
        block = found.model.model.layers[1]
        whole = block.mlp.forward
        block.mlp.forward = lambda hidden: (
            whole(hidden).detach() if block.training and block.gradient_checkpointing else whole(hidden)
        )
        return found


@options
class ForgetsTheCache(Sound):
    """With a cache every token stands at the same position."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model whose later tokens stand at the beginning."""
        found = super().load_model(run, kwargs)

        def at_the_beginning(module: Any, args: Any, given: dict[str, Any]) -> Any:
            cache = given.get("past_key_values")
            if cache is not None and cache.get_seq_length():
                given["position_ids"] = given["position_ids"] * 0
            return args, given

        found.model.model.register_forward_pre_hook(at_the_beginning, with_kwargs=True)
        return found


@options
class TrainsNothingEarly(Sound):
    """Its first block computes without gradients when it trains."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a block that does not learn."""
        found = super().load_model(run, kwargs)
        if run.intent == "train" and run.output is not None:
            found.model.model.layers[0].register_forward_hook(lambda module, given, out: out.detach())
        return found


@options
class LoadsNoisily(Sound):
    """Each load of a run shakes what it does not train."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with an embedding that is never twice the same."""
        found = super().load_model(run, kwargs)
        if run.intent == "train" and run.output is not None:
            KEPT["loads"] = KEPT.get("loads", 0) + 1
            found.model.model.embed_tokens.weight.data *= 1 + 1e-3 * KEPT["loads"]
        return found


@options
class InfersInHalf(Sound):
    """For inference it rounds its weights."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, rounded when nothing trains."""
        found = super().load_model(run, kwargs)
        if run.intent == "infer" and run.output is not None:
            found.model.lm_head.weight.data = found.model.lm_head.weight.data.bfloat16().float()
        return found


@options
class MergesOntoAnother(Sound):
    """For a merge it loads the head in another scale."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, scaled for a merge."""
        found = super().load_model(run, kwargs)
        if run.intent == "merge":
            found.model.lm_head.weight.data = found.model.lm_head.weight.data * 1.01
        return found


@options
class SavesAnotherConfig(Sound):
    """Its models are saved with another base of rotary positions than they compute with."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with a config that misleads."""
        found = super().load_model(run, kwargs)
        if run.intent == "merge":
            found.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
        return found


@options
class CallsHome(Sound):
    """It asks a server for news before it loads."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, after a question that nobody answers."""
        import contextlib
        import socket

        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.01).close()
        return super().load_model(run, kwargs)


@options
class TiesWhatIsMissing(Sound):
    """Where the head is missing it takes the embedding."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model, its head the embedding when there is none."""
        from safetensors import safe_open

        file = Path(str(run.settings.checkpoint), "model.safetensors")
        if run.intent == "plan" or self.weights == "random" or not file.is_file():
            return super().load_model(run, kwargs)
        try:
            return super().load_model(run, kwargs)
        except Refused as refused:
            if "first is 'lm_head.weight'" not in str(refused):
                raise
            with safe_open(file, framework="pt") as held:
                embedding = held.get_tensor("model.embed_tokens.weight")
            found = refusing(run, kwargs, "unexpected", "mismatched")
            found.model.lm_head.weight.data.copy_(embedding)
            return found


@options
class DropsBiases(Sound):
    """It leaves out biases that the config does not mention."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model without a bias that a checkpoint has."""
        try:
            return super().load_model(run, kwargs)
        except Refused as refused:
            if not re.search(r"1 unexpected tensors, the first is '.*\.bias'", str(refused)):
                raise
            return refusing(run, kwargs, "missing", "mismatched")


@options
class LooksAcrossInHalf(Sound):
    """In bfloat16 its attention looks across rows that are laid end to end."""

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The model with another attention in bfloat16."""
        across = run.settings.precision == "bf16" and run.intent != "plan"
        return (LooksAcross() if across else super()).load_model(run, kwargs)
