"""Unlearn and evaluate: layer=7 steer=6.5; --help explains the keys."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from rmu_exp.cli import entry


@hydra.main(version_base="1.3", config_path=str(entry.CONF), config_name="train")
def main(config: DictConfig) -> float:
    """One run. Returns what a sweeper may maximise: forget accuracy lost less general accuracy lost."""
    return entry.job(config)
