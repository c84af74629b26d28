"""Methods that the PEFT library implements: what its wrappers share, and any tuner of it by its type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ftcore import Adapter, Data, FtcoreError, Loaded, Refused, Run, hookimpl, options
from pydantic import Field

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

TASK_TYPES: Mapping[str, str] = {"causal-lm": "CAUSAL_LM"}


@options
class PeftMethod:
    """A method whose `config` answers with a PeftConfig; PEFT injects it, names its tensors and reads them back."""

    one_of: ClassVar[str] = "PEFT"

    def config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """The PEFT configuration of this method for `model`."""
        raise FtcoreError(f"{type(self).__name__} answers no PEFT configuration; define its method 'config'")

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with exactly the modules that the options chose."""
        config = self.config(run, model, loaded, data, steps)
        config.task_type = TASK_TYPES.get(run.head)
        return wrapped(model, config)

    @hookimpl
    def save_adapter(self, run: Run, model: PeftModel) -> Adapter:
        """What `PeftModel.from_pretrained` reads."""
        from peft import get_peft_model_state_dict

        config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
        return Adapter(config, get_peft_model_state_dict(model, save_embedding_layers=False), "peft")

    @hookimpl
    def load_adapter(self, run: Run, model: PeftModel, adapter: Adapter) -> frozenset[str]:
        """The model holds the tensors of `adapter`; one that it wants and does not get is refused by name."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        wanted = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        missing = sorted(wanted - adapter.tensors.keys())
        if missing:
            raise Refused(f"the saved adapter lacks tensor '{missing[0]}'; it was made with other options")
        set_peft_model_state_dict(model, dict(adapter.tensors))
        return frozenset(wanted)


@options
class MergeablePeftMethod(PeftMethod):
    """A PEFT method whose change is a change of weights, on modules chosen by part or by name."""

    parts: Annotated[
        tuple[str, ...], Field(description="Roles to adapt, such as attention.q or mlp; ignored with target_modules.")
    ] = ("attention", "mlp")
    target_modules: Annotated[
        tuple[str, ...], Field(description="Modules to adapt by name or ending, instead of by role.")
    ] = ()

    @hookimpl
    def inject_adapter(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> nn.Module:
        """The model wrapped by PEFT, with exactly the chosen modules adapted."""
        config = self.config(run, model, loaded, data, steps)
        chosen = self.targets(run, model, loaded)
        refuse_tied(model, chosen)
        config.task_type = TASK_TYPES.get(run.head)
        config.target_modules = endings(chosen, [name for name, _ in model.named_modules()])
        adapted = wrapped(model, config)
        found = set(adapted.base_model.targeted_module_names)
        if found != set(chosen):
            odd = sorted(found ^ set(chosen))[0]
            raise FtcoreError(f"PEFT adapts other modules than were chosen, for one '{odd}'; name them in full")
        return adapted

    @hookimpl
    def merge(self, run: Run, model: PeftModel) -> nn.Module:
        """The base model with the change added to its weights."""
        merged: nn.Module = model.merge_and_unload(safe_merge=True)
        return merged

    def targets(self, run: Run, model: nn.Module, loaded: Loaded) -> tuple[str, ...]:
        """The full names of the modules to adapt; a role or name that matches nothing is refused."""
        from ftcore.adapters import matching, select

        if self.target_modules:
            return matching(model, self.target_modules, partial=run.intent == "merge")
        return select(loaded.parts, self.parts)


def wrapped(model: nn.Module, config: PeftConfig) -> PeftModel:
    """The model with PEFT's adapter; what PEFT cannot adapt is refused in its own words."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except ValueError as unfit:
        reason = str(unfit).strip().split(". ")[0]
        raise Refused(f"PEFT's {config.peft_type.value} does not fit this model: {reason}") from None


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


def endings(chosen: Sequence[str], every: Sequence[str]) -> list[str]:
    """The short names that mean exactly `chosen` among `every` module, or the full names when there are none."""
    short = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name in every if name.rpartition(".")[2] in short}
    return sorted(short) if meant == set(chosen) else sorted(chosen)


@options
class Peft(MergeablePeftMethod):
    """Any tuner of the installed PEFT that adapts modules: `--peft.type HRA --peft.settings '{"r": 8}'`."""

    tried_with: ClassVar[Mapping[str, object]] = {"type": "HRA"}

    type: Annotated[str, Field(description="PEFT's name of the tuner, such as HRA, MISS or FOURIERFT.")]
    settings: Annotated[
        dict[str, Any], Field(description="Fields of the tuner's PEFT configuration, as a JSON object.")
    ] = Field(default_factory=dict)

    def config(self, run: Run, model: nn.Module, loaded: Loaded, data: Data | None, steps: int) -> PeftConfig:
        """The tuner's own configuration class with the given fields."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        kinds = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if self.type.upper() not in kinds:
            raise Refused(f"the installed PEFT has no tuner '{self.type}'; it has {', '.join(sorted(kinds))}")
        try:
            config = kinds[self.type.upper()](**self.settings)
        except (TypeError, ValueError) as unfit:
            raise Refused(f"peft.settings does not fit {self.type}: {unfit}") from None
        if not hasattr(config, "target_modules"):
            raise Refused(f"PEFT's {self.type} adapts no modules, which this method needs; name another peft.type")
        return config
