"""Unlearn and judge: ``python train.py layer=7 steer=6.5``; ``python train.py --help`` explains the keys."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from rmu_exp.cli import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    entry.run(config)


if __name__ == "__main__":
    entry.guard(main, Path(__file__).parent / "conf")
