"""Names of trials' folders: the swept keys and values, short, distinct, and safe for any file system.

Which keys are swept a trial knows from Hydra's own setting of the keys that do not appear in a name
(``hydra.job.config.override_dirname.exclude_keys``). Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import yaml
from omegaconf import DictConfig, OmegaConf

LONGEST = 120


def register() -> None:
    """Let ``hydra.sweep.subdir: ${trial_name:}`` be the name of a trial's folder."""
    OmegaConf.register_new_resolver("trial_name", lambda *, _root_: name(swept(_root_.hydra)), replace=True)


def override(fixed: Iterable[str]) -> str:
    """The override by which every trial learns which keys are not swept."""
    quoted = ",".join(f"'{key}'" for key in dict.fromkeys(fixed))
    return f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"


def swept(hydra: DictConfig) -> list[str]:
    """The swept overrides of a trial, by Hydra's part of its configuration."""
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    return [word for word in hydra.overrides.task if key_of(word) not in fixed]


def key_of(word: str) -> str:
    """The key of an override."""
    return word.partition("=")[0].lstrip("+~")


def settings(words: Iterable[str]) -> dict[str, object]:
    """Swept key to value."""
    return {key_of(word): yaml.safe_load(word.partition("=")[2]) for word in words}


def name(words: Sequence[str]) -> str:
    """The name of a trial with these swept overrides; other values have other names."""
    keys = [key_of(word) for word in words]
    short = _short(keys)
    parts = []
    for key, word in zip(keys, words, strict=True):
        value = word.partition("=")[2]
        plain = re.sub(", *", "+", value).strip("[]'\"{}")
        clean = re.sub(r"[^-+.=~A-Za-z0-9_]", "-", plain.replace(" ", ""))
        exact = clean == plain and "+" not in value
        parts.append(f"{short[key]}={clean}" + ("" if exact else f"-{sha256(value.encode()).hexdigest()[:8]}"))
    whole = ",".join(parts) or "trial"
    return whole if len(whole) <= LONGEST else f"{whole[:100]}-{sha256(whole.encode()).hexdigest()[:8]}"


def _short(keys: Sequence[str]) -> Mapping[str, str]:
    """Keys to their last parts, where these are distinct."""
    last = [re.split(r"[./]", key)[-1] for key in keys]
    return {k: s if last.count(s) == 1 else k.replace("/", ".") for k, s in zip(keys, last, strict=True)}
