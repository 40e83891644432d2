"""The overrides of a sweep: which are swept, and over which values. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from rmu_exp.support.errors import UserError


def sweep_of(words: Sequence[str], hydra_config: DictConfig) -> list[Override]:
    """The overrides of a sweep: the command line's, and those of the sweeper's ``params`` that it does not name."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    given = parser.parse_overrides(list(words))
    named = {o.key_or_group for o in given}
    params = hydra_config.sweeper.get("params") or {}
    own = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [*(o for o in own if o.key_or_group not in named), *given]


def once_each(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Command lines of single runs in which every swept value stands once, beside the first of the others.

    Raises:
        UserError: a range is empty.
    """
    plain = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    found = [values(o) for o in overrides if o.is_sweep_override()]
    firsts = [mine[0] for mine in found]
    yield [*plain, *firsts]
    for i, mine in enumerate(found):
        for value in mine[1:]:
            yield [*plain, *firsts[:i], value, *firsts[i + 1 :]]


def values(override: Override) -> list[str]:
    """The values of a swept override, each as an override; of an interval its ends.

    Raises:
        UserError: there are none.
    """
    key, name = override.get_key_element(), override.key_or_group
    given = str(override.input_line).partition("=")[2]
    if override.is_discrete_sweep():
        try:
            found = [f"{key}={value}" for value in override.sweep_string_iterator()]
        except HydraException as error:
            raise UserError(f"{name}: {given} cannot be taken apart ({' '.join(str(error).split())})") from error
        if not found:
            raise UserError(f"{name}: {given} is empty; give a start below its end")
        return found
    interval = cast(IntervalSweep, override.value())
    start, end = cast(float, interval.start), cast(float, interval.end)
    if not start < end:
        raise UserError(f"{name}: {given} is empty; give a start below its end")
    if "log" in interval.tags and start <= 0:
        raise UserError(f"{name}: {given} starts at {start}; a logarithmic range starts above 0")
    return [f"{key}={start}", f"{key}={end}"]
