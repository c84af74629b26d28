"""A task that breaks a promise fails the check that names it, and no other; sound tasks of every habit pass."""

from __future__ import annotations

import pytest
from broken_plugins import Broken, caught, failed, one_of_each, tasks, tasks_elsewhere
from ftcore.testing import examine
from ftcore.testing.stage import Recital
from ftcore_pretrain import Pretrain

BROKEN = [*tasks.BROKEN, *tasks_elsewhere.BROKEN]
SOUND = [Pretrain(bos="<|im_start|>"), Recital(), tasks.Dialogs(), *tasks_elsewhere.SOUND]
QUICK = (Recital, tasks_elsewhere.Translate)


@pytest.mark.parametrize("broken", one_of_each(BROKEN), ids=lambda one: one.defect)
def test_a_defect_is_caught_by_the_check_that_names_it(broken: Broken) -> None:
    assert caught("task", broken)


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.defect)
def test_a_defect_fails_that_check_and_no_other(broken: Broken) -> None:
    found = failed("task", broken)
    assert found.keys() == {broken.fails}, found


@pytest.mark.parametrize(
    "task",
    [pytest.param(one, id=type(one).__name__, marks=[pytest.mark.slow] * (type(one) not in QUICK)) for one in SOUND],
)
def test_a_sound_task_passes_every_check(task: object) -> None:
    assert [(r.check.name, r.reason) for r in examine("task", task) if r.outcome != "passed"] == []


def test_every_check_of_tasks_is_failed_by_a_broken_one() -> None:
    from ftcore.testing.tasks import EVERY_TASK

    assert {check.name for check in EVERY_TASK} - {broken.fails for broken in BROKEN} == set()


def test_every_defect_has_a_name_of_its_own() -> None:
    assert len({broken.defect for broken in BROKEN}) == len(BROKEN)
