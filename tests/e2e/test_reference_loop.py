"""ftcore's loop learns what HF Trainer with PEFT learns from the same rows in the same order, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from ftcore import adapters
from ftcore.batches import Order, TokenRow
from ftcore.discovery import bind, choose
from ftcore.hooks import Run
from ftcore.settings import Settings
from ftcore.training import Core
from ftcore_causal import Causal
from safetensors.torch import load_file

STEPS, BATCH, RANK = 50, 8, 8


class InOrder(torch.utils.data.Sampler[int]):
    """Row numbers in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        """Each number in turn."""
        return iter(self.order)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.order)


def padded(rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
    """A batch as every collator of transformers makes it: padded on the right, labels -100 where nothing is taught."""
    width = max(row.size for row in rows)
    lines = [(row.input_ids.tolist(), row.labels.tolist(), [1] * row.size) for row in rows]
    filled = {
        name: [line[column] + [filler] * (width - len(line[column])) for line in lines]
        for column, (name, filler) in enumerate([("input_ids", 0), ("labels", -100), ("attention_mask", 0)])
    }
    return {name: torch.tensor(values) for name, values in filled.items()}


def reference(
    folder: Path, rows: Sequence[TokenRow], start: Mapping[str, torch.Tensor], keys: Mapping[str, Any], output: Path
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What HF Trainer logs at each step, and the adapter it ends with."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = LoraConfig(r=RANK, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter)
    missing, unexpected = model.load_state_dict(start, strict=False)
    assert not unexpected
    assert not [name for name in missing if "lora_" in name]
    order = Order([row.size for row in rows], keys["seed"], BATCH, None, 1).after(0)
    numbers = [row for _, step in zip(range(STEPS), order, strict=False) for batch in step for row in batch]
    assert len(numbers) == STEPS * BATCH

    class Ordered(Trainer):
        """HF Trainer in ftcore's order."""

        def _get_train_sampler(self, *given: object) -> InOrder:
            return InOrder(numbers)

    arguments = TrainingArguments(
        output_dir=str(output), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=keys["lr"],
        lr_scheduler_type="cosine", warmup_steps=keys["warmup_steps"], weight_decay=keys["weight_decay"],
        max_grad_norm=1.0, adam_beta2=0.99, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Ordered(model=model, args=arguments, train_dataset=list(rows), data_collator=padded)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    return logged, get_peft_model_state_dict(model)


def beginning(folder: Path, data: Path, seed: int) -> tuple[Sequence[TokenRow], dict[str, torch.Tensor]]:
    """The rows of ftcore's run and the adapter that it starts from."""
    loaded = ftcore.load("qwen", checkpoint=folder)
    run = Run(Settings(seed=seed, data=(str(data),)), "train", "causal-lm")
    hooks = bind([choose("method", "lora", {"r": RANK})], Core())
    rows = Causal().prepare_data(run, loaded).train
    injected = adapters.inject(hooks, run, loaded, None, STEPS)
    return rows, {name: tensor.clone() for name, tensor in injected.tensors().items()}


@pytest.mark.parametrize(("kind", "warmup"), [("qwen2", 5), ("qwen2", 0), ("qwen3", 5)])
def test_fifty_steps_follow_hf_trainer_with_peft(
    kind: str, warmup: int, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint(kind)
    keys: dict[str, Any] = {"lr": 3e-3, "warmup_steps": warmup, "weight_decay": 0.01, "seed": 11}
    taught, start = beginning(folder, rows, keys["seed"])
    wanted, adapter = reference(folder, taught, start, keys, tmp_path / "theirs")
    ftcore.run(
        method="lora", task="causal", model="qwen", checkpoint=folder, data=rows, output=tmp_path / "ours",
        steps=STEPS, batch_size=BATCH, log_every=1, adam_beta2=0.99, lora={"r": RANK}, **keys,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "loss" in line]
    assert [line["lr"] for line in found] == pytest.approx([line["learning_rate"] for line in wanted], rel=1e-9)
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-3)
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert ours.keys() == adapter.keys()
    distance = max(float((ours[name] - adapter[name]).abs().max()) for name in ours)
    assert distance < 0.01 * max(float(tensor.abs().max()) for tensor in ours.values())
