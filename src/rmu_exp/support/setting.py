"""How a setting is declared, and the one check that follows from it.

A group of settings is a dataclass. ``lr: float = setting(5e-5, above=0)`` says what is allowed beside the field, the
sentence under it says what it is for, and :func:`check` refuses everything else in one line. A dataclass whose fields
must agree with each other has a method ``check()``, called after its fields. Knows no setting by name.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any

from rmu_exp.support import redaction
from rmu_exp.support.errors import UserError

ALLOWED, RESULT = "allowed", "changes_result"  # keys of a field's metadata
SECRET = "holds a token or a password, which would be written down; keep it in the environment (HF_TOKEN, …)"


@dataclass(frozen=True)
class Allowed:
    """What a setting, or each entry of a list of them, may be."""

    least: float | None = None  # the lower end of its range
    above: float | None = None  # a bound that it may not reach
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()  # the words that it may be
    filled: bool = False  # whether a list needs at least one entry

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        if self.least is not None:
            return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        ends = [f"{sign} {end}" for sign, end in ((">", self.above), ("<", self.below)) if end is not None]
        return " ".join(["a number", " and ".join(ends)]).strip()

    def __contains__(self, value: object) -> bool:
        if self.choices and value not in self.choices:
            return False
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        high = (self.most is None or value <= self.most) and (self.below is None or value < self.below)
        return math.isfinite(value) and low and high


def setting(default: object = dataclasses.MISSING, *, changes_result: bool = True, **allowed: Any) -> Any:
    """A field of a settings dataclass.

    Args:
        default: a value, or the class of a group; without one the value comes from a file in ``conf/``.
        changes_result: whether another value can change what a run computes, so that it belongs to its digest.
        allowed: see :class:`Allowed`.
    """
    metadata = {ALLOWED: Allowed(**allowed), RESULT: changes_result}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: object, prefix: str = "") -> None:
    """Refuse a value that its declaration does not allow, in a dataclass of settings and in the groups inside it.

    Raises UserError, with its key after ``prefix``: a wrong type, a number out of range or not finite, a word that is
    no choice, a token or password, or what the group's own ``check()`` refuses.
    """
    assert dataclasses.is_dataclass(settings)
    assert not isinstance(settings, type)
    values = dataclasses.asdict(settings)
    if redaction.holds(values):
        named = [key for key, value in flat(values, prefix).items() if redaction.holds({key: value})]
        raise UserError(f"{redaction.redact(named[0])}: {SECRET}")
    _check(settings, prefix)


def _check(settings: Any, prefix: str) -> None:
    types = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            _check(value, f"{key}.")
        else:
            _check_value(key, value, types[field.name], field.metadata.get(ALLOWED, Allowed()))
    if hasattr(settings, "check"):
        settings.check()


def _check_value(key: str, value: object, kind: object, allowed: Allowed) -> None:
    optional = isinstance(kind, UnionType) and NoneType in typing.get_args(kind)
    if value is None and optional:
        return
    if not _fits(value, kind):
        wanted = f"a list such as '{key}=[a,b]'" if "list[" in str(kind) else allowed
        raise UserError(f"{key}: got {show(value)}, allowed is {wanted}")
    if allowed.filled and not value:
        raise UserError(f"{key}: got an empty list, allowed is one value or more")
    for part in value if isinstance(value, list) else [value]:
        if part not in allowed:
            raise UserError(f"{key}: got {show(part)}, allowed is {allowed}{', or null' * optional}")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value has a declared type; interpolations and lists in lists pass OmegaConf."""
    import pydantic  # which help need not wait for

    try:
        pydantic.TypeAdapter(kind).validate_python(value, strict=True)
    except pydantic.ValidationError:
        return False
    return True


def groups_of(schema: type) -> dict[str, type]:
    """The groups inside a settings dataclass, by name."""
    found: dict[str, type] = {}
    for f in dataclasses.fields(schema):
        group: object = f.default_factory
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            found[f.name] = group
    return found


def keys_of(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a settings dataclass, groups included."""
    keys, groups = list[str](), groups_of(schema)
    for f in dataclasses.fields(schema):
        keys.append(prefix + f.name)
        if f.name in groups:
            keys += keys_of(groups[f.name], f"{prefix}{f.name}.")
    return keys


def without_result(schema: type, prefix: str = "") -> set[str]:
    """The dotted keys, groups included, that are declared to change no result."""
    found = {prefix + f.name for f in dataclasses.fields(schema) if not f.metadata.get(RESULT, True)}
    return found.union(*(without_result(group, f"{prefix}{name}.") for name, group in groups_of(schema).items()))


def show(value: object) -> str:
    """A value as a message has it."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return repr(value) if isinstance(value, str) else str(value)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
