"""Methods that are broken on purpose, each in one way: subclasses of one that is not."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Adapter, Loaded, Refused, Run, hookimpl, options
from ftcore.adapters import select
from pydantic import Field

from broken_plugins import Broken

if TYPE_CHECKING:
    from torch import nn

BROKEN: list[Broken] = []


def broken(defect: str, fails: str, **given: Any) -> Any:
    """The class that it decorates is in the list, as a plugin with `defect`."""

    def listed(cls: type[Any]) -> type[Any]:
        made = options(cls)
        BROKEN.append(Broken(defect, made(**given), fails))
        return made

    return listed


@options
class Adding:
    """W + 2 B A on the linear modules of some parts; it cannot be merged."""

    suggested_lr: ClassVar[float] = 1e-3
    layer: ClassVar[str] = "Low"

    rank: Annotated[int, Field(ge=1, description="Rank of the update.")] = 4
    parts: Annotated[tuple[str, ...], Field(description="Roles to adapt.")] = ("attention", "mlp")

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        """The model with a layer of ours around each chosen one."""
        for number, name in enumerate(self.names(loaded)):
            loaded.model.set_submodule(name, self.made(run, loaded.model.get_submodule(name), name, number))
        return model

    def names(self, loaded: Loaded) -> Sequence[str]:
        """The modules to adapt."""
        return select(loaded.parts, self.parts)

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        """The layer around `base`."""
        from broken_plugins import methods_layers

        layer: nn.Module = getattr(methods_layers, self.layer)(base, self.rank)
        return layer


@options
class Sound(Adding):
    """W + 2 B A on the linear modules of some parts, as it should be."""

    @hookimpl
    def merge(self, run: Run, model: nn.Module) -> nn.Module:
        """The model with every change in its weights."""
        for name, layer in layers(model).items():
            model.set_submodule(name, self.merged(run, layer, name))
        return model

    def merged(self, run: Run, layer: Any, name: str) -> nn.Module:
        """What takes the place of a layer."""
        plain: nn.Module = layer.merged()
        return plain


def layers(model: nn.Module) -> dict[str, Any]:
    """Our layers by name, the outer of nested ones."""
    from broken_plugins.methods_layers import Low

    found = {name: module for name, module in model.named_modules() if isinstance(module, Low)}
    return {name: module for name, module in found.items() if not name.endswith(".base")}


# What trains, and where it starts


@broken("nothing trains", "check_something_trains")
class Frozen(Sound):
    """Freezes what it adds."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        return super().made(run, base, name, number).requires_grad_(False)


@broken("inject_adapter returns nothing", "check_something_trains")
class Silent(Sound):
    """Forgets to return the model."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> None:  # type: ignore[override]
        super().inject_adapter(run, model, loaded)


@broken("everything trains", "check_not_everything_trains")
class Everything(Sound):
    """Lets the base train too."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        return super().inject_adapter(run, model, loaded).requires_grad_(True)


@broken("an unknown part is ignored beside a known one", "check_unknown_parts_are_refused")
class Lenient(Sound):
    """Takes the parts that are there."""

    def names(self, loaded: Loaded) -> Sequence[str]:
        known = [r for r in self.parts if any(role == r or role.startswith(f"{r}.") for role in loaded.parts)]
        return select(loaded.parts, known or self.parts)


@broken("half of the modules that its parts name stay as they are", "check_adapts_what_it_is_told")
class Half(Sound):
    """Adapts the first block only."""

    def names(self, loaded: Loaded) -> Sequence[str]:
        return [name for name in super().names(loaded) if ".1." not in name]


@broken("the training rows are reversed in place", "check_leaves_the_rows_alone")
class Reversing(Sound):
    """Puts the rows into an order that it likes better."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Any) -> nn.Module:  # type: ignore[override]
        if data is not None:
            data.train.reverse()
        return super().inject_adapter(run, model, loaded)


@broken("a plan looks at weights that are not there", "check_a_plan_tells_what_trains")
class Looking(Sound):
    """Scales its start by the largest weight."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        layer.a.data *= 1 + float(base.get_parameter("weight").abs().max())
        return layer  # type: ignore[no-any-return]


@broken("a plan counts another rank", "check_a_plan_tells_what_trains")
class OtherInPlans(Sound):
    """Has rank 1 in a plan."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        from broken_plugins.methods_layers import Low

        return Low(base, 1 if run.intent == "plan" else self.rank)


@broken("the wrapper has no config and cannot generate", "check_the_model_is_used_as_before")
class Bare(Adding):
    """Wraps the model in a module that knows only forward."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        from torch import nn

        class Wrapper(nn.Module):
            def __init__(self, inside: nn.Module) -> None:
                super().__init__()
                self.inside = inside

            def forward(self, *given: Any, **named: Any) -> Any:
                return self.inside(*given, **named)

        return Wrapper(super().inject_adapter(run, model, loaded))


@broken("the forward pass loses its keywords", "check_the_model_is_used_as_before")
class Narrow(Adding):
    """Takes input_ids and the mask only."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        adapted: Any = super().inject_adapter(run, model, loaded)
        forward = adapted.forward
        adapted.forward = lambda input_ids=None, attention_mask=None, decoder_input_ids=None, **rest: forward(
            input_ids=input_ids, attention_mask=attention_mask,
            **({} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}),
        )  # fmt: skip
        return adapted  # type: ignore[no-any-return]


@broken("the start differs by a thousandth", "check_start_is_the_base")
class OffAtStart(Sound):
    """Starts B at small numbers."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        layer.b.data += 1e-4
        return layer  # type: ignore[no-any-return]


@broken("it claims a head that there is not", "check_something_trains")
class Elsewhere(Sound):
    """Spells its head wrongly."""

    only_heads: ClassVar[tuple[str, ...]] = ("causal",)


# Training


@broken("one tensor gets no gradient", "check_every_tensor_learns")
class Cut(Sound):
    """Detaches the change of one module of the second block."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        from broken_plugins.methods_layers import Detached

        is_cut = name.endswith(("1.mlp.down_proj", "1.output.dense"))
        return Detached(base, self.rank) if is_cut else super().made(run, base, name, number)


@broken("the gradient of one tensor is always zero", "check_every_tensor_learns")
class Zeroed(Sound):
    """Multiplies a gradient by zero."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        if number == 3:
            layer.a.register_hook(lambda gradient: gradient * 0)
        return layer  # type: ignore[no-any-return]


@broken("one tensor is put back after every step", "check_every_tensor_learns")
class PutBack(Sound):
    """Keeps A where it began."""

    @hookimpl(wrapper=True)
    def train_step(self, model: nn.Module) -> Generator[None, float, float]:
        first = next(p for name, p in model.named_parameters() if name.endswith(".a"))
        before = first.detach().clone()
        loss = yield
        first.data.copy_(before)
        return loss


@broken("a base weight drifts", "check_base_is_unchanged")
class Drifting(Sound):
    """Nudges one frozen weight after each step."""

    @hookimpl(wrapper=True)
    def train_step(self, model: nn.Module) -> Generator[None, float, float]:
        loss = yield
        weight = next(p for name, p in model.named_parameters() if name.endswith(".base.weight"))
        weight.data.view(-1)[0] += 1e-6
        return loss


@broken("a buffer of the base changes from the second step on", "check_base_is_unchanged")
class DriftingLater(Sound):
    """Touches a buffer late."""

    @hookimpl(wrapper=True)
    def train_step(self, step: int, model: nn.Module) -> Generator[None, float, float]:
        loss = yield
        for buffer in model.buffers():
            if step > 1 and buffer.is_floating_point():
                buffer.mul_(1 + 1e-6)
        return loss


@broken("dropout in evaluation", "check_evaluation_is_deterministic")
class Dropping(Adding):
    """Drops inputs whatever the mode."""

    layer: ClassVar[str] = "Dropping"


@broken("a question changes the answer to the next", "check_evaluation_is_deterministic")
class Remembering(Adding):
    """Carries something from one forward pass to the next."""

    layer: ClassVar[str] = "Remembering"


@broken("the adapter acts in training only", "check_training_changes_the_answers")
class TrainingOnly(Sound):
    """Switches itself off in evaluation."""

    layer: ClassVar[str] = "TrainingOnly"


@broken("the gradients point uphill", "check_training_lowers_the_loss")
class Uphill(Sound):
    """Turns its gradients round."""

    layer: ClassVar[str] = "Uphill"


@broken("the suggested learning rate is far too high", "check_training_lowers_the_loss")
class Reckless(Sound):
    """Suggests what no step survives."""

    suggested_lr: ClassVar[float] = 0.9


@broken("each train_step makes two steps of the optimizer", "check_makes_one_step")
class Hasty(Sound):
    """Steps twice."""

    @hookimpl(wrapper=True)
    def train_step(self, optimizer: Any) -> Generator[None, float, float]:
        loss = yield
        optimizer.step()
        return loss


@broken("train_step reports half the loss", "check_reports_its_loss")
class Flattering(Sound):
    """Says that all is well."""

    @hookimpl(wrapper=True)
    def train_step(self) -> Generator[None, float, float]:
        loss = yield
        return loss / 2


# In batches


@broken("rows meet in the batch", "check_rows_in_a_batch_do_not_meet")
class Mixing(Adding):
    """Looks at the mean of the batch."""

    layer: ClassVar[str] = "Mixing"


@broken("rows meet in training", "check_rows_in_a_batch_do_not_meet")
class MixingInTraining(Sound):
    """Looks at the mean of the batch while it trains."""

    layer: ClassVar[str] = "MixingInTraining"


@broken("a token alone is not adapted, so the cache changes answers", "check_the_cache_changes_nothing")
class LongOnly(Sound):
    """Skips sequences of one token."""

    layer: ClassVar[str] = "LongOnly"


@broken("it asks for an attention that cannot keep packed rows apart", "check_the_model_is_used_as_before")
class Eager(Sound):
    """Wants the attention that shows its weights."""

    @hookimpl
    def load_kwargs(self, run: Run) -> Mapping[str, Any]:
        return {"attn_implementation": "eager"}


@broken("rows laid end to end are adapted less", "check_padding_and_packing_are_the_same")
class Uneven(Adding):
    """Knows how rows came into the batch."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        adapted = super().inject_adapter(run, model, loaded)

        def scaled(module: nn.Module, given: Any, named: Mapping[str, Any]) -> None:
            for layer in layers(module).values():
                layer.scale = 1.9 if "cu_seq_lens_q" in named else 2.0

        adapted.register_forward_pre_hook(scaled, with_kwargs=True)
        return adapted


@broken("what it learns acts half as much in evaluation", "check_training_and_evaluation_agree")
class Halved(Sound):
    """Is scaled as dropout was once."""

    layer: ClassVar[str] = "HalvedInEvaluation"


@broken("generating goes round the adapter", "check_it_generates_what_it_answers")
class Bypassed(Sound):
    """Switches the adapter off to generate."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        adapted: Any = super().inject_adapter(run, model, loaded)
        generate = adapted.generate if hasattr(adapted, "generate") else None

        def generated(*given: Any, **named: Any) -> Any:
            mine = layers(adapted).values()
            for layer in mine:
                layer.scale = 0.0
            try:
                return generate(*given, **named)  # type: ignore[misc]
            finally:
                for layer in mine:
                    layer.scale = 2.0

        if generate:
            adapted.generate = generated
        return adapted  # type: ignore[no-any-return]


@broken("a step learns from its last micro-batch only", "check_micro_batches_change_nothing")
class LastOnly(Sound):
    """Makes its own step and accumulates wrongly."""

    @hookimpl
    def train_step(self, model: nn.Module, batches: Any, loss: Any, optimizer: Any, accelerator: Any) -> float:
        total = 0.0
        weight = sum(batch.weight for batch in batches)
        for batch in batches:
            optimizer.zero_grad()
            part = loss(model, batch) / weight
            accelerator.backward(part)
            total += float(part.detach())
        optimizer.step()
        return total


@broken("the gradient is lost under checkpointing", "check_checkpointing_changes_nothing")
class LostWhenRecomputed(Sound):
    """Forgets one module when activations are computed twice."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        if run.settings.gradient_checkpointing and number == 5:
            layer.b.register_hook(lambda gradient: gradient * 0)
        return layer  # type: ignore[no-any-return]


@broken("it breaks when processes train together", "check_two_processes_train_as_one")
class Solitary(Sound):
    """Takes the model that it is given for the one that it injected."""

    @hookimpl(wrapper=True)
    def train_step(self, model: Any) -> Generator[None, float, float]:
        assert model.config is not None
        return (yield)


# Doing it again

CALLS: list[int] = []


@broken("the start is drawn from the operating system", "check_the_same_seed_gives_the_same")
class Unseeded(Sound):
    """Draws A from os.urandom."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        import torch

        layer: Any = super().made(run, base, name, number)
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
        if layer.a.device.type == "cpu":
            layer.a.data.normal_(std=0.1, generator=generator)
        return layer  # type: ignore[no-any-return]


@broken("state in a module global", "check_keeps_no_state")
class Counting(Sound):
    """Starts otherwise each time it is injected in a process."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        CALLS.append(1)
        return super().inject_adapter(run, model, loaded)

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        layer.a.data *= 1 + 0.1 * (len(CALLS) % 7)
        return layer  # type: ignore[no-any-return]


@broken("state on the class: the last model injected is the one it changes", "check_keeps_no_state")
class Latest(Sound):
    """Remembers the model on the class and touches it in every step."""

    latest: ClassVar[list[Any]] = []

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        adapted = super().inject_adapter(run, model, loaded)
        if run.intent == "train":
            self.latest[:] = [adapted]
        return adapted

    @hookimpl(wrapper=True)
    def train_step(self) -> Generator[None, float, float]:
        loss = yield
        for name, parameter in self.latest[0].named_parameters():
            if name.endswith(".b"):
                parameter.data *= 0.999
        return loss


@broken("a cache of what was computed from the first model's weights", "check_keeps_no_state")
class Caching(Sound):
    """Starts from the weights of the first model that it ever saw."""

    cache: ClassVar[dict[str, Any]] = {}

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        if layer.a.device.type == "cpu":
            rows = self.cache.setdefault(f"{run.head}{name}{tuple(layer.a.shape)}", layer.weight[: self.rank].float())
            layer.a.data = rows.clone()[:, : layer.in_features]
        return layer  # type: ignore[no-any-return]


@broken("a configuration made for the first model is used for all", "check_keeps_no_state")
class Configured(Sound):
    """Looks up the names of modules once."""

    found: ClassVar[list[Sequence[str]]] = []

    def names(self, loaded: Loaded) -> Sequence[str]:
        select(loaded.parts, self.parts)
        if not self.found:
            self.found.append(sorted({name.rpartition(".")[2] for name in super().names(loaded)}))
        named = [name for name, _ in loaded.model.named_modules()]
        return [name for name in named if name.rpartition(".")[2] in self.found[0]]


MODELS: list[Any] = []


@broken("every model stays in memory", "check_keeps_no_state")
class Holding(Sound):
    """Keeps the models that it saw."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        MODELS.append(super().inject_adapter(run, model, loaded))
        return MODELS[-1]  # type: ignore[no-any-return]


@broken("a class of torch is changed for every model", "check_keeps_no_state")
class Patching(Sound):
    """Changes how every linear layer of the process computes."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        from torch import nn

        forward = nn.Linear.forward
        if forward.__module__.startswith("torch"):
            nn.Linear.forward = lambda layer, x: 1e-3 + forward(layer, x)  # type: ignore[method-assign]
        return super().inject_adapter(run, model, loaded)


@broken("the order of a set decides the start", "check_a_fresh_process_trains_the_same")
class Unordered(Sound):
    """Goes through a set of names."""

    def names(self, loaded: Loaded) -> Sequence[str]:
        return list(set(super().names(loaded)))


TRAINED: set[int] = set()


@broken("merging needs what only the process knows that trained", "check_another_process_loads_the_same")
class Forgetful(Sound):
    """Keeps in the process that a run was trained."""

    @hookimpl(wrapper=True)
    def train_step(self, run: Run) -> Generator[None, float, float]:
        TRAINED.add(run.settings.seed)
        return (yield)

    def merged(self, run: Run, layer: Any, name: str) -> nn.Module:
        if run.settings.seed not in TRAINED:
            layer.scale = 1.0
        return super().merged(run, layer, name)


@broken("a counter is lost on resume", "check_resumed_it_ends_the_same")
class Restarting(Sound):
    """Counts its own steps on the model and lets every second one fade."""

    @hookimpl(wrapper=True)
    def train_step(self, model: Any) -> Generator[None, float, float]:
        loss = yield
        model.kit_steps = getattr(model, "kit_steps", 0) + 1
        for name, parameter in model.named_parameters():
            if name.endswith(".b") and model.kit_steps % 2:
                parameter.data *= 0.99
        return loss


@broken("a running mean of its own begins anew on resume", "check_resumed_it_ends_the_same")
class Pulling(Sound):
    """Pulls what trains towards where it was, which it keeps outside of the state dict."""

    layer: ClassVar[str] = "Pulled"

    @hookimpl(wrapper=True)
    def train_step(self, model: Any) -> Generator[None, float, float]:
        loss = yield
        for layer in layers(model).values():
            layer.mean.lerp_(layer.b.data, 0.5)
            layer.b.data.lerp_(layer.mean, 0.1)
        return loss


# Saving and loading


@broken("saving rounds the model", "check_saving_changes_nothing")
class Rounding(Sound):
    """Rounds in place what it saves."""

    @hookimpl
    def save_adapter(self, run: Run, model: nn.Module) -> Adapter:
        for parameter in trainable(model).values():
            parameter.data.copy_(parameter.data.bfloat16())
        return Adapter({}, trainable(model))


def trainable(model: nn.Module) -> dict[str, Any]:
    """What we added, by name."""
    return {n: p for n, p in model.named_parameters() if n.endswith((".a", ".b"))}


@options
class Saving(Sound):
    """Saves and loads by itself, as it should."""

    @hookimpl
    def save_adapter(self, run: Run, model: nn.Module) -> Adapter:
        return Adapter({"rank": self.rank}, {n: p.detach() for n, p in trainable(model).items()})

    @hookimpl
    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        mine = trainable(model)
        for name, parameter in mine.items():
            if name not in adapter.tensors or adapter.tensors[name].shape != parameter.shape:
                raise Refused(f"the saved adapter does not fit in '{name}'; it was made with other options")
            parameter.data.copy_(adapter.tensors[name])
        return frozenset(mine)


@broken("the adapter is not restored", "check_loaded_again_it_answers_the_same")
class Lying(Saving):
    """Says that it took all and takes nothing."""

    @hookimpl
    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        return frozenset(adapter.tensors)


@broken("one tensor is not saved", "check_loaded_again_it_answers_the_same")
class LosingOne(Saving):
    """Leaves the last tensor out, and does not miss it."""

    @hookimpl
    def save_adapter(self, run: Run, model: nn.Module) -> Adapter:
        whole = super().save_adapter(run, model)
        return replace(whole, tensors=dict(list(whole.tensors.items())[:-1]))

    @hookimpl
    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        lost = {n: p.detach().clone() for n, p in trainable(model).items() if n not in adapter.tensors}
        return super().load_adapter(run, model, replace(adapter, tensors={**adapter.tensors, **lost}))


@broken("saved in half precision", "check_loaded_again_it_answers_the_same")
class Halving(Saving):
    """Saves in bf16."""

    @hookimpl
    def save_adapter(self, run: Run, model: nn.Module) -> Adapter:
        whole = super().save_adapter(run, model)
        return replace(whole, tensors={n: t.bfloat16() for n, t in whole.tensors.items()})


@broken("a buffer that training changes is not saved", "check_loaded_again_it_answers_the_same")
class Averaging(Sound):
    """Keeps a running number outside of the state dict."""

    layer: ClassVar[str] = "Averaging"


@broken("the adapter holds weights of the base", "check_the_adapter_holds_only_what_was_learnt")
class Hoarding(Saving):
    """Saves the adapted layers whole."""

    @hookimpl
    def save_adapter(self, run: Run, model: nn.Module) -> Adapter:
        whole = super().save_adapter(run, model)
        base = {n: p.detach() for n, p in model.named_parameters() if n.endswith(".base.weight")}
        return replace(whole, tensors={**whole.tensors, **base})

    @hookimpl
    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        whole = {n for n in adapter.tensors if n.endswith(".base.weight")}
        return super().load_adapter(run, model, adapter) | frozenset(whole)


@broken("any adapter is taken for its own", "check_a_foreign_adapter_is_refused")
class Credulous(Saving):
    """Takes what fits and ignores the rest."""

    @hookimpl
    def load_adapter(self, run: Run, model: nn.Module, adapter: Adapter) -> frozenset[str]:
        super().load_adapter(run, model, adapter)
        return frozenset(adapter.tensors)


# Merging


@broken("merging leaves its layers in place", "check_merged_it_is_the_base_again")
class Leaving(Sound):
    """Folds the change in and keeps the layer."""

    def merged(self, run: Run, layer: Any, name: str) -> nn.Module:
        layer.merged()
        layer.b.data.zero_()
        return layer  # type: ignore[no-any-return]


@broken("merging gives other tensor names", "check_merged_it_is_the_base_again")
class Marking(Sound):
    """Leaves a mark."""

    layer: ClassVar[str] = "Marked"


@broken("merging gives float64", "check_merged_it_is_the_base_again")
class Doubling(Sound):
    """Merges in another number format."""

    layer: ClassVar[str] = "Double"


@broken("merging leaves a hook", "check_merged_it_is_the_base_again")
class Hooking(Sound):
    """Hangs something on the module that no checkpoint holds."""

    layer: ClassVar[str] = "Hooked"


@broken("the merge scale is off by a hundredth", "check_merged_it_answers_the_same")
class OffByOnePercent(Sound):
    """Folds in a little too much."""

    layer: ClassVar[str] = "OffByOnePercent"


@broken("merging forgets the second block", "check_merged_it_answers_the_same")
class FirstBlockOnly(Sound):
    """Stops half-way."""

    def merged(self, run: Run, layer: Any, name: str) -> nn.Module:
        return layer.base if ".1." in name else super().merged(run, layer, name)  # type: ignore[no-any-return]


@broken("merging changes the config", "check_the_merged_checkpoint_is_plain")
class Configuring(Sound):
    """Leaves the cache switched off."""

    @hookimpl
    def merge(self, run: Run, model: Any) -> nn.Module:
        model.config.use_cache = False
        return super().merge(run, model)


@broken("merging changes how the model generates", "check_the_merged_checkpoint_is_plain")
class Prolix(Sound):
    """Leaves a setting of its own."""

    @hookimpl
    def merge(self, run: Run, model: Any) -> nn.Module:
        if run.head == "causal-lm":
            model.generation_config.max_new_tokens = 7
        return super().merge(run, model)


@broken("merging draws numbers", "check_keeps_no_state")
class Dithering(Sound):
    """Rounds at random."""

    def merged(self, run: Run, layer: Any, name: str) -> nn.Module:
        import torch

        plain: Any = super().merged(run, layer, name)
        plain.weight.data += 1e-7 * torch.randn_like(plain.weight)
        return plain  # type: ignore[no-any-return]


@broken("merging by blocks counts blocks anew", "check_merged_by_blocks_it_is_the_same")
class ByNumber(Sound):
    """Scales each module by its place among the others."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        layer: Any = super().made(run, base, name, number)
        layer.scale = 1.0 + 0.1 * number
        return layer  # type: ignore[no-any-return]


@broken("merging writes into the run's directory", "check_merging_can_be_repeated")
class Scribbling(Sound):
    """Notes in the run's files that it was merged."""

    @hookimpl
    def merge(self, run: Run, model: nn.Module) -> nn.Module:
        file = run.output / "adapter_config.json" if run.output else None
        if file and file.exists():
            file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        return super().merge(run, model)


@broken("merging tears tied weights apart", "check_tied_weights_stay_tied")
class Untying(Sound):
    """Gives the head a weight of its own."""

    @hookimpl
    def merge(self, run: Run, model: Any) -> nn.Module:
        from torch import nn

        merged: Any = super().merge(run, model)
        if run.head == "causal-lm" and isinstance(getattr(merged, "lm_head", None), nn.Linear):
            merged.lm_head.weight = nn.Parameter(merged.lm_head.weight.detach().clone(), requires_grad=False)
        return merged  # type: ignore[no-any-return]


# In bf16


@broken("what trains is bf16", "check_bf16_trains_in_float32")
class Coarse(Sound):
    """Gives what trains the base's number format."""

    @hookimpl(wrapper=True)
    def train_step(self, model: nn.Module) -> Generator[None, float, float]:
        import torch

        loss = yield
        coarse = any(p.dtype == torch.bfloat16 for p in model.parameters())
        for parameter in trainable(model).values() if coarse else ():
            parameter.data = parameter.data.bfloat16()
        return loss


@broken("the base is widened to float32", "check_bf16_trains_in_float32")
class Wide(Sound):
    """Keeps the adapted weights in float32."""

    def made(self, run: Run, base: nn.Module, name: str, number: int) -> nn.Module:
        return super().made(run, base.float(), name, number)


@broken("it answers in bf16 under autocast only", "check_bf16_answers_as_float32")
class Uncast(Sound):
    """Multiplies bf16 by float32."""

    layer: ClassVar[str] = "Uncast"


@broken("merged in bf16 the weights are float32", "check_bf16_merges")
class Widening(Sound):
    """Adds the change in float32 and leaves it so."""

    layer: ClassVar[str] = "Widening"


# In other places and in company


@broken("it claims every head and works on decoders only", "check_every_head_it_claims")
class Decoders(Sound):
    """Looks for a part that encoders have not."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        assert "head" in loaded.parts
        return super().inject_adapter(run, model, loaded)


@broken("a fused module is adapted three times", "check_fused_projections")
class Thrice(Sound):
    """Goes through the roles one by one."""

    def names(self, loaded: Loaded) -> Sequence[str]:
        select(loaded.parts, self.parts)
        roles = [role for role in loaded.parts if role.startswith(self.parts)]
        return [name for role in roles for name in loaded.parts[role]]


@broken("it freezes what another method trains", "check_trains_beside_another")
class Jealous(Sound):
    """Lets nothing train but its own."""

    @hookimpl(wrapper=True)
    def train_step(self, model: nn.Module) -> Generator[None, float, float]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith((".a", ".b")))
        return (yield)


@broken("merging drops what another method learnt", "check_merges_beside_another")
class Resetting(Sound):
    """Reads from the checkpoint again what it did not adapt itself."""

    @hookimpl
    def merge(self, run: Run, model: nn.Module) -> nn.Module:
        from pathlib import Path

        from safetensors.torch import load_file

        merged, mine = super().merge(run, model), set(layers(model))
        base = load_file(Path(str(run.settings.checkpoint)) / "model.safetensors")
        for name, parameter in merged.named_parameters():
            if name in base and name.rpartition(".")[0] not in mine and "norm" in name:
                parameter.data.copy_(base[name])
        return merged


@broken("it does not know its way in a wrapped model", "check_works_on_a_wrapped_model")
class Direct(Sound):
    """Wants the family's own class."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded) -> nn.Module:
        assert type(model).__module__.startswith("transformers.")
        return super().inject_adapter(run, model, loaded)


def sound() -> Iterator[object]:
    """The same without a defect."""
    yield from (Sound(), Saving(), Adding())
