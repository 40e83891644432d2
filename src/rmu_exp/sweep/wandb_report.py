"""A sweep's report in W&B: one run of type ``sweep-report`` in the sweep's group, with its tables and plots."""

from __future__ import annotations

import dataclasses

from rmu_exp.settings import Tracking
from rmu_exp.sweep.summary import Summary
from rmu_exp.sweep.trials import Trial
from rmu_exp.tracking import open_tracker


def log_sweep(summary: Summary, settings: Tracking) -> None:
    """Send the tables of all trials and of the front, the plots, the page, and the chosen trial, if tracking is on."""
    group = settings.group or summary.folder.name
    about = {"folder": str(summary.folder), "trials": len(summary.trials), "front": [t.name for t in summary.front]}
    settings = dataclasses.replace(settings, group=group)
    tracker = open_tracker(settings, summary.folder, about, f"report-{group}", ["sweep-report"])
    chosen = _line(summary, summary.chosen) if summary.chosen else {}
    tracker.send(
        {f"sweep/chosen/{key}": value for key, value in chosen.items() if value is not None},
        tables={
            "sweep/trials": [_line(summary, t) for t in summary.trials],
            "sweep/front": [_line(summary, t) for t in summary.front],
        },
        files={"sweep/page": summary.folder / "report.html"} | {f"sweep/{p.stem}": p for p in summary.plots},
    )


def _line(summary: Summary, trial: Trial) -> dict[str, object]:
    """A trial as a table's line: its settings, its state, and its measures with their intervals."""
    settings = {k: v if isinstance(v, (int, float)) else str(v) for k, v in trial.settings.items()}
    line: dict[str, object] = {"trial": trial.name, "state": trial.state, "reason": trial.reason, **settings}
    for axis in summary.axes:
        found = axis.of(trial.results)
        values = (found.value, found.low, found.high) if found else (None, None, None)
        line |= dict(zip((axis.name, f"{axis.name}_low", f"{axis.name}_high"), values, strict=True))
    return line
