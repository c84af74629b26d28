"""A method that breaks a promise fails the check that names it, and no other."""

from __future__ import annotations

import pytest
from broken_plugins import Broken, caught, failed, one_of_each
from broken_plugins.methods import BROKEN, sound
from ftcore.testing import examine
from torch import nn


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that changes torch's own classes does so for one test only."""
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)


@pytest.mark.parametrize("broken", one_of_each(BROKEN), ids=lambda one: one.defect)
def test_a_defect_is_caught_by_the_check_that_names_it(broken: Broken) -> None:
    assert caught("method", broken)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_that_check_and_no_other(broken: Broken) -> None:
    found = failed("method", broken)
    assert found.keys() == {broken.fails}, found


@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(one, id=type(one).__name__, marks=[pytest.mark.slow] * (number > 0))
        for number, one in enumerate(sound())
    ],
)
def test_the_same_method_without_a_defect_passes(plugin: object) -> None:
    assert [(r.check.name, r.reason) for r in examine("method", plugin) if r.outcome != "passed"] == []
