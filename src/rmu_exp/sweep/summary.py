"""What a sweep's report shows, on whatever page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmu_exp.sweep.axes import Axis
from rmu_exp.sweep.trials import Trial


@dataclass(frozen=True)
class Summary:
    """All that a report shows.

    Attributes:
        trials: all trials.
        axes: what they are compared by.
        front: those that no other beats on every axis.
        chosen: the one to take.
        plots: the files drawn.
    """

    folder: Path
    trials: list[Trial]
    axes: list[Axis]
    front: list[Trial]
    chosen: Trial | None
    plots: list[Path]
