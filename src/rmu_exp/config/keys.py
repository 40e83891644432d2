"""The keys that settings may have, and the one line for a key or a value that does not fit."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rmu_exp.settings import Judge, Run


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"{key}: no such key{hint} (known: {', '.join(known)})"


def keys_of(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, groups included."""
    keys: list[str] = []
    for f in dataclasses.fields(schema):
        keys.append(prefix + f.name)
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            keys += keys_of(f.default_factory, f"{prefix}{f.name}.")
    return keys


_WANTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def one_line(error: OmegaConfBaseException, prefix: str = "") -> str:
    """OmegaConf's message as one line: the key behind ``prefix``, what was given, what is allowed."""
    text = str(error).splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        key = prefix + text.rsplit(": ", 1)[-1]
        return f"{key}: not given; add {key}=…"
    key = prefix + (getattr(error, "full_key", None) or "configuration")
    if "' not in '" in text:  # Key 'stear' not in 'Run'
        inside, schema = key.rpartition(".")[0], Judge if "'Judge'" in text else Run
        return unknown_key(key, [k for k in keys_of(schema) if k.rpartition(".")[0] == inside])
    if "is not a ListConfig" in text:
        return f"{key}: allowed is a list such as '{key}=[a,b]'"
    for kind, wanted in _WANTED.items():
        if kind in text:
            return f"{key}: got {show(getattr(error, 'value', None) or _quoted(text))}, allowed is {wanted}"
    return f"{key}: {text}"


def show(value: Any) -> str:
    """A value as a message has it."""
    return repr(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    return text.split("'")[1] if text.count("'") >= 2 else text
