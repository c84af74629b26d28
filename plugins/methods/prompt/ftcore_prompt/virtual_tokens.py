"""Virtual tokens in a running model: prompts before the embeddings of every row, or keys and values before its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from ftcore import FtcoreError, Refused
from peft import PeftConfig, PeftModel, PrefixEncoder
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

Given = dict[str, Any]


class VirtualTokens(PeftModel):  # type: ignore[misc]
    """PEFT's model with its virtual tokens put in where the base reads rows, so that every head and `generate` work."""

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        with _without_checkpointing(model), weightless(model):
            super().__init__(model, config)

    @property
    def count(self) -> int:
        """Virtual tokens before each row."""
        return int(self.peft_config["default"].num_virtual_tokens)

    def learned(self) -> Tensor:
        """What the virtual tokens are now, a row for each."""
        encoder = self.prompt_encoder["default"]
        if self.peft_config["default"].inference_mode:
            return encoder.embedding.weight  # type: ignore[no-any-return]
        numbers = torch.arange(self.count, device=encoder.embedding.weight.device)
        return encoder(numbers[None])[0]  # type: ignore[no-any-return]

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """What PEFT saves: the virtual tokens without what made them, as they are in evaluation."""
        encoder = self.prompt_encoder[adapter_name]
        training = encoder.training
        with torch.no_grad():
            encoder.eval()
            prompts = self.learned().detach().cpu()
        encoder.train(training)
        return prompts

    def forget_encoder(self) -> None:
        """The virtual tokens are held as such, and no longer made by an encoder: so PEFT loads them."""
        config, width = self.peft_config["default"], self.learned().shape[1]
        config.inference_mode = True
        device = self.prompt_encoder["default"].embedding.weight.device
        self.prompt_encoder["default"] = _Held(self.count, width, device)


class _Held(nn.Module):
    """Virtual tokens as PEFT keeps them for inference; they are loaded before they are used."""

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width, _weight=torch.zeros(count, width, device=device))

    def _load_adapter_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        self.embedding.load_state_dict({"weight": state_dict["prompt_embeddings"]})


class Prompts(VirtualTokens):
    """Virtual tokens before the embeddings of every row; nothing of them is left in what the model answers."""

    def __init__(self, model: nn.Module, config: PeftConfig, *, pooled_first: bool) -> None:
        super().__init__(model, config)
        base, reader = transformers_model(model), reader_of(model)
        if base.config.is_encoder_decoder:
            base.register_forward_pre_hook(self._before_both, with_kwargs=True)
            reader.register_forward_pre_hook(self._before_encoder, with_kwargs=True)
            return
        reader.register_forward_pre_hook(self._before, with_kwargs=True)
        if not pooled_first:
            reader.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[()], Given]:
        given = named(module, args, kwargs)
        lengthen_mask(given, self.count)
        if not begun(given.get("past_key_values")):
            return (), self._inserted(module, given)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.count
        return (), given

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Given, output: Any) -> Any:
        rows, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if rows is not None and (cache is None or cache.get_seq_length() in (0, rows.shape[1])):
            output.last_hidden_state = output.last_hidden_state[:, self.count :]
        return output

    def _before_both(self, module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[()], Given]:
        """The decoder looks at the prompts too; the encoder may have been called on its own before."""
        return (), lengthen_mask(named(module, args, kwargs), self.count)

    def _before_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[()], Given]:
        given = named(module, args, kwargs)
        mask = given.get("attention_mask")
        if mask is not None and mask.shape[1] == rows_of(given).shape[1]:
            lengthen_mask(given, self.count)
        return (), self._inserted(module, given)

    def _inserted(self, module: nn.Module, given: Given) -> Given:
        rows = given.get("inputs_embeds")
        if rows is None:
            rows = module.get_input_embeddings()(given["input_ids"])  # type: ignore[operator]
        prompts = self.learned().to(rows.device, rows.dtype)
        given["inputs_embeds"] = torch.cat([prompts.expand(len(rows), -1, -1), rows], 1)
        given["input_ids"] = None
        if given.get("token_type_ids") is not None:
            kinds = given["token_type_ids"]
            given["token_type_ids"] = torch.cat([kinds.new_zeros(len(rows), self.count), kinds], 1)
        if given.get("position_ids") is not None:
            places = given["position_ids"]
            first = torch.arange(self.count, device=places.device).expand(*places.shape[:-1], -1)
            given["position_ids"] = torch.cat([first, places + self.count], -1)
        return given


class Prefix(VirtualTokens):
    """Keys and values before those of every row, in each layer of the decoder or of the only stack."""

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        width, heads = config.token_dim, config.num_attention_heads
        super().__init__(model, config)
        self.misjudged = (config.token_dim, config.num_attention_heads) != (width, heads)
        if self.misjudged:
            config.token_dim, config.num_attention_heads = width, heads
            with weightless(model):
                self.prompt_encoder["default"] = PrefixEncoder(config)
        stack_of(model).register_forward_pre_hook(self._before, with_kwargs=True)

    def layers(self) -> Tensor:
        """The prefix by layer, key or value, head and virtual token."""
        config = self.peft_config["default"]
        parts = self.learned().view(self.count, config.num_layers, 2, config.num_attention_heads, -1)
        return parts.permute(1, 2, 3, 0, 4)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[()], Given]:
        given = lengthen_mask(named(module, args, kwargs), self.count)
        if not begun(given.get("past_key_values")):
            given["past_key_values"] = self._filled(module, given)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.count
        return (), given

    def _filled(self, module: nn.Module, given: Given) -> Any:
        """The cache that begins with the prefix: one that grows, or where nothing is kept one that is only read."""
        crossing = given.get("encoder_hidden_states") is not None
        rows = rows_of(given)
        layers = self.layers().to(rows.device, self.base_model.dtype).unsqueeze(2)
        layers = layers.expand(-1, -1, len(rows), -1, -1, -1)
        cache = given.get("past_key_values")
        if cache is None and (module.training or given.get("use_cache") is False):
            fixed = FixedCache([(key, value) for key, value in layers])
            return FixedPair(fixed, FixedCache()) if crossing else fixed
        if cache is None:
            cache = DynamicCache(config=module.config)
            cache = EncoderDecoderCache(cache, DynamicCache(config=module.config)) if crossing else cache
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        for index, (key, value) in enumerate(layers):
            own.update(key, value, index)
        return cache


class FixedCache(DynamicCache):  # type: ignore[misc]
    """Keys and values that stand before what comes and keep nothing of it, so that a layer may run twice."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What a layer looks at."""
        if layer_idx >= len(self.layers):
            return key_states, value_states
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], -2), torch.cat([layer.values, value_states], -2)


class FixedPair(EncoderDecoderCache):  # type: ignore[misc]
    """The same of a decoder that looks at an encoder: what it sees there is computed anew each time."""

    @property
    def is_updated(self) -> dict[int, bool]:
        """Nothing is kept of the encoder."""
        return {}

    @is_updated.setter
    def is_updated(self, value: dict[int, bool]) -> None:
        assert not value


class _Watch(FixedCache):
    """A cache that notes what shapes each layer brings."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[torch.Size, torch.Size]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values, noted."""
        self.seen[layer_idx] = (key_states.shape, value_states.shape)
        return key_states, value_states


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model of transformers that `model` is or wraps."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise Refused(f"virtual tokens need a model of transformers, and {type(model).__name__} is none; adapt it by lora")


def reader_of(model: nn.Module) -> nn.Module:
    """The stack of layers that reads rows: the encoder where there are two."""
    base = transformers_model(model)
    if base.config.is_encoder_decoder:
        return base.get_encoder()  # type: ignore[no-any-return]
    embeddings = base.get_input_embeddings()
    holders = [part for part in base.modules() if isinstance(part, PreTrainedModel) and embeddings in part.modules()]
    return holders[-1]


def stack_of(model: nn.Module) -> nn.Module:
    """The stack of layers whose keys and values a prefix stands before: the decoder where there are two."""
    base = transformers_model(model)
    return base.get_decoder() if base.config.is_encoder_decoder else reader_of(base)  # type: ignore[no-any-return]


def refuse_readers_of_tokens(model: nn.Module, *, generates: bool) -> None:
    """Refused when the model takes no embeddings in place of tokens, or when it generates without keys and values."""
    kind, taken = type(transformers_model(model)).__name__, inspect.signature(reader_of(model).forward).parameters
    if "inputs_embeds" not in taken:
        raise Refused(f"{kind} takes no embeddings in place of tokens, which prompts are; choose lora")
    if generates and "past_key_values" not in taken:
        raise Refused(f"{kind} generates from a state, into which prompts cannot be read; choose lora")


def heads_by_layer(model: nn.Module) -> Sequence[tuple[int, int]]:
    """For each layer how many heads its keys have and how wide they are, as a pass over one token shows.

    Refused where the layers cannot all be given one prefix; afterwards they keep it under gradient checkpointing.
    """
    stack = stack_of(model)
    kind = type(transformers_model(model)).__name__
    seen = _watched(stack, kind, training=False)
    if not seen or sorted(seen) != list(range(len(seen))):
        raise Refused(f"{kind} hands not all its layers the keys and values that a prefix is; choose prompt")
    if keep_under_checkpointing(stack) and not _watched(stack, kind, training=True):
        raise Refused(f"{kind} drops a prefix under gradient checkpointing; turn that off, or choose prompt")
    shapes = [seen[index] for index in range(len(seen))]
    odd = next((pair for pair in shapes if pair[0] != pair[1] or pair != shapes[0]), None)
    if odd:
        told = f"{tuple(shapes[0][0])[1::2]} and {tuple(odd[1])[1::2]}"
        raise Refused(f"a prefix is of one shape, and {kind} has heads of {told}; choose prompt or lora")
    return [(keys[1], keys[3]) for keys, _ in shapes]


def _watched(stack: nn.Module, kind: str, *, training: bool) -> Mapping[int, tuple[torch.Size, torch.Size]]:
    """The shapes of keys and values that each layer brings to a cache."""
    device = next(stack.parameters()).device
    ids, watch = torch.zeros(1, 1, dtype=torch.long, device=device), _Watch()
    given: dict[str, Tensor] = {}
    token = stack.get_input_embeddings()(ids)  # type: ignore[operator]
    if stack.config.is_encoder_decoder:
        given["encoder_hidden_states"] = token
        given["attention_mask"] = token.new_zeros(1, 1, 1, 1)  # one that is made without weights cannot be looked into
    cache = FixedPair(watch, FixedCache()) if given else watch
    before = stack.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            stack.train(training)
            stack(inputs_embeds=token, past_key_values=cache, use_cache=False, **given)
    except TypeError as unfit:
        raise Refused(f"{kind} takes no keys and values from before ({unfit}); choose prompt or lora") from None
    finally:
        stack.train(before)
    return watch.seen


def keep_under_checkpointing(stack: nn.Module) -> bool:
    """Layers keep the cache that they are given when they are computed twice; whether any is."""
    layers = [module for module in stack.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer._can_checkpoint_with_cache = True  # transformers' own word for layers whose cache is only read
    return any(layer.gradient_checkpointing for layer in layers)


def weightless(model: nn.Module) -> AbstractContextManager[Any]:
    """Inside, what is made for a model without weights has none either."""
    device = next(model.parameters()).device
    return device if device.type == "meta" else nullcontext()


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside, no activations are computed twice: PEFT refuses prefixes then, which here are kept all the same."""
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
    """What a forward pass is given, by name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def rows_of(given: Given) -> Tensor:
    """What tells how many rows there are and how long they are."""
    rows: Tensor = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    return rows


def begun(cache: Any) -> bool:
    """Whether the cache holds tokens already, so that the virtual ones are in it."""
    return cache is not None and cache.get_seq_length() > 0


def lengthen_mask(given: Given, count: int) -> Given:
    """`given` with virtual tokens in its attention mask, if it has one."""
    mask = given.get("attention_mask")
    if mask is None:
        return given
    if mask.ndim != 2:
        raise FtcoreError(f"virtual tokens need a mask of 2 dimensions, and this one has {mask.ndim}; pad the rows")
    given["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], 1)
    return given
