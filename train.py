"""Unlearn and evaluate: ``python train.py layer=7 steer=6.5``; ``python train.py --help`` explains the keys."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from rmu_exp.cli import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """One run. Returns what a sweeper may maximise: forget accuracy lost less general accuracy lost."""
    entry.announce(config)
    from rmu_exp.cli import job  # imports torch, which neither a mistyped key nor the first line need wait for

    return job.run(config)


if __name__ == "__main__":
    entry.start(main, Path(__file__).parent / "conf")
