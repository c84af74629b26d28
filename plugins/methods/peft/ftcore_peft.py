"""Methods that the PEFT library implements: what its wrappers share, and any tuner of it by its type."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Adapter, Data, FtcoreError, Loaded, OnModules, Refused, Run, hookimpl, options
from ftcore.adapters import endings
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

PROMPT = "adapts no modules but goes before the input"
ELSEWHERE: Mapping[str, str] = {
    "ADALORA": "allocates ranks after every step; use --method adalora",
    "ADAPTION_PROMPT": "knows one family and no modules; use --method prefix",
    "BOFT": "compiles a kernel for every layer; use --method boft",
    "CARTRIDGE": f"{PROMPT}; use --method prefix",
    "CPT": f"{PROMPT}; use --method prompt",
    "MULTITASK_PROMPT_TUNING": f"{PROMPT}; use --method prompt",
    "POLY": "wants the number of a task beside every row; use --method lora for each task",
    "PREFIX_TUNING": f"{PROMPT}; use --method prefix",
    "PROMPT_TUNING": f"{PROMPT}; use --method prompt",
    "P_TUNING": f"{PROMPT}; use --method ptuning",
    "SHADOW": "sends other values between blocks than models with a cache or a mask take; use --method lora",
    "TRAINABLE_TOKENS": "trains rows of the embedding; use --method lora with --lora.trainable_token_indices",
    "XLORA": "mixes adapters that were trained before; use --method lora",
}
TASK_TYPES: Mapping[str, str] = {"causal-lm": "CAUSAL_LM"}


@options
class PeftMethod:
    """A method whose `peft_config` answers with a PeftConfig; PEFT injects it, names its tensors and reads them."""

    one_of: ClassVar[str] = "PEFT"

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """The PEFT configuration of this method for `model`."""
        raise FtcoreError(f"{type(self).__name__} answers no PEFT configuration; define its method 'peft_config'")

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with exactly the modules that the options chose."""
        config = self.peft_config(run, model, loaded, data, steps)
        config.task_type = TASK_TYPES.get(run.head)
        return wrapped(model, config)

    @hookimpl
    def save_adapter(self, run: Run, model: PeftModel) -> Adapter:
        """What `PeftModel.from_pretrained` reads; what trains beside the adapter is among its `modules_to_save`."""
        published = self.published(model)
        config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
        if whole := trained_beside(model, published.keys()):
            config["modules_to_save"] = sorted({*(config.get("modules_to_save") or ()), *whole})
        return Adapter(config, published, "peft")

    def published(self, model: PeftModel) -> dict[str, Tensor]:
        """The adapter's tensors under the names by which PEFT publishes them."""
        from peft import get_peft_model_state_dict

        found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
        return found

    @hookimpl
    def load_adapter(self, run: Run, model: PeftModel, adapter: Adapter) -> frozenset[str]:
        """The model holds the tensors of `adapter`; one that it wants and does not get is refused by name."""
        from peft import set_peft_model_state_dict

        wanted = self.published(model).keys()
        missing = sorted(wanted - adapter.tensors.keys())
        if missing:
            raise Refused(f"the saved adapter lacks tensor '{missing[0]}'; it was made with other options")
        set_peft_model_state_dict(model, dict(adapter.tensors))
        return frozenset(wanted)


@options
class MergeablePeftMethod(OnModules, PeftMethod):
    """A PEFT method whose change is a change of weights, on modules chosen by part or by name."""

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with exactly the chosen modules adapted."""
        config = self.peft_config(run, model, loaded, data, steps)
        chosen = self.targets(run, model, loaded)
        refuse_tied(model, chosen)
        refuse_parametrized(model, chosen)
        config.task_type = TASK_TYPES.get(run.head)
        if "fan_in_fan_out" in config.to_dict():
            config.fan_in_fan_out = all(transposed(model.get_submodule(name)) for name in chosen)
        own = config.target_modules or ()  # names that the configuration repeats elsewhere
        config.target_modules = sorted({*own, *endings(chosen, [name for name, _ in model.named_modules()])})
        adapted = wrapped(model, config)
        found = set(adapted.base_model.targeted_module_names)
        if found != set(chosen):
            odd = sorted(found ^ set(chosen))[0]
            raise FtcoreError(f"PEFT adapts other modules than were chosen, for one '{odd}'; name them in full")
        return adapted

    @hookimpl
    def merge(self, run: Run, model: PeftModel) -> nn.Module:
        """The base model with the change added to its weights."""
        kind = model.peft_config["default"].peft_type.value
        try:
            merged: nn.Module = model.merge_and_unload(safe_merge=True)
        except (NotImplementedError, ValueError) as unfit:
            raise Refused(f"PEFT cannot merge {kind} here: {reason_of(unfit)}; use 'ftcore chat'") from None
        return merged


@options
class LycorisMethod(MergeablePeftMethod):
    """A method that PEFT has from LyCORIS: products of rank r make its update, which can be left out by chance."""

    r: Annotated[int, Field(ge=1, description="Rank of the products that make the update.")] = 8
    alpha: Annotated[int, Field(ge=1, description="The update is scaled by alpha / r.")] = 8
    rank_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the update's rows that a training step leaves out.")
    ] = 0.0
    module_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Chance that a training step leaves out a layer's update.")
    ] = 0.0


def wrapped(model: nn.Module, config: PeftConfig) -> PeftModel:
    """The model with PEFT's adapter; what PEFT cannot adapt is refused in its own words."""
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise Refused("PEFT adapts no model that has virtual tokens already; name the method that brings them last")
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, ImportError) as unfit:
        said = f"PEFT's {config.peft_type.value} does not fit this model: {reason_of(unfit)}"
        raise Refused(f"{said}; choose other modules or methods") from None


def trained_beside(model: PeftModel, published: Set[str]) -> set[str]:
    """The modules of the base in which something trains that is not the adapter's own, as a task's head does."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    others = [name for name in names if name not in published and "default" not in name.split(".")]
    return {name.removeprefix("base_model.").removeprefix("model.").rpartition(".")[0] for name in others}


def reason_of(unfit: Exception) -> str:
    """The first sentence of what PEFT says."""
    return str(unfit).strip().split(". ")[0].rstrip(".")


def matched_patterns(run: Run, option: str, patterns: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """The patterns that mean a chosen module as PEFT reads them; one that means none is refused by name."""
    matched = {
        pattern: value
        for pattern, value in patterns.items()
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in chosen)
    }
    stray = next((pattern for pattern in patterns if pattern not in matched), None)
    if stray is not None and run.intent != "merge":
        raise Refused(f"{option} '{stray}' means none of the adapted modules; 'ftcore plan' lists them")
    return matched


def between_precisions(layer: nn.Module, trained: str, base: str) -> None:
    """A layer whose copy `trained` is in float32 takes and gives what the layers around it expect, as `base` does."""
    layer.register_forward_pre_hook(partial(widened, trained))
    layer.register_forward_hook(partial(narrowed, base))


def widened(trained: str, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the layer is given, in the precision in which it trains; token numbers stay what they are."""
    x, *others = given
    kind = next(layer.get_submodule(trained).parameters()).dtype
    return (x.to(kind) if x.is_floating_point() else x, *others)


def narrowed(base: str, layer: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    """What the layer answers, in the precision of the base."""
    return answer.to(next(layer.get_submodule(base).parameters()).dtype)


def transposed(module: nn.Module) -> bool:
    """Whether a module keeps its weight as (in, out), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def refuse_tied(model: nn.Module, chosen: Sequence[str]) -> None:
    """Refused when a chosen module shares its weight with another: its change could not be merged."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        tied = next((name for name in names if name in chosen), None)
        if tied and len(names) > 1:
            other = next(name for name in names if name != tied)
            raise Refused(f"module '{tied}' shares its weight with '{other}', so it cannot be adapted; leave it out")


def refuse_parametrized(model: nn.Module, chosen: Sequence[str]) -> None:
    """Refused when a chosen module's weight is computed anew each time it is used: PEFT could not merge into it."""
    from torch.nn.utils.parametrize import is_parametrized

    made = next((name for name in chosen if is_parametrized(model.get_submodule(name))), None)
    if made:
        raise Refused(f"the weight of '{made}' is made by the method named before; name that method last")


def divides(width: int, size: int) -> bool:
    """Whether a width can be cut into blocks of `size`, or into that many."""
    return width % size == 0


def refuse_unfit(
    model: nn.Module, chosen: Sequence[str], option: str, size: int, fits: Callable[[int, int], bool] = divides
) -> None:
    """Refused when `size` does not fit the input of a chosen module, with the nearest number that would."""
    for name in chosen:
        width = input_width(model.get_submodule(name))
        if not fits(width, size):
            fitting = [number for number in range(1, width + 1) if fits(width, number)]
            near = min(fitting, key=lambda number: abs(number - size), default=None)
            hint = f"{near} would" if near else "no number would, so leave it out"
            raise Refused(f"{option} {size} does not fit '{name}', which is given {width} numbers; {hint}")


def input_width(module: nn.Module) -> int:
    """Numbers that a module is given for each token; 0 when it has no weight."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}
    shape = shapes.get("weight", (0,))
    return shape[0] if transposed(module) else shape[-1]


@options
class Peft(MergeablePeftMethod):
    """Any tuner of the installed PEFT that adapts modules: `--peft.type HRA --peft.config '{"r": 8}'`."""

    tried_with: ClassVar[Mapping[str, object]] = {"type": "HRA"}

    type: Annotated[str, Field(description="PEFT's name of the tuner, such as HRA, MISS or FOURIERFT.")]
    config: Annotated[
        dict[str, Any], Field(description="Fields of the tuner's PEFT configuration, as a JSON object.")
    ] = Field(default_factory=dict)

    def peft_config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """The tuner's own configuration class with the given fields."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        kinds = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if self.type.upper() not in kinds:
            raise Refused(f"the installed PEFT has no tuner '{self.type}'; it has {', '.join(sorted(kinds))}")
        if self.type.upper() in ELSEWHERE:
            raise Refused(f"PEFT's {self.type.upper()} {ELSEWHERE[self.type.upper()]}")
        if "target_modules" in self.config:
            raise Refused("peft.config names target_modules; give them as --peft.target_modules")
        try:
            config = kinds[self.type.upper()](**self.config)
        except (TypeError, ValueError, ImportError) as unfit:
            raise Refused(f"peft.config does not fit {self.type}: {unfit}") from None
        if not hasattr(config, "target_modules"):
            raise Refused(f"PEFT's {self.type} adapts no modules, which this method needs; name another peft.type")
        return config
