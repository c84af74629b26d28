"""The three ways a run can stop short, each with the exit code that says which, and the warning before a removal."""

from __future__ import annotations

from typing import ClassVar, Self


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


class Deprecated(FutureWarning):
    """Something of the contract that goes away in the release `removed_in`.

    A subclass for each such release is deleted together with what it announces. It is no DeprecationWarning, which
    Python keeps from those who run a plugin and have to find a newer one.
    """

    removed_in: ClassVar[str]

    def __init__(self, what: str, instead: str, user: str = "") -> None:
        self.what, self.instead = what, instead
        subject = f"{user} relies on {what}, which" if user else what
        super().__init__(f"{subject} goes away in ftcore {self.removed_in}; use {instead}")

    def by(self, user: str) -> Self:
        """The same, said of the plugin that relies on it."""
        return type(self)(self.what, self.instead, user)
