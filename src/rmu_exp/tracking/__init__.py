"""Tracking of a run. A tracker only listens: whatever happens to it, the run goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

OFF = "off"


class Tracker:
    """Tracks nothing; the base of those that do."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """One training step's metrics."""

    def finish(self, results: dict[str, Any], plots: list[Path], delta: Path) -> None:
        """The results, once everything is measured."""

    def close(self) -> None:
        """End tracking, also when the run failed; may be called twice."""


def switched(mode: str) -> str:
    """What is wanted of W&B: its own WANDB_MODE wins over ``mode``; ``off`` when that says disabled."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower() or mode
    return {"disabled": OFF, "dryrun": "offline", "run": "online"}.get(wanted, wanted)


def open_tracker(
    kind: str,
    folder: Path,
    config: dict[str, Any],
    name: str,
    group: str | None,
    tags: list[str],
    project: str,
    entity: str | None,
    mode: str,
    wait: float,
) -> Tracker:
    """A tracker by its kind: ``off`` or ``wandb`` (see :mod:`rmu_exp.tracking.weights_and_biases`)."""
    mode = switched(mode)
    if OFF in (kind, mode):
        return Tracker()
    from rmu_exp.tracking.weights_and_biases import WandbTracker

    return WandbTracker(folder, config, name, group, tags, project, entity, mode, wait)
