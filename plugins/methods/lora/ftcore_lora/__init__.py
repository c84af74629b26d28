"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) and its variants, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ftcore import Adapter, Data, Loaded, Refused, Run, hookimpl, options
from ftcore_peft import MergeablePeftMethod, between_precisions, matched_patterns, refuse_tied
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from torch.optim import Optimizer

FROM_DATA = ("eva", "lora_ga")


@options
class LoRA(MergeablePeftMethod):
    """h = W x + (alpha / r) B A x with A of shape (r, in) and B of shape (out, r); W stays frozen (equation 3)."""

    parted: ClassVar[Mapping[str, str]] = {
        "lora_A.weight": "whole",
        "lora_B.weight": "rows",
        "lora_B.bias": "rows",
        "lora_magnitude_vector": "rows",
        "lora_magnitude_vector.weight": "rows",
    }

    r: Annotated[int, Field(ge=1, description="Rank of the update.")] = 8
    alpha: Annotated[int, Field(ge=1, description="The update is scaled by alpha / r.")] = 16
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the input of the update.")] = 0.0
    bias: Annotated[Literal["none", "all", "lora_only"], Field(description="Which biases train beside the update.")] = (
        "none"
    )
    use_dora: Annotated[bool, Field(description="Train magnitude and direction apart (DoRA, arXiv:2402.09353).")] = (
        False
    )
    use_rslora: Annotated[bool, Field(description="Scale by alpha / sqrt(r) instead (rsLoRA, arXiv:2312.03732).")] = (
        False
    )
    init: Annotated[
        Literal["default", "gaussian", "pissa", "olora", "orthogonal", "eva", "loftq", "lora_ga"],
        Field(description="How A, B and perhaps W begin: see the table of starts in the README."),
    ] = "default"
    rank_pattern: Annotated[
        dict[str, int], Field(description="Other ranks for modules by name, its ending or a pattern, as a JSON object.")
    ] = Field(default_factory=dict)
    alpha_pattern: Annotated[
        dict[str, int], Field(description="Other alphas for modules by name, its ending or a pattern, likewise.")
    ] = Field(default_factory=dict)
    lr_ratio: Annotated[
        float, Field(gt=0, description="B's learning rate is this times A's (LoRA+, arXiv:2402.12354; there 16).")
    ] = 1.0
    train_embeddings: Annotated[
        bool, Field(description="Train the embedding and the head whole, beside the update.")
    ] = False
    trainable_token_indices: Annotated[
        tuple[int, ...], Field(description="Tokens whose rows of the embedding train beside the update.")
    ] = ()

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's LoraConfig; a plan has no weights to take an initial value from."""
        from peft import LoraConfig

        own = self.init in ("default", "loftq", *FROM_DATA) or run.intent == "plan"
        chosen = self.targets(run, model, loaded)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            bias=self.bias,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights=True if own else self.init,
            rank_pattern=matched_patterns(run, "lora.rank_pattern", self.rank_pattern, chosen),
            alpha_pattern=matched_patterns(run, "lora.alpha_pattern", self.alpha_pattern, chosen),
            modules_to_save=self.whole(model, loaded, chosen) or None,
            trainable_token_indices=self.tokens(loaded),
        )

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, begun as `init` says."""
        self.refuse_start(run, data)
        adapted = super().inject_adapter(run, model, loaded, data, steps)
        for name in adapted.peft_config["default"].modules_to_save or ():
            between_precisions(adapted.base_model.model.get_submodule(name), "modules_to_save", "original_module")
        if self.init in ("loftq", *FROM_DATA):
            from ftcore_lora import starts

            starts.begin(self.init, adapted, loaded, data if run.intent == "train" else None, run)
        return adapted

    @hookimpl
    def create_optimizer(self, run: Run, model: nn.Module) -> Optimizer | None:
        """AdamW with B's learning rate `lr_ratio` times the others'; the core's own where they are the same."""
        if self.lr_ratio == 1:
            return None
        import torch
        from ftcore.training import adam_settings

        return torch.optim.AdamW(self.groups(run, model), **adam_settings(run.settings))

    def groups(self, run: Run, model: nn.Module) -> list[dict[str, Any]]:
        """What trains, in groups of one decay and one learning rate."""
        from ftcore.training import parameter_groups

        return parameter_groups(model, run.settings, lambda name: self.lr_ratio if is_b(name) else 1.0)

    @hookimpl
    def save_adapter(self, run: Run, model: PeftModel) -> Adapter:
        """What `PeftModel.from_pretrained` reads; what lora_ga took from the base is part of the update."""
        adapter = super().save_adapter(run, model)
        if self.init != "lora_ga":
            return adapter
        from ftcore_lora import starts

        return starts.doubled(model, adapter)

    @hookimpl
    def load_adapter(self, run: Run, model: PeftModel, adapter: Adapter) -> frozenset[str]:
        """The model holds the tensors of `adapter`."""
        if self.init == "lora_ga":
            from ftcore_lora import starts

            adapter = starts.halved(model, adapter)
        return super().load_adapter(run, model, adapter)

    @hookimpl
    def merge(self, run: Run, model: PeftModel) -> nn.Module:
        """The base model with the change added to its weights, and with its precision."""
        if self.init == "lora_ga":
            from ftcore_lora import starts

            starts.fold(model)
        inner = model.base_model.model
        whole = model.peft_config["default"].modules_to_save or ()
        kinds = {name: inner.get_submodule(name).original_module.weight.dtype for name in whole}
        merged = super().merge(run, model)
        for name, kind in kinds.items():
            merged.get_submodule(name).to(kind)
        return merged

    def whole(self, model: nn.Module, loaded: Loaded, chosen: tuple[str, ...]) -> list[str]:
        """The modules that train whole: embedding and head, when asked for; refused when they are one tensor."""
        if not self.train_embeddings:
            return []
        present = {name for name, module in model.named_modules() if "weight" in dict(module.named_parameters())}
        names = [name for role in ("embedding", "head") for name in loaded.parts.get(role, ()) if name in present]
        if set(names) & set(chosen):
            raise Refused(
                f"lora.train_embeddings trains '{names[0]}' whole, and lora.parts names it too; name it in one"
            )
        refuse_tied(model, names)
        return names

    def tokens(self, loaded: Loaded) -> dict[str, list[int]] | None:
        """The rows that train by the name of the embedding; refused when there are no such rows."""
        if not self.trainable_token_indices:
            return None
        if self.train_embeddings:
            raise Refused("lora.train_embeddings trains every row already; leave lora.trainable_token_indices out")
        last = max(self.trainable_token_indices)
        if last >= loaded.vocab_size or min(self.trainable_token_indices) < 0:
            raise Refused(f"lora.trainable_token_indices names token {last}, and the model has {loaded.vocab_size}")
        return {name: list(self.trainable_token_indices) for name in loaded.parts.get("embedding", ())[:1]}

    def refuse_start(self, run: Run, data: Data | None) -> None:
        """Refused when `init` lacks what it begins from, or is asked for beside what changes the update's form."""
        if self.init in FROM_DATA and run.intent == "train" and data is None:
            raise Refused(f"lora.init '{self.init}' begins from the rows, and there are none; use it in a run")
        taken = [name for name, value in self.forms().items() if value]
        if self.init == "lora_ga" and taken:
            raise Refused(f"lora.init 'lora_ga' does not go with lora.{taken[0]}; drop one of them")

    def forms(self) -> Mapping[str, Any]:
        """The options after which the update is no plain product of one rank for all."""
        names = ("use_dora", "rank_pattern", "alpha_pattern", "trainable_token_indices", "train_embeddings")
        return {name: getattr(self, name) for name in names}


def is_b(name: str) -> bool:
    """Whether a parameter is a B of an update."""
    return ".lora_B." in name or ".lora_embedding_B." in name
