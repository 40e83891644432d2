"""What a sweep's report shows, on whatever page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmu_exp.record.results import Results
from rmu_exp.report.objectives import Axis
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

    @property
    def first(self) -> Results | None:
        """The first trial's that was asked everything: it has what all share, the base model and the questions."""
        return next((t.results for t in self.trials if t.results and t.results.qa), None)

    @property
    def groups(self) -> list[str]:
        """Names of the groups of questions."""
        return [name for name, row in self.first.qa.items() if row.tasks is not None] if self.first else []
