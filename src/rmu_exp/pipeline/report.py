"""Reporting: plots, report.md, W&B, and the table on the screen."""

from __future__ import annotations

import sys

from rmu_exp.pipeline.job import Job
from rmu_exp.report import attacks as attacks_report
from rmu_exp.report import markdown, plots, tables
from rmu_exp.report.card import card
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker


class Reporting:
    """Shows what results.json holds; report.md is what a run writes last."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def preflight(self) -> None:
        """Nothing to refuse."""

    def carry_out(self, tracker: Tracker) -> None:
        from rich.console import Console

        folder, results = self.job.folder, self.job.results
        drawn = plots.draw_all(folder)
        markdown.write_report(folder)
        if (folder / "model").is_dir():
            write_atomic(folder / "model" / "README.md", card(results))
        tracker.finish(results, drawn, self.job.delta)
        console = Console(width=None if sys.stdout.isatty() else 100)
        if "qa" in results:
            console.print(tables.qa_table(results))
        if line := attacks_report.sentence(results):
            console.print(line.replace("**", ""), highlight=False, soft_wrap=True)
        console.print(f"Results and plots: {folder}", highlight=False)
