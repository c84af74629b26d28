"""QLoRA holds the base in the 16 values of NF4, adds LoRA to it exactly, and says what it merges into."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from click.testing import CliRunner
from ftcore import adapters
from ftcore.adapters import Injected
from ftcore.cli import cli
from ftcore.discovery import bind, choose
from ftcore.hooks import Loaded, Run
from ftcore.pipeline import load_model
from ftcore.settings import Settings
from ftcore.testing import check_resumed_it_ends_the_same, method_checks
from ftcore.testing.stage import STAGES, Decoder, tiny_checkpoint
from ftcore.training import Core
from ftcore_qlora import QLoRA, round_weights
from safetensors.torch import load_file

# Appendix E of the paper.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def codes_of(packed: torch.Tensor) -> list[int]:
    """The codes of packed weights, two in a byte, the first in its upper half."""
    return [code for byte in packed.flatten().tolist() for code in (byte >> 4, byte & 15)]


def loaded_by(plugin: QLoRA, family: object, checkpoint: Path, intent: Any = "train", head: str = "causal-lm") -> Any:
    """The hooks, the run and the base as a run with this method loads it."""
    hooks = bind([choose("method", plugin, {}), choose("model", family, {})], Core())
    run = Run(Settings(checkpoint=str(checkpoint), precision="fp32"), intent, head)
    return hooks, run, load_model(hooks, run)


def injected(plugin: QLoRA, checkpoint: Path, intent: Any = "train") -> tuple[Loaded, Injected]:
    """The base and the adapted model."""
    hooks, run, loaded = loaded_by(plugin, Decoder(), checkpoint, intent)
    return loaded, adapters.inject(hooks, run, loaded, None, 10)


def test_the_sixteen_values_are_the_papers_and_its_quantiles_of_the_normal_distribution() -> None:
    found = functional.get_4bit_type("nf4", device="cpu")
    assert torch.equal(found, torch.tensor(NF4))
    end = 1 - (1 / 32 + 1 / 30) / 2
    upper = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    quantiles = torch.cat([upper, torch.zeros(1, dtype=torch.float64), lower]).sort().values
    assert torch.allclose(quantiles / quantiles.max(), torch.tensor(NF4, dtype=torch.float64), atol=1e-6)


def test_a_block_is_quantised_as_the_worked_example_says() -> None:
    """README: the largest magnitude of 64 weights is 0.8; 0.2 is 0.25 of it, nearest to code 10, and comes back."""
    block = torch.zeros(1, 64)
    block[0, :6] = torch.tensor([0.8, 0.2, -0.4, 0.05, -0.8, 0.55])
    packed, state = functional.quantize_4bit(block, quant_type="nf4", blocksize=64)
    assert state.absmax.tolist() == pytest.approx([0.8])
    assert codes_of(packed)[:7] == [15, 10, 2, 8, 0, 14, 7]
    back = functional.dequantize_4bit(packed, state)[0, :7].tolist()
    assert back == pytest.approx([0.8, 0.1968898, -0.4200584, 0.0636642, -0.8, 0.5783655, 0.0], abs=1e-6)


def test_each_weight_becomes_the_nearest_value_times_the_scale_of_its_64() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 128)
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    wanted = (torch.tensor(NF4)[nearest] * scale).reshape(32, 128)
    assert torch.allclose(QLoRA(double_quant=False).rounded(weight), wanted, atol=1e-6)
    assert float((QLoRA().rounded(weight) - wanted).abs().max()) < 0.05 * float(scale.max())


@pytest.mark.parametrize(("quant_type", "double_quant"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_a_layer_answers_as_the_papers_equation(quant_type: Any, double_quant: bool) -> None:
    """Y = X dequantise(W) + (alpha / r) X A B (equations 5 and 6)."""
    plugin = QLoRA(r=3, alpha=12, quant_type=quant_type, double_quant=double_quant, parts=("mlp.up",))
    checkpoint = tiny_checkpoint("granite")
    name = "model.layers.1.mlp.up_proj"
    weight = load_file(checkpoint / "model.safetensors")[f"{name}.weight"]
    _, found = injected(plugin, checkpoint)
    layer: Any = found.model.get_submodule(f"base_model.model.{name}")
    assert isinstance(layer.base_layer, Linear4bit)
    first, second = layer.lora_A["default"].weight, torch.nn.init.normal_(layer.lora_B["default"].weight)
    given = torch.randn(5, weight.shape[1])
    packed, state = functional.quantize_4bit(
        weight, quant_type=quant_type, blocksize=64, compress_statistics=double_quant
    )
    wanted = given @ functional.dequantize_4bit(packed, state).T + 12 / 3 * given @ first.T @ second.T
    assert torch.allclose(layer(given), wanted, atol=1e-5)


def test_the_base_is_held_in_4_bits_and_only_the_update_trains() -> None:
    loaded, found = injected(QLoRA(r=2), tiny_checkpoint("granite"))
    packed = [p for name, p in found.model.named_parameters() if p.dtype == torch.uint8]
    linears = [n for role in ("attention", "mlp") for n in adapters.select(loaded.parts, (role,))]
    assert len(packed) == len(linears)
    assert all(name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in found.names)
    assert found.trainable == sum(p.numel() for p in found.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("head", ["causal-lm", "seq2seq-lm", "masked-lm", "sequence-classification"])
def test_what_dequantised_merging_rounds_is_what_loading_quantises(head: str) -> None:
    family, model_type = STAGES[head]
    checkpoint = tiny_checkpoint(model_type, head)
    quantised = loaded_by(QLoRA(), family(), checkpoint, "train", head)[2].model
    wanted = {name for name, module in quantised.named_modules() if isinstance(module, Linear4bit)}
    loaded = loaded_by(QLoRA(), family(), checkpoint, "merge", head)[2]
    whole = loaded.model
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    round_weights(whole, QLoRA().rounded, loaded.trained)
    moved = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"{name}.weight" for name in wanted}


@pytest.mark.parametrize("into", ["unquantized", "dequantized"])
def test_merging_adds_the_update_to_the_weights_that_were_asked_for_and_says_which(
    into: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2", hidden_size=64)
    ftcore.run(
        method="qlora", task="causal", model="qwen", checkpoint=folder, data=rows, steps=3, lr=1e-2, precision="fp32",
        output=tmp_path / "run", qlora={"r": 2, "alpha": 4, "parts": ["attention.o"]},
    )  # fmt: skip
    command = ["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), "--qlora.merge", into]
    said = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert said.exit_code == 0
    assert f"into the {'dequantised ' if into == 'dequantized' else ''}weights of" in said.stderr
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    base, merged = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "merged"))
    name = "model.layers.0.self_attn.o_proj"
    start = QLoRA().rounded(base[f"{name}.weight"]) if into == "dequantized" else base[f"{name}.weight"]
    first, second = (adapter[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    assert torch.allclose(merged[f"{name}.weight"], start + 4 / 2 * second @ first, atol=1e-6)
    other = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[other], QLoRA().rounded(base[other]) if into == "dequantized" else base[other])


def test_a_stream_has_no_dequantised_model_to_merge_into(
    checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    ftcore.run(
        method="qlora", task="causal", model="qwen", checkpoint=checkpoint("qwen2"), data=rows, steps=1,
        output=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(ftcore.Refused, match="merge without --stream"):
        ftcore.merge(tmp_path / "run", output=tmp_path / "out", stream=True, qlora={"merge": "dequantized"})
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_taken_out_of_whole_weights_is_refused() -> None:
    with pytest.raises(ftcore.Refused, match="init 'pissa' takes its start from whole weights"):
        injected(QLoRA(init="pissa"), tiny_checkpoint("granite"))


def test_a_plan_counts_the_base_in_4_bits() -> None:
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    keys: dict[str, Any] = {"task": "causal", "model": Decoder(), "checkpoint": tiny_checkpoint("granite", **shape)}
    whole, quantised = (ftcore.plan(method=method, precision="fp32", **keys) for method in ("lora", "qlora"))
    assert whole.refused is None
    assert quantised.refused is None
    assert quantised.trainable_parameters == whole.trainable_parameters
    stored = load_file(keys["checkpoint"] / "model.safetensors")
    matrices = sum(tensor.numel() for name, tensor in stored.items() if ".layers." in name and tensor.ndim == 2)
    assert whole.peak_memory_bytes - quantised.peak_memory_bytes == matrices * 4 - matrices // 2


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_32bit"])
def test_an_optimizer_of_bitsandbytes_is_resumed_bit_for_bit(optimizer: Any) -> None:
    check_resumed_it_ends_the_same(QLoRA(optimizer=optimizer))


@pytest.mark.slow
def test_loading_never_holds_the_whole_base_unquantised() -> None:
    """Memory that is no file's rises by less than half of the base's size, 416 MB, while 4-bit weights are read."""
    shape = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }  # fmt: skip
    checkpoint = tiny_checkpoint("granite", **shape)
    loaded_by(QLoRA(), Decoder(), tiny_checkpoint("granite"))
    seen, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded_by(QLoRA(), Decoder(), checkpoint)
    done.set()
    watcher.join()
    assert max(seen) - seen[0] < 0.5 * (checkpoint / "model.safetensors").stat().st_size


def anonymous() -> int:
    """Bytes of memory of this process that are in no file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


@method_checks(QLoRA())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
