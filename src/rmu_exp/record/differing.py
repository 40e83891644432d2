"""What runs differ in: the settings of each as one flat table, and how a value is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import JsonValue

from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.settings import result_settings

Key = TypeVar("Key")


def settings_of(run: Results) -> rundir.Object:
    """What changes a run's result, by dotted key, its seed included.

    Older results have a part of their settings, or none: what they say of the run itself stands for the rest.
    """
    about, config = run.run, run.provenance.config if run.provenance else {}
    steer, alpha = (one(list[JsonValue](values)) for values in (about.steer, about.alpha))
    made_by = about.unlearned if about.kind == "judge" else about.method
    own: rundir.Object = {"method": made_by, "model": about.model, "layer": about.layer, "steer": steer, "alpha": alpha}
    own |= {f"method.{key}": value for key, value in about.settings.items()}
    if run.train:
        own |= {"train.kl_budget": run.train.kl_budget, "train.lr": run.train.lr}
    return own | {k: one(v) for k, v in rundir.flat(result_settings(config)).items()} | {"seed": about.seed}


def one(value: JsonValue) -> JsonValue:
    """A setting that is the same for every topic, as one value."""
    return value[0] if isinstance(value, list) and value and all(v == value[0] for v in value) else value


def differing(configs: Mapping[Key, rundir.Object]) -> dict[Key, rundir.Object]:
    """Of each configuration the keys in which they differ."""
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    varying = [k for k in keys if len({json.dumps(c.get(k)) for c in configs.values()}) > 1]
    return {key: {k: config.get(k) for k in varying} for key, config in configs.items()}


def usual(configs: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Of each key the value that more configurations have than any other; nothing, if none has all of these.

    Args:
        configs: with the same keys.
    """
    most: dict[str, str] = {}
    for key in next(iter(configs), {}):
        (value, n), *others = Counter(shown(config[key]) for config in configs).most_common(2)
        most |= {key: value} if not others or n > others[0][1] else {}
    there = any(all(most.get(key) == shown(value) for key, value in config.items()) for config in configs)
    return most if there else {}


def shown(value: object) -> str:
    """A value of a setting for a person: ``[6.5, 6.5]`` as ``6.5``, None as Hydra writes it."""
    if isinstance(value, (list, tuple)):
        same = list(dict.fromkeys(map(shown, value)))
        return same[0] if len(same) == 1 else ",".join(map(shown, value))
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
