"""Attacks and probes by name: ``attacks=[relearn]`` is ``conf/attacks/relearn.yaml`` and the module ``relearn``.

There is no list of them: a YAML in conf/attacks/ and a module of that name in :mod:`rmu_exp.attacks` or
attack. The module has a dataclass ``Settings``, with a sentence under each field
and no defaults (the YAML holds the values), and a function ``run(context, settings)`` that gives a
:class:`~rmu_exp.attacks.api.Finding`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config.docstrings import fields_of
from rmu_exp.config.keys import one_line, unknown_key
from rmu_exp.support.errors import UserError

PACKAGES = ("attacks",)
ALL = "all"


def names(conf: Path) -> list[str]:
    """The attacks that can be chosen, by the files in conf/attacks/."""
    return sorted(file.stem for file in (conf / "attacks").glob("*.yaml"))


def source(name: str) -> Path | None:
    """The file of an attack's module, found without importing it."""
    found = (find_spec(f"rmu_exp.{package}.{name}") for package in PACKAGES if name.isidentifier())
    return next((Path(spec.origin) for spec in found if spec is not None and spec.origin), None)


def refuse_unknown(chosen: Any, conf: Path) -> None:
    """Refuse a choice of attacks that conf/attacks/ does not have.

    Args:
        chosen: what stands behind ``attacks=`` on the command line.
    """
    one_of("attacks", chosen if isinstance(chosen, list) else [chosen], (*names(conf), ALL))


def unknown_setting(key: str) -> str:
    """The message for ``attacks.<name>.<setting>`` that cannot be set."""
    name = key.split(".")[1]
    known = [f"attacks.{name}.{field}" for field in sentences(name)]
    if key in known or not known:
        return f"{key}: attack {name!r} is not chosen; add 'attacks=[{name}]'"
    return unknown_key(key, known)


def sentences(name: str) -> dict[str, str]:
    """The sentence under each setting of an attack, read from its file without importing it; empty: no such attack."""
    file = source(name)
    return fields_of(file.read_text(encoding="utf-8"), "Settings") if file else {}


def module(name: str) -> Any:
    """An attack's module.

    Raises:
        UserError: there is none of this name.
    """
    for package in PACKAGES:
        if name.isidentifier() and find_spec(f"rmu_exp.{package}.{name}"):
            return importlib.import_module(f"rmu_exp.{package}.{name}")
    raise UserError(f"attacks: {name!r} has no module; wanted is src/rmu_exp/attacks/{name}.py, or in probes/")


def checked(chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the chosen attacks, each as its module's ``Settings`` has it.

    Raises:
        UserError: an unknown attack or key, a wrong type, a number that is not positive, a budget of zero.
    """
    return {name: dataclasses.asdict(settings(name, values)) for name, values in chosen.items()}


def settings(name: str, values: Any) -> Any:
    """The checked ``Settings`` of one attack. Raises as :func:`checked`."""
    schema = module(name).Settings
    prefix = f"attacks.{name}"
    if not isinstance(values, dict):
        raise UserError(f"{prefix}: got {values!r}, allowed is a group of keys")
    known = [f"{prefix}.{f.name}" for f in dataclasses.fields(schema)]
    for key in values:
        if f"{prefix}.{key}" not in known:
            raise UserError(unknown_key(f"{prefix}.{key}", known))
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, f"{prefix}.")) from error
    for key, value in dataclasses.asdict(made).items():
        _positive(f"{prefix}.{key}", value)
    if hasattr(made, "check"):
        made.check(prefix)
    return made


def _positive(key: str, value: Any) -> None:
    if isinstance(value, list):
        if not value:
            raise UserError(f"{key}: got an empty list, allowed is one value or more")
        for part in value:
            _positive(key, part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not (math.isfinite(value) and value > 0):
        raise UserError(f"{key}: got {value}, allowed is a number > 0")


def one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not one of a setting's choices."""
    for part in value if isinstance(value, list) else [value]:
        if part not in allowed:
            raise UserError(f"{key}: got {part!r}, allowed is {', '.join(allowed)}")
