"""Reporting: plots, report.md, W&B, and the table on the screen."""

from __future__ import annotations

import sys
from pathlib import Path

from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.report import attacks, markdown, plots, tables
from rmu_exp.report.card import card
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker


def report(folder: Path, results: Results, tracker: Tracker) -> None:
    """Write plots and report, which is the last that a run writes, and hand them on to the tracker."""
    drawn = plots.draw_all(folder)
    if (folder / rundir.MODEL).is_dir():
        write_atomic(folder / rundir.MODEL / "README.md", card(results))
    markdown.write_report(folder)
    tracker.finish(results, drawn, folder / rundir.DELTA)


def show(folder: Path, results: Results) -> None:
    """Print the results."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100)
    if results.qa:
        console.print(tables.on_screen(results.qa).rich(tables.title(results.run)))
    if line := attacks.sentence(results):
        console.print(line.replace("**", ""), highlight=False, soft_wrap=True)
    console.print(f"Results and plots: {folder}", highlight=False)
