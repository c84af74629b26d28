"""A plugin of whatever kind that breaks a promise fails the check that names it, and no other."""

from __future__ import annotations

import pytest
from broken_plugins import Broken, failed
from broken_plugins.anyone import Norms
from broken_plugins.anyone_listed import BROKEN
from ftcore.testing import examine
from ftcore.testing.everyone import EVERY_PLUGIN
from ftcore.testing.kit import session


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_exactly_the_check_that_names_it(broken: Broken) -> None:
    tried = session("method", broken.plugin, EVERY_PLUGIN, {})
    found = {c.name: tried.result(c.name).reason for c in tried.checks if tried.result(c.name).outcome == "failed"}
    assert found.keys() == {broken.fails}, found


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_that_check_and_none_of_a_method(broken: Broken) -> None:
    found = failed("method", broken)
    assert found.keys() == {broken.fails}, found


def test_the_same_plugin_without_a_defect_passes() -> None:
    assert [(r.check.name, r.reason) for r in examine("method", Norms()) if r.outcome != "passed"] == []
