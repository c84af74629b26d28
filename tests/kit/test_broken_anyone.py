"""A plugin of whatever kind that breaks a promise fails the check that names it, and no other."""

from __future__ import annotations

import pytest
from broken_plugins import Broken
from broken_plugins.anyone import Norms
from broken_plugins.anyone_listed import BROKEN
from ftcore.testing import examine


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_exactly_the_check_that_names_it(broken: Broken) -> None:
    failed = {r.check.name: r.reason for r in examine("method", broken.plugin) if r.outcome == "failed"}
    assert failed.keys() == {broken.fails}, failed


def test_the_same_plugin_without_a_defect_passes() -> None:
    assert [(r.check.name, r.reason) for r in examine("method", Norms()) if r.outcome != "passed"] == []
