"""AdaLoRA, adaptive budget allocation (Zhang et al. 2023, arXiv:2303.10512), through PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from ftcore import Adapter, Batch, Data, Loaded, Refused, Run, hookimpl, options
from ftcore_peft import MergeablePeftMethod
from pydantic import Field

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig, PeftModel
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.adalora.model import AdaLoraModel
    from torch import Tensor, nn
    from torch.optim import Optimizer

TRIPLET = ("A", "B", "E")
MEMORY = ("sensitivity", "uncertainty")


@options
class AdaLoRA(MergeablePeftMethod):
    """h = W x + (alpha / init_r) B diag(E) A x: entries of E that matter little become 0, until target_r stay."""

    suggested_lr: ClassVar[float] = 1e-3

    init_r: Annotated[int, Field(ge=2, description="Rank of every update at the start.")] = 12
    target_r: Annotated[int, Field(ge=1, description="Rank of an update at the end, on average.")] = 8
    alpha: Annotated[int, Field(ge=1, description="The update is scaled by alpha / init_r.")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the input of the update.")] = 0.0
    tinit: Annotated[
        float, Field(ge=0, description="Steps before ranks begin to fall; below 1 it is a share of all steps.")
    ] = 0.1
    tfinal: Annotated[
        float, Field(ge=0, description="Steps with the final ranks at the end; below 1 it is a share of all steps.")
    ] = 0.5
    deltaT: Annotated[int, Field(ge=1, description="Steps from one allocation of ranks to the next.")] = 1  # noqa: N815
    beta1: Annotated[float, Field(gt=0, lt=1, description="How slowly the sensitivity of a weight follows.")] = 0.85
    beta2: Annotated[float, Field(gt=0, lt=1, description="How slowly the uncertainty of it follows.")] = 0.85
    orth_reg_weight: Annotated[
        float, Field(ge=0, description="Weight in the loss of how far A and B are from orthogonal.")
    ] = 0.5

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """PEFT's AdaLoraConfig over the run's own number of steps; a schedule that does not fit in is refused."""
        from peft import AdaLoraConfig

        if self.target_r >= self.init_r:
            raise Refused(
                f"adalora.target_r is {self.target_r} and adalora.init_r {self.init_r}, so that no rank can fall; "
                "give a smaller target_r, or use lora"
            )
        tinit, tfinal = counted(self.tinit, steps), counted(self.tfinal, steps)
        if tinit + tfinal >= steps:
            raise Refused(
                f"adalora.tinit and adalora.tfinal take {tinit} + {tfinal} of {steps} steps, and ranks fall in none; "
                "lower them or train longer"
            )
        return AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.target_r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            tinit=tinit,
            tfinal=tfinal,
            deltaT=self.deltaT,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orth_reg_weight,
            total_step=steps,
        )

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with buffers for what allocating ranks must remember from step to step."""
        adapted = super().inject_adapter(run, model, loaded, data, steps)
        for layer in layers(adapted.base_model).values():
            layer.ranknum.requires_grad_(False)  # PEFT forgets that it is none to train where it moves it
            for letter in TRIPLET:
                for what in MEMORY:
                    layer.register_buffer(f"{what}_{letter}", matrix(layer, letter).detach().clone().zero_())
            layer.register_buffer("kept", matrix(layer, "E").detach() == matrix(layer, "E").detach())
        return adapted

    @hookimpl
    def train_step(
        self,
        run: Run,
        step: int,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: Optimizer,
        accelerator: Accelerator,
    ) -> float:
        """The core's step with A and B drawn towards orthogonal, then ranks are allocated by its gradients."""
        from ftcore.training import Core

        tuner = tuner_of(model)

        def regularised(model: nn.Module, batch: Batch) -> Tensor:
            penalty = self.orth_reg_weight * distance_from_orthogonal(tuner) * batch.weight
            return loss(model, batch) + (penalty - penalty.detach())  # it has a gradient, and is not reported

        mean = Core().train_step(run, step, model, batches, regularised, optimizer, accelerator)
        allocate(tuner, step)
        return mean

    @hookimpl
    def save_adapter(self, run: Run, model: PeftModel) -> Adapter:
        """What `PeftModel.from_pretrained` reads: of each layer the ranks that were kept."""
        model.peft_config["default"].rank_pattern = pattern(model.base_model, "lora_E")
        with without_warnings():
            return super().save_adapter(run, model)

    def published(self, model: PeftModel) -> dict[str, Tensor]:
        """A, B and E of every layer; what allocating ranks remembers is for checkpoints alone."""
        letters = {f"lora_{letter}" for letter in TRIPLET}
        return {name: t for name, t in super().published(model).items() if name.rpartition(".")[2] in letters}

    @hookimpl
    def load_adapter(self, run: Run, model: PeftModel, adapter: Adapter) -> frozenset[str]:
        """The model holds the tensors of `adapter`, at full rank with zeros where a rank was not kept."""
        import torch

        tensors = dict(adapter.tensors)
        for name, layer in layers(model.base_model).items():
            kept = torch.tensor(adapter.config["rank_pattern"][f"{name}.lora_E"])
            layer.kept.copy_(kept.view_as(layer.kept))
            for letter in TRIPLET:
                key = f"base_model.model.{name}.lora_{letter}"
                if key in tensors and tensors[key].shape[letter == "B"] == kept.sum():
                    tensors[key] = spread(tensors[key], kept, dim=int(letter == "B"))
        return super().load_adapter(run, model, replace(adapter, tensors=tensors))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside, a layer that has lost all of its ranks is not taken for one whose tensors are scattered."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have invalid shape")
        yield


def counted(given: float, steps: int) -> int:
    """Steps, where a number below 1 is a share of all."""
    return int(given * steps) if given < 1 else int(given)


def spread(tensor: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The tensor's slices along `dim` at the places that are kept, and zeros at the others."""
    shape = list(tensor.shape)
    shape[dim] = len(kept)
    return tensor.new_zeros(shape).index_copy(dim, kept.nonzero().flatten(), tensor)


def tuner_of(model: nn.Module) -> AdaLoraModel:
    """PEFT's AdaLoRA in a model, whatever is around it."""
    from peft.tuners.adalora.model import AdaLoraModel

    return next(module for module in model.modules() if isinstance(module, AdaLoraModel))


def layers(tuner: AdaLoraModel) -> dict[str, AdaLoraLayer]:
    """The adapted layers by their name in the base."""
    from peft.tuners.adalora.layer import AdaLoraLayer

    return {name: module for name, module in tuner.model.named_modules() if isinstance(module, AdaLoraLayer)}


def matrix(layer: AdaLoraLayer, letter: str) -> nn.Parameter:
    """A, B or E of a layer."""
    held: nn.ParameterDict = layer.get_submodule(f"lora_{letter}")
    return held["default"]


def distance_from_orthogonal(tuner: AdaLoraModel) -> Tensor:
    """The mean over all A and B of the norm of A A^T - I and of B^T B - I, in float32."""
    import torch

    rows = [matrix(layer, "A") for layer in layers(tuner).values()]
    rows += [matrix(layer, "B").T for layer in layers(tuner).values()]
    with torch.autocast(rows[0].device.type, enabled=False):
        return torch.stack([(p @ p.T - torch.eye(len(p), device=p.device)).norm() for p in rows]).mean()


def pattern(tuner: AdaLoraModel, ending: str) -> dict[str, list[bool]]:
    """Which ranks each layer keeps, under PEFT's names for them."""
    return {f"{name}.{ending}": layer.kept.view(-1).tolist() for name, layer in layers(tuner).items()}


def allocate(tuner: AdaLoraModel, step: int) -> None:
    """Ranks are allocated as PEFT does it after a step; all that it remembers is in buffers, which checkpoints hold."""
    import torch

    allocator, config = tuner.rankallocator, tuner.peft_config["default"]
    smoothed = dict(zip(MEMORY, (allocator.exp_avg_ipt, allocator.exp_avg_unc), strict=True))
    for name, layer in layers(tuner).items():
        for letter in TRIPLET:
            for what in MEMORY:
                smoothed[what][f"{name}.lora_{letter}.default"] = layer.get_buffer(f"{what}_{letter}")
            allocator.ipt[f"{name}.lora_{letter}.default"] = layer.get_buffer(f"{MEMORY[0]}_{letter}")
    config.rank_pattern = pattern(tuner, "lora_E.default")
    tuner.update_and_allocate(step)
    for name, layer in layers(tuner).items():
        for letter in TRIPLET:
            for what in MEMORY:
                layer.get_buffer(f"{what}_{letter}").copy_(smoothed[what][f"{name}.lora_{letter}.default"])
        kept = config.rank_pattern[f"{name}.lora_E.default"]
        layer.kept.copy_(torch.tensor(kept).view_as(layer.kept))
