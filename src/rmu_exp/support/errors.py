"""The two ways a run can end badly, each reported in one line."""

from __future__ import annotations

from collections.abc import Iterator

from rmu_exp.support.redaction import redact


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


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """An error's message up to the end of its first line, or its kind when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
