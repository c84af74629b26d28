"""Every decoder can be given a head that scores a text, whatever its checkpoint was published with."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftcore
import pytest
import torch
import transformers
from family_facts import shipped
from ftcore.discovery import declared_datum
from ftcore.families import SCORES
from ftcore.hooks import Intent, Loaded, Run
from ftcore.seeds import seeded
from ftcore.settings import Settings
from ftcore.testing.stage import tiny_checkpoint, tiny_tokenizer
from original_checkpoints import MEMBERS, original_checkpoint

HEAD = "sequence-classification"
ALIBI = {
    "model_type": "alibi_llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
DECODERS = [
    (name, kind)
    for name, cls in shipped().items()
    if cls.drawn_heads == SCORES
    for kind in cls.model_types
    if kind != "alibi_llama"
]
ORIGINALS = [name for name, member in MEMBERS.items() if "13b" not in name]


def loaded(family: Any, folder: Path, said: list[str] | None = None, intent: Intent = "train") -> Loaded:
    """What the family makes of a checkpoint for a task that wants a single score."""
    told = [] if said is None else said
    with seeded(0, "test"):
        run = Run(Settings(checkpoint=str(folder)), intent, HEAD, say=told.append)
        found: Loaded = family.load_model(run, {"num_labels": 1})
    return found


def scores(model: Any) -> torch.Tensor:
    """The scores of two rows, of which one is padded."""
    ids = torch.arange(5, 37).reshape(2, 16)
    ids[1, 9:] = model.config.pad_token_id
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long())[0]
    return answer


@pytest.mark.parametrize(("name", "kind"), DECODERS)
def test_a_decoder_gets_a_head_that_the_seed_draws_and_the_rest_is_the_checkpoints(name: str, kind: str) -> None:
    family = shipped()[name]
    folder, said = tiny_checkpoint(kind, **declared_datum(family, "tiny").get(kind, {})), list[str]()
    found = loaded(family(), folder, said)
    assert any(f"no head for {HEAD}: a new one is drawn (score)" in line for line in said)
    assert found.trained == found.parts["head"] == ("score",)
    assert scores(found.model).shape == (2, 1)
    stored = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    state = found.model.state_dict()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in state.items() if key != "score.weight")
    assert torch.equal(state["score.weight"], loaded(family(), folder).model.state_dict()["score.weight"])
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    plain.config.pad_token_id = found.model.config.pad_token_id
    plain.score.load_state_dict({"weight": state["score.weight"]})
    assert torch.allclose(scores(found.model), scores(plain), atol=1e-5)


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_checkpoint_in_its_makers_form_gets_one_too(name: str, pieces: Callable[..., bytes], tmp_path: Path) -> None:
    member, said = MEMBERS[name], list[str]()
    native = original_checkpoint(member, tmp_path / "own", pieces(("▁cat", "rain")))
    found = loaded(member.plugin, tmp_path / "own", said)
    assert any(f"no head for {HEAD}: a new one is drawn" in line for line in said)
    wanted, state = native.state_dict(), found.model.state_dict()
    assert state.keys() ^ wanted.keys() == {"score.weight", "lm_head.weight"}
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in state.items() if key in wanted)
    assert torch.equal(state["score.weight"], loaded(member.plugin, tmp_path / "own").model.score.weight)
    assert torch.isfinite(scores(found.model)).all()
    assert found.tensors is not None
    assert found.tensors().keys() == wanted.keys() - {"lm_head.weight"}


@pytest.mark.parametrize("intent", ["plan", "train"])
def test_a_type_that_has_no_such_head_is_refused_before_a_weight_is_read(intent: Intent, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ALIBI))
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ftcore.Refused, match="models of type 'alibi_llama' have no head for sequence-classification"):
        loaded(shipped()["baichuan"](), tmp_path, intent=intent)


def test_a_tokenizer_without_padding_pads_with_the_token_that_ends_answers(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama", pad_token_id=-1), tmp_path / "base"))
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    found = loaded(shipped()["llama"](), folder)
    assert found.model.config.pad_token_id == tokenizer.eos_token_id
