"""Published checkpoints have short names, which a family's README lists as the family takes them."""

from __future__ import annotations

import re
from typing import Any

import ftcore
import huggingface_hub
import pytest
from family_facts import ROOT, shipped
from ftcore.hooks import Run
from ftcore.settings import Settings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FAMILIES = shipped()
SIZED = [name for name, cls in FAMILIES.items() if cls.sizes]


def listed(name: str) -> list[tuple[str, str]]:
    """The sizes and checkpoints in the table of a README, in its order."""
    text = (ROOT / "plugins" / "models" / name / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Sizes\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", section, re.MULTILINE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_readme_lists_the_sizes_that_its_family_takes(name: str) -> None:
    assert listed(name) == list(FAMILIES[name].sizes.items())


@pytest.mark.parametrize("name", SIZED)
def test_a_size_is_short_and_the_only_name_of_a_checkpoint_on_the_hub(name: str) -> None:
    sizes = FAMILIES[name].sizes
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,23}", size) for size in sizes)
    assert all(HUB_ID.fullmatch(checkpoint) for checkpoint in sizes.values())
    assert len({checkpoint.lower() for checkpoint in sizes.values()}) == len(sizes)


@pytest.mark.parametrize("name", SIZED)
def test_what_is_fetched_is_the_size_that_was_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(checkpoint: str, **options: Any) -> str:
        asked.append(checkpoint)
        raise OSError("there is no hub in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    family = FAMILIES[name]
    for size, checkpoint in [*family.sizes.items()][:3]:
        with pytest.raises(ftcore.Refused, match=r"the hub did not give it .*no hub in this test"):
            ftcore.load(name, size=size)
        assert asked.pop() == checkpoint
    if family.starter is None:
        said: list[str] = []
        with pytest.raises(ftcore.Refused, match="the hub did not give it"):
            family().folder(Run(Settings(), "train", family.heads[0], say=said.append))
        assert asked == [next(iter(family.sizes.values()))]
        assert f"no --checkpoint given: '{asked[0]}' is used, from the hub" in said[0]


def test_a_size_that_is_not_listed_is_refused_with_those_that_are() -> None:
    with pytest.raises(ftcore.Refused, match=r"the family Qwen knows no size '8b'; it has 0\.5b, 0\.5b-chat, 1\.5b, "):
        ftcore.load("qwen", size="8b")
