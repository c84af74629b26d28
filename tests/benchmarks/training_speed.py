"""Tokens per CPU-second of a LoRA run, beside transformers' Trainer with PEFT on the same rows: `make bench`.

Both train the same random model on the same rows in batches of eight, in float32, for the same number of steps; only
the training steps are timed, in CPU seconds of one thread. Tokens are those of the rows, padding not counted.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import ftcore
import torch
from ftcore.progress import Silent, StepReport

STEPS, BATCH, RANK, RATE = 30, 8, 8, 1e-3
SHAPE: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


class Timed(Silent):
    """Adds up the tokens and CPU seconds of the steps after the first."""

    def __init__(self) -> None:
        self.tokens, self.loss, self.began = 0, 0.0, 0.0

    def stepped(self, report: StepReport, logged: bool) -> None:
        """One more step."""
        if report.step == 1:
            self.began = time.process_time()
        else:
            self.tokens += report.tokens
        self.seconds, self.loss = time.process_time() - self.began, report.loss


def rows(file: Path) -> None:
    """Instruction rows whose answers differ in length as real ones do: many short, a few long."""
    words = ["the", "cat", "sat", "by", "a", "door", "and", "looked", "at", "rain", "while", "dogs", "ran", "over"]
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(STEPS * BATCH):
            count = min(400, int(draw.lognormvariate(3.6, 0.9)))
            prompt, answer = (" ".join(draw.choices(words, k=k)) for k in (draw.randint(5, 40), max(3, count)))
            out.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")


def model(folder: Path) -> None:
    """A random model under the starter's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    starter = ftcore.load("qwen")
    starter.tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model("qwen2", vocab_size=starter.vocab_size, **SHAPE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def with_ftcore(base: Path, data: Path, folder: Path) -> Timed:
    """The run as a user starts it."""
    timed = Timed()
    ftcore.run(
        method="lora", task="causal", model="qwen", checkpoint=base, data=data, output=folder / "run", steps=STEPS,
        batch_size=BATCH, lr=RATE, warmup_steps=0, save_every=10_000, screen=timed, lora={"r": RANK},
    )  # fmt: skip
    return timed


def with_trainer(base: Path, data: Path, folder: Path) -> Timed:
    """Trainer with PEFT and a collator that pads to the longest row, its labels on the answers."""
    from ftcore.config import resolve
    from ftcore.pipeline import begin, load_model, prepare_data
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    recipe = resolve({"method": "lora", "task": "causal", "model": "qwen", "checkpoint": base, "data": data})
    hooks, run = begin(recipe, "train", lambda line: None)
    prepared = prepare_data(hooks, run, load_model(hooks, run))
    timed = Timed()

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chosen = [row["row"] for row in batch]
        width = max(row.size for row in chosen)
        made = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        tensors = {name: torch.full((len(chosen), width), fill) for name, fill in made.items()}
        for i, row in enumerate(chosen):
            tensors["input_ids"][i, : row.size] = torch.from_numpy(row.input_ids)
            tensors["labels"][i, : row.size] = torch.from_numpy(row.labels)
            tensors["attention_mask"][i, : row.size] = 1
        timed.tokens += sum(row.size for row in chosen) if timed.began else 0
        return tensors

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            timed.began = timed.began or time.process_time()
            timed.seconds = time.process_time() - timed.began

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM")
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATE,
        lr_scheduler_type="cosine", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, logging_strategy="no", dataloader_num_workers=0,
    )  # fmt: skip
    dataset: Any = [{"row": row} for row in prepared.train]
    Trainer(adapted, arguments, data_collator=collate, train_dataset=dataset, callbacks=[Watch()]).train()
    return timed


@click.command(help=__doc__)
def main() -> None:
    """Print both speeds and their ratio."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        folder = Path(place)
        rows(folder / "rows.jsonl")
        model(folder / "base")
        ours = with_ftcore(folder / "base", folder / "rows.jsonl", folder)
        theirs = with_trainer(folder / "base", folder / "rows.jsonl", folder)
    speeds = [timed.tokens / timed.seconds for timed in (ours, theirs)]
    click.echo(f"ftcore   {speeds[0]:,.0f} tokens per CPU-second")
    click.echo(f"Trainer  {speeds[1]:,.0f} tokens per CPU-second")
    click.echo(f"ratio    {speeds[0] / speeds[1]:.2f}")


if __name__ == "__main__":
    main()
