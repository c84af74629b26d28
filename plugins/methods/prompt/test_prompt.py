"""Prompts stand before the embeddings of every row, on every head, and PEFT reads what is kept of them."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import ftcore
import pytest
import torch
import trials
from ftcore import adapters
from ftcore.batches import pad, token_loss, token_row
from ftcore.declaring import options
from ftcore.families import HFModel
from ftcore.hooks import Loaded
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing import method_checks
from ftcore_prompt import Prompt
from torch import Tensor, nn
from trials import answers, check_rows_generated_together, padded, said_by_all, tiny, trainable

N = 5
bound = partial(trials.bound, "prompt", num_virtual_tokens=N)
injected = partial(trials.injected, "prompt", num_virtual_tokens=N)


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Loaded:
    return ftcore.load("qwen", checkpoint=checkpoint("qwen3", head_dim=12))


def learned(model: nn.Module) -> Tensor:
    """The only tensor that trains."""
    (prompts,) = trainable(model).values()
    return prompts.detach()


def test_the_logits_are_those_of_the_model_on_prompts_and_embeddings(loaded: Loaded) -> None:
    plain = copy.deepcopy(loaded.model)
    model = injected(loaded, init="random").model.eval()
    asked, keep = padded(9, 4, 7), torch.tensor([0, 3, 8])
    rows = torch.cat([learned(model).expand(3, -1, -1), plain.get_input_embeddings()(asked["input_ids"])], 1)
    mask = torch.cat([torch.ones(3, N, dtype=torch.long), asked["attention_mask"]], 1)
    with torch.no_grad():
        wanted = plain(inputs_embeds=rows, attention_mask=mask, use_cache=False).logits[:, N:]
        assert torch.allclose(model(**asked).logits, wanted, atol=1e-5)
        assert torch.allclose(model(**asked, use_cache=False, logits_to_keep=keep).logits, wanted[:, keep], atol=1e-5)
        assert torch.allclose(model(**asked, logits_to_keep=2).logits, wanted[:, -2:], atol=1e-5)
        assert float((plain(**asked).logits - wanted).abs().max()) > 0.1


def test_the_loss_supervises_the_same_tokens_as_without_prompts(loaded: Loaded) -> None:
    plain = copy.deepcopy(loaded.model)
    model = injected(loaded).model.eval()
    batch = pad([token_row(list(range(9, 9 + n)), [-100, *range(10, 9 + n)], f"{n}") for n in (4, 8)], 0)
    rows = torch.cat([learned(model).expand(2, -1, -1), plain.get_input_embeddings()(batch.inputs["input_ids"])], 1)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), batch.inputs["attention_mask"]], 1)
    logits = plain(inputs_embeds=rows, attention_mask=mask).logits[:, N:][:, batch.inputs["logits_to_keep"]]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"], reduction="sum")
    assert torch.allclose(token_loss(model, batch), wanted, rtol=1e-5)


def test_as_many_numbers_train_as_prompts_have(loaded: Loaded) -> None:
    found = injected(loaded, num_virtual_tokens=7)
    assert found.trainable == 7 * loaded.model.config.hidden_size
    assert all(not p.requires_grad for p in loaded.model.parameters())


@options
class Opt(HFModel):
    """The family that GPT-3 is of."""

    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    roles: ClassVar[Mapping[str, str]] = {"block": "model.decoder.layers.*"}


def test_gpt3_has_as_many_trainable_numbers_as_the_papers_say(tmp_path: Path) -> None:
    shape = {"hidden_size": 12288, "num_hidden_layers": 96, "num_attention_heads": 96, "ffn_dim": 49152}
    config = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config | {"word_embed_proj_dim": 12288}))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n')
    planned = ftcore.plan(
        method=Prompt(num_virtual_tokens=264), model=Opt(), task="causal", checkpoint=tmp_path, data=[file],
        steps=1, output=tmp_path / "out",
    )  # fmt: skip
    assert planned.trainable_parameters == 3_244_032 == 264 * 12288


def test_prompts_begin_as_the_text_repeated_or_cut(loaded: Loaded) -> None:
    embeddings = loaded.model.get_input_embeddings().weight.detach().clone()
    ids = loaded.tokenizer("The cat sat by the rain")["input_ids"]
    for count in (len(ids) - 1, 3 * len(ids) + 1):
        fresh = replace(loaded, model=copy.deepcopy(loaded.model))
        model = injected(fresh, init="text", init_text="The cat sat by the rain", num_virtual_tokens=count).model
        assert torch.equal(learned(model), embeddings[torch.tensor((ids * 4)[:count])])


def test_prompts_begin_as_rows_of_the_vocabulary_or_at_random(loaded: Loaded) -> None:
    embeddings = loaded.model.get_input_embeddings().weight.detach()
    other = replace(loaded, model=copy.deepcopy(loaded.model))
    for model, known in ((loaded, True), (other, False)):
        prompts = learned(injected(model, init="vocabulary" if known else "random").model)
        assert bool((prompts[:, None] == embeddings).all(2).any(1).all()) == known


@pytest.mark.parametrize("init", ["random", "vocabulary"])
def test_peft_alone_with_the_same_seed_gives_the_same(init: str, loaded: Loaded) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = copy.deepcopy(loaded.model)
    model = injected(loaded, init=init).model.eval()
    kind = "RANDOM" if init == "random" else "SAMPLE_VOCAB"
    with seeded(Settings().seed, "inject", "prompt"):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, prompt_tuning_init=kind)
        theirs = get_peft_model(base, config).eval()
    assert torch.equal(learned(model), learned(theirs))
    with torch.no_grad():
        assert torch.allclose(model(**padded(6, 3)).logits, theirs(**padded(6, 3)).logits[:, N:], atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("llama", "causal-lm"), ("opt", "causal-lm"), ("mt5", "seq2seq-lm"), ("bert", "masked-lm"),
        ("roberta", "sequence-classification"), ("bert", "token-classification"), ("bert", "question-answering"),
    ],
)  # fmt: skip
def test_what_is_saved_gives_the_same_in_peft_and_when_loaded_again(model_type: str, head: str, tmp_path: Path) -> None:
    fields = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 16}, "mt5": {"tie_word_embeddings": True}}
    loaded = tiny(model_type, head, **fields.get(model_type, {}))
    wanted, again, theirs = said_by_all("prompt", loaded, tmp_path, head=head, num_virtual_tokens=N)
    assert torch.equal(wanted, again)
    rows = padded(6, 3)["attention_mask"]
    per_token = wanted.shape[:2] == rows.shape
    there = rows.bool() if per_token else slice(None)
    assert torch.allclose(wanted[there], (theirs[:, -6:] if per_token else theirs)[there], atol=1e-5)


def test_a_row_is_classified_alike_alone_and_padded() -> None:
    model = injected(tiny("llama", "sequence-classification", num_labels=3), head="sequence-classification").model
    together = padded(8, 3)
    alone = {name: tensor[1:, :3] for name, tensor in together.items()}
    assert torch.allclose(answers(model, together)[1:], answers(model, alone), atol=1e-5)


def test_the_new_head_trains_along_and_is_given_back() -> None:
    loaded = tiny("bert", "sequence-classification", num_labels=3)
    base = copy.deepcopy(loaded.model)
    hooks, run = bound(head="sequence-classification")
    found = adapters.inject(hooks, run, loaded, None, 10)
    assert found.trainable == N * 32 + 3 * 32 + 3
    adapter = adapters.saved(hooks, run, found)
    assert set(adapter.tensors) == {
        "prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias",
    }  # fmt: skip
    assert adapter.config["modules_to_save"] == ["classifier"]
    assert all(torch.equal(a, b) for a, b in zip(base.bert.parameters(), loaded.model.bert.parameters(), strict=True))


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_generated_together_are_those_of_a_loop_of_forward_passes(use_cache: bool, loaded: Loaded) -> None:
    check_rows_generated_together(injected(loaded, init="random").model.eval(), use_cache=use_cache)


def test_the_encoder_reads_the_prompts_and_the_decoder_looks_at_them() -> None:
    loaded = tiny("mt5", "seq2seq-lm", tie_word_embeddings=True)
    plain = copy.deepcopy(loaded.model)
    model: Any = injected(loaded, head="seq2seq-lm").model.eval()
    asked, decoded = padded(6, 3), torch.zeros(2, 1, dtype=torch.long)
    rows = torch.cat([learned(model).expand(2, -1, -1), plain.get_input_embeddings()(asked["input_ids"])], 1)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), asked["attention_mask"]], 1)
    with torch.no_grad():
        for _ in range(5):
            wanted = plain(inputs_embeds=rows, attention_mask=mask, decoder_input_ids=decoded).logits
            assert torch.allclose(model(**asked, decoder_input_ids=decoded).logits, wanted, atol=1e-5)
            decoded = torch.cat([decoded, wanted[:, -1:].argmax(-1)], 1)
        said = model.generate(**asked, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(said, decoded)


def test_token_types_and_positions_are_lengthened() -> None:
    loaded = tiny("bert", "token-classification", num_labels=2)
    plain = copy.deepcopy(loaded.model)
    model = injected(loaded, head="token-classification").model.eval()
    prompts = next(p for name, p in model.named_parameters() if "prompt_encoder" in name).detach()
    asked, kinds, places = padded(6, 6), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2), torch.arange(6).expand(2, -1)
    rows = torch.cat([prompts.expand(2, -1, -1), plain.get_input_embeddings()(asked["input_ids"])], 1)
    wanted = plain(inputs_embeds=rows, token_type_ids=torch.cat([torch.zeros(2, N, dtype=torch.long), kinds], 1))
    found = model(**asked, token_type_ids=kinds, position_ids=places)
    assert torch.allclose(found.logits, wanted.logits[:, N:], atol=1e-5)


def test_the_model_can_be_copied_and_pickled(loaded: Loaded) -> None:
    model = injected(loaded).model.eval()
    wanted = answers(model, padded(5))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answers(other, padded(5)), wanted)
        with torch.no_grad():
            learned(other).zero_()
        assert not torch.equal(answers(other, padded(5)), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_virtual_tokens": 0}, r"option 'num_virtual_tokens' is 0"),
        ({"init": "words"}, r"option 'init' is 'words'"),
        ({"init": "text"}, r"init is 'text' and init_text is ''; give the text"),
        ({"init_text": "a cat"}, r"init is 'vocabulary' and init_text is 'a cat'"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str, loaded: Loaded) -> None:
    with pytest.raises(ftcore.Refused, match=message):
        injected(loaded, **options)


@pytest.mark.parametrize("method", ["prompt", "ptuning-v2"])
def test_rows_have_the_positions_that_virtual_tokens_leave(
    method: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Hi", "output": "rain " * 400}) + "\n" + json.dumps(PAIR) + "\n")
    keys: dict[str, Any] = {"method": method, "task": "causal", "model": "qwen", "checkpoint": checkpoint("qwen3")}
    output = tmp_path / "run"
    ftcore.run(**keys, data=rows, steps=1, output=output, **{method: {"num_virtual_tokens": 100}})
    assert ftcore.attach(output).max_positions == 256 - 100
    with pytest.raises(ftcore.Refused, match=r"is 250, which leaves 6 of the model's 256 positions; lower it to 248"):
        ftcore.run(**keys, data=rows, steps=1, output=tmp_path / "no", **{method: {"num_virtual_tokens": 250}})


PAIR = {"instruction": "Where?", "output": "Outside."}


@pytest.mark.parametrize("methods", ["lora+prompt", "ia3+prefix"])
def test_virtual_tokens_go_beside_a_tuner_of_peft_when_named_last(
    methods: str, checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"task": "causal", "model": "qwen", "checkpoint": checkpoint("qwen3"), "data": rows}
    output = tmp_path / "run"
    ftcore.run(method=methods, steps=4, save_every=2, keep=9, output=output, **keys)
    ids = torch.arange(5, 25)[None]
    trained = ftcore.attach(output).model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    shutil.copytree(output, tmp_path / "again")
    for name in ("checkpoints/step-000000004", "adapter_model.safetensors", "report.html", "README.md"):
        gone = tmp_path / "again" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    ftcore.run(method=methods, steps=4, save_every=2, keep=9, output=tmp_path / "again", **keys)
    again = ftcore.attach(tmp_path / "again").model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(again, trained)
    turned = "+".join(reversed(methods.split("+")))
    with pytest.raises(ftcore.Refused, match="name the method that brings them last"):
        ftcore.run(method=turned, steps=1, output=tmp_path / "turned", **keys)


def test_a_text_wants_a_tokenizer(loaded: Loaded) -> None:
    with pytest.raises(ftcore.Refused, match="the checkpoint has no tokenizer"):
        injected(replace(loaded, tokenizer=None), init="text", init_text="a cat")


def test_a_model_without_embeddings_or_with_a_state_is_refused() -> None:
    with pytest.raises(ftcore.Refused, match="need a model of transformers, and Sequential is none"):
        ftcore.inject(nn.Sequential(nn.Linear(4, 4)), method="prompt")
    with pytest.raises(ftcore.Refused, match="MambaForCausalLM generates from a state"):
        injected(tiny("mamba", "causal-lm"))


@method_checks(Prompt())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
