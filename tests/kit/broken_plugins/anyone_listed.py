"""Which defects the plugins of anyone.py, and the modules that do something when imported, stand for."""

from __future__ import annotations

import logging
import os
import random
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

from broken_plugins import Broken
from broken_plugins.anyone import (
    AnyBlock,
    Changeable,
    Clipping,
    Crashing,
    Defaulting,
    Drifting,
    Equal,
    HalfHelped,
    Halving,
    Intruding,
    Lenient,
    Listing,
    Logging,
    Misspelling,
    Moving,
    Mumbling,
    Reseeding,
    ReseedingPython,
    Setting,
    Undocumented,
    Unmarked,
    Unwritable,
    Wishing,
    WithoutHelp,
)


def imported(module: str, name: str) -> Any:
    """An instance of a class whose module does something when it is imported."""
    state, environment, level = random.getstate(), dict(os.environ), logging.getLogger().level
    handlers = logging.getLogger().handlers[:]
    try:
        with redirect_stdout(StringIO()):
            return getattr(import_module(f"broken_plugins.{module}"), name)()
    finally:
        random.setstate(state)
        logging.getLogger().setLevel(level)
        logging.getLogger().handlers[:] = handlers
        os.environ.clear()
        os.environ.update(environment)


BROKEN = [
    Broken("torch is imported at the top", imported("heavy_import", "HeavyImport"), "check_imports_nothing_heavy"),
    Broken("prints when imported", imported("loud_import", "LoudImport"), "check_importing_changes_nothing"),
    Broken("seeds when imported", imported("seeding_import", "SeedingImport"), "check_importing_changes_nothing"),
    Broken("sets the environment when imported", imported("setting_import", "SettingImport"),
           "check_importing_changes_nothing"),
    Broken("configures logging when imported", imported("logging_import", "LoggingImport"),
           "check_importing_changes_nothing"),
    Broken("no docstring", Undocumented(), "check_is_documented"),
    Broken("a docstring that is no sentence", Mumbling(), "check_is_documented"),
    Broken("an option without help", WithoutHelp(), "check_every_option_has_help"),
    Broken("help that is no sentence", HalfHelped(), "check_every_option_has_help"),
    Broken("attributes can be set", Changeable(), "check_is_immutable"),
    Broken("two instances are equal", Equal(), "check_is_immutable"),
    Broken("an option that can change in place", Listing(), "check_is_immutable"),
    Broken("clips an option silently", Clipping(), "check_options_survive"),
    Broken("an option drifts when the run is read again", Drifting(), "check_options_survive"),
    Broken("an option's value crashes", Crashing(), "check_options_survive"),
    Broken("an option that no file holds", Unwritable(), "check_options_survive"),
    Broken("swallows unknown options", Lenient(), "check_wrong_options_are_refused"),
    Broken("takes any value for a number", AnyBlock(), "check_wrong_options_are_refused"),
    Broken("a hook without its mark", Unmarked(), "check_hooks_exist"),
    Broken("answers another kind's hook", Intruding(), "check_hooks_exist"),
    Broken("a hook argument with a default", Defaulting(), "check_hooks_exist"),
    Broken("a hook that does not exist", Misspelling(), "check_hooks_exist"),
    Broken("an argument that no hook has", Wishing(), "check_hooks_exist"),
    Broken("reseeds torch", Reseeding(), "check_leaves_the_process_alone"),
    Broken("reseeds Python in merge", ReseedingPython(), "check_leaves_the_process_alone"),
    Broken("sets the environment", Setting(), "check_leaves_the_process_alone"),
    Broken("changes the root logger", Logging(), "check_leaves_the_process_alone"),
    Broken("changes the working directory", Moving(), "check_leaves_the_process_alone"),
    Broken("changes torch's settings", Halving(), "check_leaves_the_process_alone"),
]  # fmt: skip
