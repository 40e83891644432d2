"""The two ways a run can end badly, each reported in one line, and how any other error becomes one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rmu_exp.support.redaction import redact


class OneLineError(Exception):
    """An error that one line reports, in which no secret stands and nothing that a terminal would obey."""

    def __init__(self, message: object) -> None:
        super().__init__(redact(plain(str(message))))


def plain(text: str) -> str:
    """Text from anywhere on one line: line ends become spaces, what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))


class UserError(OneLineError):
    """What the user gave is wrong: exit status 2.

    The message is one line that names the key or file, what was given, and what is allowed.
    """


class BusyError(UserError):
    """Another process works on what was asked for."""


class RunError(OneLineError):
    """The run failed although its input was right: exit status 1.

    The message is one line that says what happened and what to do next.
    """


Explainer = Callable[[BaseException], UserError | RunError | None]
"""Gives the line for one kind of error; None for all others."""


def explain(error: BaseException, explainers: Iterable[Explainer]) -> UserError | RunError | None:
    """The line of the first explainer that knows the error or one of those that it came from; None: none does."""
    causes = list(chain(error))
    lines = (explainer(cause) for explainer in explainers for cause in causes)
    return next((line for line in lines if line is not None), None)


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
