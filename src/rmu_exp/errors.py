"""The two ways a run can end badly, each told in one line."""

from __future__ import annotations

from rmu_exp.secrets import redact


class TellingError(Exception):
    """An error told in one line, in which no secret stands and nothing that a terminal would obey."""

    def __init__(self, message: object) -> None:
        super().__init__(redact(plain(str(message))))


def plain(text: str) -> str:
    """Text from anywhere on one line: line ends become spaces, what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))


class UserError(TellingError):
    """What the user gave is wrong: exit status 2.

    The message is one line that names the key or file, what was given, and what is allowed.
    """


class BusyError(UserError):
    """Another process is at what was asked for."""


class RunError(TellingError):
    """The run failed although its input was right: exit status 1.

    The message is one line that says what happened and what to do next.
    """
