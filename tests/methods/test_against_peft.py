"""A method that PEFT has learns what a plain PEFT loop learns, and what it leaves loads without ftcore."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ftcore
import peft
import pytest
import torch
from ftcore.batches import Order
from ftcore.hooks import Run
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore_causal import Causal
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

STEPS, RATE = 20, 3e-3
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PREFIX = {"num_layers": 2, "token_dim": 16, "num_attention_heads": 2, "num_transformer_submodules": 1}
PROMPT = {**PREFIX, "token_dim": 32, "num_attention_heads": 4}

# The options of the method, and the configuration of PEFT that they mean, written out.
CASES: Mapping[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "lora": ("lora", {}, lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR)),
    "lora on q and v": (
        "lora", {"r": 4, "alpha": 4, "parts": ["attention.q", "attention.v"]},
        lambda: peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    ),
    "dora": (
        "lora", {"use_dora": True},
        lambda: peft.LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules=LINEAR),
    ),
    "rslora": (
        "lora", {"use_rslora": True},
        lambda: peft.LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=LINEAR),
    ),
    "pissa": (
        "lora", {"init": "pissa"},
        lambda: peft.LoraConfig(r=8, lora_alpha=16, init_lora_weights="pissa", target_modules=LINEAR),
    ),
    "adalora": (
        "adalora", {"init_r": 6, "target_r": 3, "tinit": 4, "tfinal": 6, "deltaT": 2, "orth_reg_weight": 0.3},
        lambda: peft.AdaLoraConfig(
            init_r=6, target_r=3, tinit=4, tfinal=6, deltaT=2, orth_reg_weight=0.3, lora_alpha=32, total_step=STEPS,
            target_modules=LINEAR, task_type="CAUSAL_LM",
        ),
    ),
    "vera": (
        "vera", {"r": 16, "parts": ["attention.q", "attention.o"]},
        lambda: peft.VeraConfig(r=16, target_modules=["q_proj", "o_proj"]),
    ),
    "loha": ("loha", {"r": 4, "alpha": 4}, lambda: peft.LoHaConfig(r=4, alpha=4, target_modules=LINEAR)),
    "lokr": ("lokr", {"r": 4, "alpha": 4}, lambda: peft.LoKrConfig(r=4, alpha=4, target_modules=LINEAR)),
    "oft": (
        "oft", {"oft_block_size": 8}, lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=LINEAR),
    ),
    "boft": ("boft", {"boft_block_size": 4}, lambda: peft.BOFTConfig(boft_block_size=4, target_modules=LINEAR)),
    "ia3": (
        "ia3", {},
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "ln-tuning": (
        "ln-tuning", {},
        lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "model.norm"]),
    ),
    "hra by its type": (
        "peft", {"type": "HRA", "config": {"r": 4}}, lambda: peft.HRAConfig(r=4, target_modules=LINEAR),
    ),
    "prompt": (
        "prompt", {"num_virtual_tokens": 6, "init": "random"},
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, **PROMPT),
    ),
    "ptuning": (
        "ptuning", {"num_virtual_tokens": 6, "encoder_hidden_size": 24},
        lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=24, encoder_dropout=0.0,
            encoder_reparameterization_type="LSTM", **PROMPT,
        ),
    ),
    "ptuning with an MLP": (
        "ptuning", {"num_virtual_tokens": 6, "encoder_hidden_size": 24, "reparameterization": "mlp"},
        lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=24, encoder_dropout=0.0, **PROMPT
        ),
    ),
    "prefix": (
        "prefix", {"num_virtual_tokens": 6, "projection": True, "encoder_hidden_size": 24},
        lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=24, **PREFIX
        ),
    ),
    "ptuning-v2": (
        "ptuning-v2", {"num_virtual_tokens": 6},
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, **PREFIX),
    ),
}  # fmt: skip
PADDED = ("prompt", "ptuning", "prefix", "ptuning-v2")  # virtual tokens stand before every row, and cannot be merged
MERGEABLE = [name for name, (method, _, _) in CASES.items() if method not in PADDED]
# PEFT looks for a compiler of CUDA, does not know the layers of norms, and looks for ranks under other names.
talkative = pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA extension",
    "ignore:Setting boft_n_butterfly_factor",
    "ignore:Unsupported layer type",
    "ignore:The following rank_pattern keys",
)


@pytest.fixture(scope="module")
def base(checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama, whose layers every tuner of PEFT knows."""
    return checkpoint("llama")


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of the finished run of a case; each is run once."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [{"instruction": f"Where is cat {i}?", "output": f"By door {i % 7} in the rain."} for i in range(48)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    done: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in done:
            method, options, _ = CASES[case]
            done[case] = tmp_path_factory.mktemp("run")
            ftcore.run(
                method=method, task="causal", model="llama", checkpoint=base, data=rows, steps=STEPS, lr=RATE,
                precision="fp32", schedule="constant", warmup_steps=0, log_every=1, output=done[case],
                **{method: options},
            )  # fmt: skip
        return done[case]

    return run


def logged(output: Path) -> list[float]:
    """The loss of every step of a run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def plain_losses(config: Any, method: str, base: Path, data: tuple[str, ...]) -> list[float]:
    """What PEFT and torch alone come to over the same rows, padded, with transformers' own loss."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).requires_grad_(False)
    with seeded(42, "inject", method):
        model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, found = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0), []
    for step, batch in enumerate(padded_batches(base, data, by_length=method in PADDED), start=1):
        optimizer.zero_grad()
        answer = model(**batch)
        answer.loss.backward()  # PEFT's AdaLoRA adds its own term to the loss that it gives back
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if config.peft_type == "ADALORA":
            model.base_model.update_and_allocate(step)
        found.append(loss_of(answer.logits, batch["labels"]))
        if step == STEPS:
            return found
    raise AssertionError("the order of rows ended")


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean cross-entropy of the next tokens; virtual tokens in front are none of the row's."""
    own = logits[:, -labels.shape[1] :]
    return float(torch.nn.functional.cross_entropy(own[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).detach())


def padded_batches(base: Path, data: tuple[str, ...], *, by_length: bool) -> Any:
    """The rows of each step, padded on the right, as transformers' models take them."""
    settings = Settings(data=data)
    loaded = ftcore.load("llama", checkpoint=base)
    rows: Any = Causal().prepare_data(Run(settings, "train", "causal-lm"), loaded).train
    order = Order([row.size for row in rows], settings.seed, settings.batch_size, None, 1, by_length)
    for step in order.after(0):
        chosen = [rows[i] for i in step[0]]
        width = max(row.size for row in chosen)

        def filled(values: str, empty: int, chosen: Any = chosen, width: int = width) -> torch.Tensor:
            lists = [getattr(row, values).tolist() for row in chosen]
            return torch.tensor([one + [empty] * (width - len(one)) for one in lists])

        mask = torch.tensor([[1] * row.size + [0] * (width - row.size) for row in chosen])
        yield {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": mask}


@talkative
@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_twenty_steps_are_those_of_a_plain_peft_loop(
    case: str, base: Path, finished: Callable[[str], Path]
) -> None:
    output = finished(case)
    method, _, config = CASES[case]
    data = tuple(json.loads((output / "ftcore.json").read_text(encoding="utf-8"))["run"]["data"])
    wanted = plain_losses(config(), method, base, data)
    assert len(wanted) == STEPS
    assert logged(output) == pytest.approx(wanted, abs=1e-5)
    assert wanted[-1] < wanted[0] - 0.01


@talkative
@pytest.mark.parametrize("case", CASES)
def test_the_adapter_loads_in_peft_with_the_same_answers(
    case: str, base: Path, finished: Callable[[str], Path]
) -> None:
    ids = torch.arange(5, 45).reshape(2, 20)
    output = finished(case)
    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    with torch.no_grad():
        wanted = ftcore.attach(output).model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = plain.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -20:]
        untouched = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, untouched, atol=1e-3)


@pytest.mark.parametrize("case", MERGEABLE)
def test_the_merged_model_loads_in_transformers_with_the_same_answers(
    case: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    ids = torch.arange(5, 45).reshape(2, 20)
    output = finished(case)
    merged, told = AutoModelForCausalLM.from_pretrained(
        ftcore.merge(output, output=tmp_path / "merged"), output_loading_info=True
    )
    assert not any(told.values())
    with torch.no_grad():
        wanted = ftcore.attach(output).model(ids).logits
        assert torch.allclose(merged.eval()(ids).logits, wanted, atol=1e-4)
