"""The overrides of a sweep: which are swept, over which values, and how a trial's folder is named by them.

Which keys are swept a trial knows from Hydra's own setting of the keys that do not appear in a name
(``hydra.job.config.override_dirname.exclude_keys``). Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import cast

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rmu_exp.support.errors import UserError

LONGEST = 120


def sweep_of(words: Sequence[str], hydra_config: DictConfig) -> list[Override]:
    """The overrides of a sweep: the command line's, and those of the sweeper's ``params`` that it does not name."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    given = parser.parse_overrides(list(words))
    named = {o.key_or_group for o in given}
    params = hydra_config.sweeper.get("params") or {}
    own = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [*(o for o in own if o.key_or_group not in named), *given]


def split(overrides: Iterable[Override]) -> tuple[list[str], list[Override]]:
    """The words that are the same for all trials, and the overrides that are swept."""
    every = list(overrides)
    return [str(o.input_line) for o in every if not o.is_sweep_override()], [o for o in every if o.is_sweep_override()]


def once_each(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Command lines of single runs in which every swept value stands once, beside the first of the others."""
    plain, swept = split(overrides)
    found = [values(o) for o in swept]
    firsts = [mine[0] for mine in found]
    yield [*plain, *firsts]
    for i, mine in enumerate(found):
        for value in mine[1:]:
            yield [*plain, *firsts[:i], value, *firsts[i + 1 :]]


def values(override: Override) -> list[str]:
    """The values of a swept override, each as an override; of an interval its ends. Raises UserError: none."""
    key, name, given = override.get_key_element(), override.key_or_group, value_of(str(override.input_line))
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


def register() -> None:
    """Let ``hydra.sweep.subdir: ${trial_name:}`` be the name of a trial's folder."""
    OmegaConf.register_new_resolver("trial_name", lambda *, _root_: trial_name(swept_words(_root_.hydra)), replace=True)


def tell_trials(fixed: Iterable[str]) -> str:
    """The override by which every trial learns which keys are not swept."""
    quoted = ",".join(f"'{key}'" for key in dict.fromkeys(fixed))
    return f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"


def swept_words(hydra: DictConfig) -> list[str]:
    """The swept overrides of a trial, by Hydra's part of its configuration."""
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    return [word for word in hydra.overrides.task if key_of(word) not in fixed]


def key_of(word: str) -> str:
    """The key of an override."""
    return word.partition("=")[0].lstrip("+~")


def value_of(word: str) -> str:
    """The value of an override, as written."""
    return word.partition("=")[2]


def trial_settings(words: Iterable[str]) -> dict[str, object]:
    """Swept key to value."""
    return {key_of(word): yaml.safe_load(value_of(word)) for word in words}


def trial_name(words: Sequence[str]) -> str:
    """The name of a trial's folder: short, safe for any file system, another one for other values."""
    keys = [key_of(word) for word in words]
    last = [re.split(r"[./]", key)[-1] for key in keys]
    parts = []
    for key, short, value in zip(keys, last, map(value_of, words), strict=True):
        plain = re.sub(", *", "+", value).strip("[]'\"{}")
        clean = re.sub(r"[^-+.=~A-Za-z0-9_]", "-", plain.replace(" ", ""))
        exact = "" if clean == plain and "+" not in value else f"-{_mark(value)}"
        parts.append(f"{short if last.count(short) == 1 else key.replace('/', '.')}={clean}{exact}")
    whole = ",".join(parts) or "trial"
    return whole if len(whole) <= LONGEST else f"{whole[:100]}-{_mark(whole)}"


def _mark(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
