"""Settings as a command line gives them, composed by Hydra in this process."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from rmu_exp.config import parse

CONF = Path(__file__).parent.parent / "conf"
parse.register()


def config(*words: str, name: str = "train", conf: Path = CONF) -> DictConfig:
    """What Hydra composes."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        return hydra.compose(name, overrides=[*words, "output=nowhere"])


def composed(*words: str, conf: Path = CONF):
    """The checked Run."""
    return parse.parse(config(*words, conf=conf))
