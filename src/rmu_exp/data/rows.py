"""What a line of a file or a row of a table gives: a text, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

TEXT = "text"  # the field of an object and the column of a table


class Scalar(Protocol):
    """An Arrow value."""

    def as_py(self) -> object:
        """The Python value. Raises UnicodeDecodeError."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub, as a source names it."""

    repo: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Bad:
    """A line or row that gives no text: where it stands and what is wrong with it."""

    where: str
    reason: str


def checked(value: object) -> str:
    """A value as a text. Raises ValueError with what is wrong."""
    if not isinstance(value, str):
        raise ValueError(f"the text is of type {type(value).__name__}, allowed is a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair") from error
    return value


def values(scalars: Iterable[Scalar]) -> Iterator[str | Bad]:
    """The texts of a column's Arrow scalars; a null, a number or broken UTF-8 is a :class:`Bad` row."""
    for number, scalar in enumerate(scalars, 1):
        try:
            yield checked(scalar.as_py())
        except ValueError as error:  # UnicodeDecodeError is one
            yield Bad(f"row {number}", "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))
