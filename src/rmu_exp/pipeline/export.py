"""Exporting: the full checkpoint, when it is asked for."""

from __future__ import annotations

from rmu_exp.pipeline.job import Job
from rmu_exp.tracking import Tracker


class Exporting:
    """Writes model/."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def preflight(self) -> None:
        """Nothing to refuse."""

    def carry_out(self, tracker: Tracker) -> None:
        folder = self.job.folder / "model"
        if self.job.run.export and not folder.exists():
            from rmu_exp.model.export import export

            export(self.job.checkpoint, self.job.changes, folder)
