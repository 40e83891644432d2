"""results.json: read, and held against its schema, in one place for all who use it.

The schema is :file:`results.schema.json` beside this module (JSON Schema): what a report, a table or another program
may rely on. Keys that it does not name may be there.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import UserError

NAME = "results.json"


def load(file: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
        UserError: it cannot be read, is not JSON, or does not have the form of one.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({_reason(error)}); remove it") from error
    if wrong := problem(content):
        raise UserError(f"{file}: damaged ({wrong}); remove it")
    assert isinstance(content, dict)
    return content


def problem(content: Any) -> str | None:
    """What is wrong with the form of results, in a few words; None: nothing."""
    error = next(
        iter(sorted(_validator().iter_errors(content), key=lambda e: (len(e.path), list(map(str, e.path))))), None
    )
    if error is None:
        return None
    place = ".".join(map(str, error.path))
    return f"{place}: {_short(error.message)}" if place else _short(error.message)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(
        json.loads((files("rmu_exp.record") / "results.schema.json").read_text(encoding="utf-8"))
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:60]} … {line[-56:]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "nested too deeply" if isinstance(error, RecursionError) else _short(str(error))
