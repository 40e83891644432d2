"""The words of a command line to checked settings; a mistake becomes one line, before anything is written.

Hydra composes, :mod:`rmu_exp.config.parse` checks. In a sweep each swept value is checked once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config import plugins
from rmu_exp.config.parse import one_line, parse, parse_judge, register, unknown_attack_key, unknown_key
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import keys_of

register()


def composed(overrides: Sequence[str], conf: Path, multirun: bool = False, name: str = "config") -> list[Any]:
    """Compose and parse what the overrides ask for; in a sweep, each swept value once.

    Raises:
        UserError: in one line.
    """
    try:
        with _strict():
            parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"command line: {_first_lines(error)}") from error
    swept = [o for o in parsed if o.is_sweep_override()]
    for override in parsed:
        if override.key_or_group == "attacks" and not override.is_sweep_override():
            known = sorted(file.stem for file in (conf / "attacks").glob("*.yaml"))
            chosen = override.value()
            for attack in chosen if isinstance(chosen, list) else [chosen]:
                if attack not in known:
                    raise UserError(f"attacks: got {attack!r}, allowed is {', '.join(known)}")
    if swept and not multirun:
        key = swept[0].key_or_group
        raise UserError(f"{key}: several values need a sweep; add -m, or write '{key}=[…]' for a list")
    plain = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    runs = []
    with hydra.initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        for override in parsed:
            override.config_loader = GlobalHydra.instance().config_loader()  # of glob(…)
        if multirun:
            from rmu_exp.sweep import check as sweeps

            sweeps.check_choices(parsed)
            swept = sweeps.check(_with_hydra(plain, parsed), parsed, swept)
        first = [next(iter(_values(o)), None) for o in swept]
        chosen = [c for c in first if c is not None]
        runs.append(_compose([*plain, *chosen], parsed, name))
        for i, override in enumerate(swept):
            for value in list(_values(override))[1:]:
                others = [c for j, c in enumerate(first) if j != i and c is not None]
                runs.append(_compose([*plain, *others, value], parsed, name))
    GlobalHydra.instance().clear()
    return runs


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    interval = cast(IntervalSweep, override.value())  # of a search: its ends
    return [f"{key}={interval.start}", f"{key}={interval.end}"]


def _with_hydra(plain: list[str], parsed: list[Override]) -> DictConfig:
    """Hydra's own settings: the launcher and the sweeper."""
    try:
        with _strict():
            return hydra.compose("config", overrides=plain, return_hydra_config=True).hydra
    except HydraException as error:
        raise UserError(_translate(error, parsed, Run)) from error


def _compose(overrides: list[str], parsed: list[Override], name: str) -> Run | Judge:
    try:
        with _strict():
            composed = hydra.compose(name, overrides=overrides)
        if name == "config":
            return parse(composed)
        from rmu_exp.pipeline import judgement

        return parse_judge(judgement.taken_up(composed, [o.key_or_group for o in parsed]))
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" not in str(cause):
            raise UserError(one_line(cause)) from error
        raise UserError(_translate(error, parsed, Run if name == "config" else Judge)) from error


@contextmanager
def _strict() -> Iterator[None]:
    """Whatever Hydra raises at odd input is its refusal."""
    try:
        yield
    except (HydraException, UserError):
        raise
    except Exception as error:
        raise HydraException(f"{type(error).__name__}: {error}") from error


def _translate(error: HydraException, parsed: list[Override], schema: type) -> str:
    """Hydra's message as one line: the key, what was given, what is allowed."""
    text = str(error)
    for override in parsed:
        key, value = override.key_or_group, override.input_line or ""
        given = value.split("=", 1)[-1]
        if f"Could not override '{key}'" in text and key.startswith("hydra."):
            return f"{key}: no such key; `python train.py … --cfg hydra` shows those there are"
        if f"Could not override '{key}'" in text:
            if key.startswith("attacks."):
                return unknown_attack_key(key)
            near = key.rsplit(".", 1)[0] + "." if "." in key else ""
            known = [k for k in _known_keys(parsed, schema) if k.startswith(near) and "." not in k[len(near) :]]
            return unknown_key(key, known or keys_of(schema))
        if "Available options in" in text and f"'{key}/{given}'" in text.splitlines()[0]:
            listed = text.split("Available options in")[1].split("Config search path")[0]
            options = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
            return f"{key}: got {given!r}, allowed is {', '.join(options)}"
    return f"command line: {_first_lines(error)}"


def _known_keys(parsed: list[Override], schema: type) -> list[str]:
    """Every key, with the settings of the method that the command line names."""
    if schema is not Run:
        return keys_of(schema)
    named = [str(o.value()) for o in parsed if o.key_or_group == "method" and not o.is_sweep_override()]
    known = plugins.declared(plugins.METHODS, named[-1] if named else "rmu")
    return [*keys_of(Run), "method.name", *(f"method.{key}" for key in known)]


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])
