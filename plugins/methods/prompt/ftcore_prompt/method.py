"""The method `prompt`, and the bases of the methods that put virtual tokens before every row."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ftcore import Adapter, Data, FtcoreError, Loaded, Refused, Run, hookimpl, options
from ftcore_peft import PeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from ftcore_prompt.virtual_tokens import Prefix, VirtualTokens

TASKS: Mapping[str, str] = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "masked-lm": "FEATURE_EXTRACTION",  # PEFT has no task for it; under this one it puts prompts before any model
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
}
UNDERSTANDING = ("sequence-classification", "token-classification", "question-answering")
ROOM = 8  # positions that must be left for a row


@options
class VirtualTokenMethod(PeftMethod):
    """Learned virtual tokens stand before every row; the base stays as it is."""

    one_of: ClassVar[str] = "virtual tokens"
    unpackable: ClassVar[str] = "virtual tokens stand before every row"
    excused: ClassVar[Mapping[str, str]] = {
        "check_start_is_the_base": "a virtual token is attended to from the first step on, whatever it is",
    }

    num_virtual_tokens: Annotated[int, Field(ge=1, description="Virtual tokens before every row.")] = 20

    @hookimpl(wrapper=True)
    def load_model(self) -> Generator[None, Loaded, Loaded]:
        """Rows and conversations have the positions that virtual tokens leave; too few of them are refused."""
        loaded = yield
        refuse_crowded(loaded.max_positions, self.num_virtual_tokens)
        return replace(loaded, max_positions=loaded.max_positions - self.num_virtual_tokens)

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model with virtual tokens."""
        from ftcore_prompt.virtual_tokens import transformers_model

        base = transformers_model(model)
        config = self.peft_config(run, model, loaded, data, steps)
        config.task_type = TASKS[run.head]
        config.base_model_name_or_path = loaded.checkpoint or None
        config.num_virtual_tokens, config.num_transformer_submodules = self.num_virtual_tokens, 1
        heads = new_heads(base) if run.head in UNDERSTANDING else []
        config.modules_to_save = [name for name in heads if name not in loaded.trained] or None
        return self.adapted(run, model, loaded, config)

    @hookimpl
    def load_adapter(self, run: Run, model: VirtualTokens, adapter: Adapter) -> frozenset[str]:
        """The model holds the virtual tokens of `adapter`, without the encoder that made them."""
        model.forget_encoder()
        refuse_misshapen(adapter, tuple(model.learned().shape))
        return PeftMethod.load_adapter(self, run, model, adapter)

    def adapted(self, run: Run, model: nn.Module, loaded: Loaded, config: PeftConfig) -> nn.Module:
        """The model with the virtual tokens of `config` in place."""
        raise FtcoreError(f"{type(self).__name__} puts no virtual tokens in place; define its method 'adapted'")


@options
class PromptMethod(VirtualTokenMethod):
    """Virtual tokens before the embeddings of every row, in an encoder-decoder before those of the encoder."""

    def adapted(self, run: Run, model: nn.Module, loaded: Loaded, config: PeftConfig) -> nn.Module:
        """The model with prompts in place; one that takes no embeddings is refused."""
        from ftcore_prompt.virtual_tokens import Prompts, refuse_readers_of_tokens, transformers_model

        base = transformers_model(model)
        refuse_readers_of_tokens(model, generates=run.head == "causal-lm")
        config.token_dim = base.get_input_embeddings().weight.shape[1]
        config.num_layers, config.num_attention_heads = 1, 1  # PEFT asks, and prompts have none
        pooled_first = run.head == "sequence-classification" and not hasattr(base, "score")
        return Prompts(model, config, pooled_first=pooled_first)


@options
class Prompt(PromptMethod):
    """h = f([P; E(x)]) with P of shape (num_virtual_tokens, d) learned and the model f and its embeddings E frozen."""

    suggested_lr: ClassVar[float] = 3e-2

    init: Annotated[
        Literal["random", "vocabulary", "text"],
        Field(description="P begins at random, as rows of the vocabulary drawn at random, or as those of init_text."),
    ] = "vocabulary"
    init_text: Annotated[
        str, Field(description="What P begins as with init text, repeated or cut to num_virtual_tokens.")
    ] = ""

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's PromptTuningConfig."""
        from peft import PromptTuningConfig

        if bool(self.init_text) != (self.init == "text"):
            raise Refused(
                f"prompt.init is '{self.init}' and init_text is '{self.init_text}'; "
                "give the text with --prompt.init text, and none otherwise"
            )
        return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM")

    def adapted(self, run: Run, model: nn.Module, loaded: Loaded, config: PeftConfig) -> nn.Module:
        """The model with prompts in place, as the text where one is given."""
        adapted: Any = PromptMethod.adapted(self, run, model, loaded, config)
        if self.init == "text" and (run.intent == "train" or loaded.tokenizer is not None):
            begin_as(adapted, self.token_ids(loaded))
        return adapted  # type: ignore[no-any-return]

    def token_ids(self, loaded: Loaded) -> list[int]:
        """The tokens of the text, repeated or cut to as many as there are virtual tokens."""
        if loaded.tokenizer is None:
            raise Refused("prompt.init is 'text' and the checkpoint has no tokenizer; add one or choose vocabulary")
        ids: list[int] = loaded.tokenizer(self.init_text)["input_ids"]
        if not ids:
            raise Refused(f"prompt.init_text '{self.init_text}' has no tokens; give a text with words")
        return (ids * math.ceil(self.num_virtual_tokens / len(ids)))[: self.num_virtual_tokens]


@options
class PrefixMethod(VirtualTokenMethod):
    """Virtual keys and values before those of every row, in each layer of the decoder or of the only stack."""

    projection: Annotated[
        bool, Field(description="While training, an MLP makes the keys and values from one embedding for each token.")
    ] = False
    encoder_hidden_size: Annotated[
        int | None, Field(ge=1, description="Width of that MLP; as wide as a layer's keys when not given.")
    ] = None

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's PrefixTuningConfig."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(prefix_projection=self.projection, encoder_hidden_size=self.encoder_hidden_size)

    def adapted(self, run: Run, model: nn.Module, loaded: Loaded, config: PeftConfig) -> nn.Module:
        """The model with keys and values in place, shaped as its own."""
        from ftcore_prompt.virtual_tokens import Prefix, heads_by_layer, transformers_model

        layers = heads_by_layer(model)
        config.num_layers, config.num_attention_heads = len(layers), layers[0][0]
        config.token_dim = layers[0][0] * layers[0][1]
        adapted = Prefix(model, config)
        if adapted.misjudged:
            kind = type(transformers_model(model)).__name__
            run.say(f"PEFT takes {kind} to have other heads than it has: ftcore reads this adapter, PEFT itself cannot")
        return adapted

    @hookimpl
    def save_adapter(self, run: Run, model: Prefix) -> Adapter:
        """What `PeftModel.from_pretrained` reads."""
        adapter = PeftMethod.save_adapter(self, run, model)
        return widened(adapter) if run.head == "seq2seq-lm" else adapter

    @hookimpl
    def load_adapter(self, run: Run, model: Prefix, adapter: Adapter) -> frozenset[str]:
        """The model holds the keys and values of `adapter`, without the MLP that made them."""
        fitting = narrowed(adapter) if run.head == "seq2seq-lm" else adapter
        return VirtualTokenMethod.load_adapter(self, run, model, fitting)


def widened(adapter: Adapter) -> Adapter:
    """The adapter of an encoder-decoder as PEFT reads it: it takes every second layer, the others it throws away."""
    import torch

    layers = adapter.config["num_layers"]
    prompts = adapter.tensors["prompt_embeddings"].unflatten(1, (layers, -1))
    tensor = torch.stack([prompts, torch.zeros_like(prompts)], 2).flatten(1)
    config = {**adapter.config, "num_layers": 2 * layers, "num_transformer_submodules": 2}
    return replace(adapter, config=config, tensors={**adapter.tensors, "prompt_embeddings": tensor})


def narrowed(adapter: Adapter) -> Adapter:
    """The adapter that was widened."""
    prompts = adapter.tensors.get("prompt_embeddings")
    layers = adapter.config["num_layers"]
    if prompts is None or prompts.ndim != 2 or prompts.shape[1] % layers:
        return adapter
    tensor = prompts.unflatten(1, (layers, -1))[:, ::2].flatten(1)
    return replace(adapter, tensors={**adapter.tensors, "prompt_embeddings": tensor})


def begin_as(model: Any, token_ids: Sequence[int]) -> None:
    """The prompts of `model` are the embeddings of the tokens."""
    import torch

    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        rows = embeddings(torch.tensor(token_ids, device=embeddings.weight.device))
        model.prompt_encoder["default"].embedding.weight.copy_(rows)


def new_heads(base: Any) -> list[str]:
    """The modules that stand on the backbone and have weights: a task's own head, which trains along."""
    apart = [(name, module) for name, module in base.named_children() if module is not base.base_model]
    return [name for name, module in apart if sum(1 for _ in module.parameters())]


def refuse_crowded(max_positions: int, count: int) -> None:
    """Refused when virtual tokens leave no room for a row."""
    if max_positions - count < ROOM:
        raise Refused(
            f"num_virtual_tokens is {count}, which leaves {max(0, max_positions - count)} of the model's "
            f"{max_positions} positions; lower it to {max(1, max_positions - ROOM)} or less"
        )


def refuse_misshapen(adapter: Adapter, wanted: tuple[int, ...]) -> None:
    """Refused when the saved virtual tokens are of another number or width."""
    saved = adapter.tensors.get("prompt_embeddings")
    if saved is not None and tuple(saved.shape) != wanted:
        raise Refused(
            f"the saved prompt_embeddings have shape {tuple(saved.shape)}, and the model wants {wanted}; "
            "they were made with other options or for another model"
        )
