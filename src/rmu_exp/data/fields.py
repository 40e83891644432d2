"""The text of an object or a row: a field, or several in a template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from rmu_exp.support.errors import UserError

CONTENT = "content"  # of a message in a chat


@dataclass(frozen=True)
class Fields:
    """What is read, in the order that is tried: names of fields, or templates such as ``{question} {answer}``.

    The first is taken whose fields are all there.

    Raises UserError: a template that is none.
    """

    ways: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        for way, names in self._names.items():
            if not names or not all(names):
                raise UserError(
                    f"data.field: got {way!r}, allowed is a field's name or a template such as '{{q}} {{a}}'"
                )

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        found = dict[str, list[str]]()
        for way in self.ways:
            try:
                inside = [name for _, name, _, _ in Formatter().parse(way) if name is not None]
            except ValueError as error:
                raise UserError(f"data.field: got {way!r}, which is no template ({error})") from error
            found[way] = inside if "{" in way else [way]
        return found

    def of(self, there: Collection[str]) -> tuple[str, list[str]] | None:
        """The way for an object or a table with these fields, and those it needs; None: none fits."""
        return next(((way, n) for way, n in self._names.items() if all(name in there for name in n)), None)

    def lacking(self, there: Collection[str], what: str = "field") -> str:
        """What is wrong with an object or a table that has other fields than these."""
        wanted = " or ".join(" and ".join(map(repr, names)) for names in self._names.values())
        return f"no {what} {wanted} (there: {', '.join(map(str, there)) or 'none'}); data.field names another"

    def text(self, row: Mapping[str, object]) -> str:
        """The text of an object. Raises ValueError with what is wrong."""
        way = self.of(row)
        if way is None:
            raise ValueError(self.lacking(row))
        return self.put(way[0], row)

    def put(self, way: str, row: Mapping[str, object]) -> str:
        """The text of an object in one of the ways. Raises ValueError with what is wrong."""
        if "{" not in way:
            return checked(row[way])
        return way.format(**{name: checked(row[name]) for name in self._names[way]})


def checked(value: object) -> str:
    """A value as a text; a chat as its messages, one after the other. Raises ValueError with what is wrong."""
    if isinstance(value, Sequence) and value and all(isinstance(m, Mapping) and CONTENT in m for m in value):
        return "\n".join(checked(message[CONTENT]) for message in value)
    if not isinstance(value, str):
        raise ValueError(f"the text is of type {type(value).__name__}, allowed is a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair") from error
    return value
