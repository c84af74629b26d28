"""The core's own options: what every run has, whichever plugins it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ftcore.declaring import options
from ftcore.records import Layout

if TYPE_CHECKING:
    from ftcore.shapes import Form


def _field(section: str, description: str, *, harmless: bool = False, **limits: Any) -> Any:
    return Field(description=description, json_schema_extra={"section": section, "harmless": harmless}, **limits)


@options
class Settings:
    """Everything about a run that is not an option of a plugin."""

    checkpoint: Annotated[
        str | None, _field("Model", "Directory or hub id of the base weights; without it the family's starter.")
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        _field("Model", "Number format of the forward pass; auto is bf16 on an accelerator that has it, else fp32."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, _field("Model", "Recompute activations in the backward pass: less memory, about a third more time.")
    ] = False

    data: Annotated[
        tuple[str, ...], _field("Data", "File, directory, pattern or hub id with training rows; may be repeated.")
    ] = ()
    eval_data: Annotated[
        tuple[str, ...], _field("Data", "File, directory, pattern or hub id with held-out rows; may be repeated.")
    ] = ()
    eval_share: Annotated[
        float, _field("Data", "Share of the training rows to hold out when there is no --eval-data.", ge=0, lt=1)
    ] = 0.0
    sheet: Annotated[str | None, _field("Data", "Sheet of a workbook to read; without it the first.")] = None
    header_row: Annotated[
        int | None,
        _field("Data", "Line of a table with the names of its columns; 0: none, and they are 1, 2, and so on.", ge=0),
    ] = None
    columns: Annotated[
        tuple[str, ...],
        _field("Data", "What columns are, as in input=Question,output=Answer; a.b reaches into an object."),
    ] = ()
    row_template: Annotated[
        str | None, _field("Data", "YAML file with a Jinja template for each key that rows are to have.")
    ] = None
    data_format: Annotated[
        str | None, _field("Data", "Dataset whose rows these are, by the name of XTuner's map, such as openorca.")
    ] = None
    max_length: Annotated[
        int, _field("Data", "Longest row in tokens; never more than the model has positions.", ge=2)
    ] = 1024
    cache: Annotated[
        str,
        _field(
            "Data", "Directory to keep tokenised rows in; auto keeps those of large files, off none.", harmless=True
        ),
    ] = "auto"
    on_bad_row: Annotated[
        Literal["error", "skip"], _field("Data", "Whether a row that cannot be used stops the run or is left out.")
    ] = "error"
    packing: Annotated[
        Literal["auto", "off"],
        _field("Data", "Lay rows end to end without padding where the family can; off pads to the longest row."),
    ] = "auto"

    steps: Annotated[int | None, _field("Training", "Optimizer steps; overrides --epochs.", harmless=True, ge=1)] = None
    epochs: Annotated[int, _field("Training", "Passes over the training rows.", harmless=True, ge=1)] = 3
    batch_size: Annotated[int, _field("Training", "Rows in one micro-batch on one device.", ge=1)] = 8
    batch_tokens: Annotated[
        int | None, _field("Training", "Tokens in one micro-batch on one device; overrides --batch-size.", ge=1)
    ] = None
    accumulate: Annotated[
        int, _field("Training", "Micro-batches in one optimizer step, weighted by supervised tokens.", ge=1)
    ] = 1
    lr: Annotated[float | None, _field("Training", "Peak learning rate; without it the method's own.", gt=0)] = None
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], _field("Training", "Course of the learning rate after the warm-up.")
    ] = "cosine"
    warmup_steps: Annotated[
        int | None, _field("Training", "Steps of linear warm-up from 0; without it 3 % of all, rounded down.", ge=0)
    ] = None
    min_lr_ratio: Annotated[
        float, _field("Training", "Share of the peak that the learning rate falls towards.", ge=0, le=1)
    ] = 0.0
    weight_decay: Annotated[
        float, _field("Training", "Decoupled weight decay of tensors with two or more dimensions.", ge=0)
    ] = 0.0
    adam_beta1: Annotated[float, _field("Training", "AdamW's decay of the first moment.", ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, _field("Training", "AdamW's decay of the second moment.", ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, _field("Training", "AdamW's epsilon.", gt=0)] = 1e-8
    max_grad_norm: Annotated[float, _field("Training", "Largest gradient norm; 0 does not clip.", ge=0)] = 1.0
    seed: Annotated[int, _field("Training", "Fixes initial values, order and dropout.", ge=0)] = 42

    output: Annotated[
        str | None, _field("Output", "Directory of the run; without it runs/METHOD-TASK-MODEL.", harmless=True)
    ] = None
    save_every: Annotated[int, _field("Output", "Steps between checkpoints.", harmless=True, ge=1)] = 100
    keep: Annotated[int, _field("Output", "Newest checkpoints to keep.", harmless=True, ge=1)] = 2
    eval_every: Annotated[
        int | None,
        _field(
            "Output",
            "Steps between evaluations; without it before the first and after the last step.",
            harmless=True,
            ge=1,
        ),
    ] = None
    score_rows: Annotated[
        int,
        _field(
            "Output",
            "Held-out rows that a model writes answers to at each evaluation of a run; 'ftcore evaluate' takes all.",
            ge=0,
        ),
    ] = 32
    log_every: Annotated[int, _field("Output", "Steps between logged lines.", harmless=True, ge=1)] = 10
    allow_drift: Annotated[
        bool, _field("Output", "Resume although data, base weights or options changed.", harmless=True)
    ] = False
    resume: Annotated[bool, _field("Output", "Refuse to start when there is nothing to resume.", harmless=True)] = False

    @model_validator(mode="after")
    def _held_out_once(self) -> Settings:
        if self.eval_data and self.eval_share:
            raise ValueError("--eval-data and --eval-share both name held-out rows; give one of them")
        return self

    @model_validator(mode="after")
    def _reshaped_once(self) -> Settings:
        given = {"--columns": self.columns, "--row-template": self.row_template, "--data-format": self.data_format}
        named = [flag for flag, value in given.items() if value]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each say what the rows are; give one of them")
        return self


def form_of(settings: Settings) -> Form:
    """What is done to each row before its shape is recognised."""
    from ftcore.shapes import form_from

    return form_from(settings.columns, settings.row_template, settings.data_format)


def layout_of(settings: Settings) -> Layout:
    """How tables among the data are laid out."""
    return Layout(settings.sheet, settings.header_row)


def dtype_of(settings: Settings) -> Any:
    """The torch dtype of the base weights and of the forward pass."""
    import torch

    if settings.precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.precision]
