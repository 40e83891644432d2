"""What a tracker does, and whether one is wanted. Knows nothing of W&B's library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmu_exp.record.results import Results

OFF = "off"
Line = Mapping[str, object]


class Tracker:
    """Tracks nothing; the base of those that do."""

    def log(self, metrics: Line, step: int) -> None:
        """One training step's metrics."""

    def finish(self, results: Results, plots: Sequence[Path], delta: Path) -> None:
        """The results, once everything is measured; ends tracking."""

    def send(self, values: Line, tables: Mapping[str, Sequence[Line]], files: Mapping[str, Path]) -> None:
        """Log values, tables (whose lines need not have the same keys), pictures and pages once; ends tracking."""

    def close(self) -> None:
        """End tracking, also when the run failed; may be called twice."""


def switched(mode: str) -> str:
    """What is wanted of W&B: its own WANDB_MODE wins over ``mode``; ``off`` when that says disabled."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower() or mode
    return {"disabled": OFF, "dryrun": "offline", "run": "online"}.get(wanted, wanted)
