"""XLNet (Yang et al. 2019, arXiv:1906.08237) as an encoder, in transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore import Refused, hookimpl, options
from ftcore.families import UNLIMITED, HFModel
from ftcore.hooks import Loaded, Run

if TYPE_CHECKING:
    from torch import nn

BLOCK = "transformer.layer.*"
# What files hold for heads other than the one asked for.
OTHERS = (r"(lm_loss|sequence_summary\.summary|logits_proj|classifier|qa_outputs|start_logits|end_logits)\..*",)
# What takes part only where a row has segments or words are predicted in any order: no row and no head here.
IDLE = ("mask_emb", "r_s_bias", "seg_embed")
SIZES: Mapping[str, str] = {
    "base": "xlnet/xlnet-base-cased",
    "large": "xlnet/xlnet-large-cased",
}


@options
class XLNet(HFModel):
    """Encoders of the type xlnet, whose q, k, v and o are tensors of one module and no layers.

    A checkpoint without the head asked for, as the published ones are, gets a new one; other heads are left out.
    """

    model_types: ClassVar[tuple[str, ...]] = ("xlnet",)
    sizes: ClassVar[Mapping[str, str]] = SIZES
    heads: ClassVar[tuple[str, ...]] = ("token-classification", "question-answering")
    drawn_heads: ClassVar[tuple[str, ...]] = heads
    leftovers: ClassVar[tuple[str, ...]] = OTHERS
    tiny: ClassVar[Mapping[str, Mapping[str, int]]] = {"xlnet": {"d_head": 8, "d_inner": 64}}
    unpackable: ClassVar[str] = "its tokens look at what comes after them, by distances that are counted over the row"
    roles: ClassVar[Mapping[str, str]] = {
        "block": BLOCK,
        "relative_attention": f"{BLOCK}.rel_attn",
        "mlp.up": f"{BLOCK}.ff.layer_1",
        "mlp.down": f"{BLOCK}.ff.layer_2",
        "norm": "transformer.*layer_norm",
        "embedding": "transformer.word_embedding",
        "head": "classifier qa_outputs",
    }
    excused: ClassVar[Mapping[str, str]] = {
        "check_roles_are_complete": "q, k, v and o are tensors of one module, so no layer has their roles",
        "check_activations_can_be_recomputed": "transformers recomputes nothing in this type",
        "check_positions_are_the_models": "its config says -1 where there is no limit",
    }

    @hookimpl
    def load_model(self, run: Run, kwargs: Mapping[str, Any]) -> Loaded:
        """The checkpoint in transformers' own class; its positions are distances, so rows may have any length."""
        if run.settings.gradient_checkpointing:
            raise Refused("a model of the type xlnet cannot recompute activations; leave gradient_checkpointing out")
        loaded = HFModel.load_model(self, run, kwargs)
        model = loaded.model.to("meta") if run.intent == "plan" else loaded.model  # it makes tensors on no device asked
        for module in model.modules():
            _keep_from_training(module)
        return replace(loaded, model=model, max_positions=UNLIMITED)


def _keep_from_training(module: nn.Module) -> None:
    """What takes no part here stays in the model under its name, and is no parameter."""
    for name in IDLE:
        if name in module._parameters:
            idle = getattr(module, name).detach()
            delattr(module, name)
            module.register_buffer(name, idle)
