"""OPT checkpoints load whole and answer as plain transformers does, with every weight in a part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from family_facts import answers_as_plain_transformers, loaded, outside_of_parts, refuses_another_type
from ftcore.testing import model_checks
from ftcore.testing.stage import tiny_checkpoint
from ftcore_opt import OPT

TINY = OPT.tiny["opt"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_answers_as_plain_transformers(tied: bool) -> None:
    answers_as_plain_transformers(OPT(), tiny_checkpoint("opt", tie_word_embeddings=tied, **TINY))


def test_every_part_names_modules_and_every_weight_of_a_block_is_in_a_part() -> None:
    found = loaded(OPT(), tiny_checkpoint("opt", **TINY))
    assert outside_of_parts(found) == {"model.decoder.embed_positions"}
    assert len(found.parts["block"]) == len(found.parts["attention.o"]) == 2


def test_a_checkpoint_of_another_type_is_refused_by_name() -> None:
    refuses_another_type(OPT(), tiny_checkpoint("llama"), "opt")


@model_checks(OPT())
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
