"""A family that breaks a promise fails the check that names it, and no other; sound ones pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_plugins import Broken, caught, failed, one_of_each
from broken_plugins.models import Sound, mend
from broken_plugins.models_listed import BROKEN
from ftcore.families import HFModel
from ftcore.testing import examine
from ftcore.testing.stage import Decoder, Encoder, EncoderDecoder, FusedDecoder, tiny_checkpoint
from ftcore_llama import Llama
from ftcore_qwen import Qwen
from model_families import Bloom, Gpt2, Mistral, NeoX, Opt, Packed, Phi3, packed


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    mend()


@pytest.mark.parametrize("broken", one_of_each(BROKEN), ids=lambda one: one.defect)
def test_a_defect_is_caught_by_the_check_that_names_it(broken: Broken) -> None:
    assert caught("model", broken)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_that_check_and_no_other(broken: Broken) -> None:
    found = failed("model", broken)
    assert found.keys() == {broken.fails}, found


QUICK = (Sound, Encoder, EncoderDecoder)
SLOW = (Qwen, Llama, Decoder, FusedDecoder, Mistral, Phi3, NeoX, Bloom, Gpt2, Opt)


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)])
def test_a_sound_family_passes(family: type[HFModel]) -> None:
    assert [(r.check.name, r.reason) for r in examine("model", family()) if r.outcome != "passed"] == []


def test_a_family_that_converts_passes_with_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    checkpoint = packed(tiny_checkpoint("llama"), tmp_path / "packed")
    results = list(examine("model", Packed(), checkpoint=checkpoint))
    assert [(r.check.name, r.reason) for r in results if r.outcome != "passed"] == []
