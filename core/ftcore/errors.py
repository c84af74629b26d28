"""The three ways a run can stop short, each with the exit code that says which."""

from __future__ import annotations

from typing import ClassVar


class FtcoreError(Exception):
    """A fault that ftcore recognised; its message is one sentence and the command line prints no traceback."""

    exit_code: ClassVar[int] = 1


class Refused(FtcoreError):
    """Usage, configuration or data that cannot be run as given: culprit, value and the next thing to do."""

    exit_code: ClassVar[int] = 2


class Interrupted(FtcoreError):
    """The run was asked to stop; everything is saved and the same command continues it."""

    exit_code: ClassVar[int] = 75


class Leave(BaseException):
    """Raised by a signal handler wherever the program happens to be; no `except Exception` swallows it."""
