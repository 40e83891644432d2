"""What a sweep's report shows beside report.md: report.html, one file without a network; and W&B."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import JsonValue

from rmu_exp.record.results import Results, State
from rmu_exp.report.objectives import Axis
from rmu_exp.settings import Tracking
from rmu_exp.sweep import trials
from rmu_exp.sweep.trials import Trial
from rmu_exp.tracking import open_tracker


@dataclass(frozen=True)
class Summary:
    """All that a report shows.

    Attributes:
        axes: what the trials are compared by.
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


def page(summary: Summary) -> str:
    """report.html, with the data in it: keys, axes, and one object per trial."""
    first, groups = summary.first, summary.groups
    rows = []
    for t in summary.trials:
        qa, train = (t.results.qa, t.results.train) if t.results else ({}, None)
        rows.append(
            {
                "name": t.name,
                "state": t.state,
                "reason": t.reason,
                "settings": {key: _plain(value) for key, value in t.settings.items()},
                "axes": {axis.name: _measure(axis, t.results) for axis in summary.axes},
                "groups": {g: after.acc for g in groups if g in qa and (after := qa[g].unlearned)},
                "seconds": train.seconds if train else None,
                "front": t in summary.front,
                "chosen": t is summary.chosen,
            }
        )
    shown = {
        "title": summary.folder.name,
        "axes": [{"name": a.name, "label": a.label, "sign": a.sign, "chance": a.chance(first)} for a in summary.axes],
        "trials": rows,
        "base": {axis.name: _measure(axis, first, "base") for axis in summary.axes if axis.tasks},
        "keys": trials.swept(summary.trials),
        "groups": groups,
    }
    inside = json.dumps(shown, allow_nan=False).replace("</", "<\\/")  # a name cannot end the script
    return (files("rmu_exp.sweep") / "page.html").read_text(encoding="utf-8").replace("/*DATA*/null", inside)


def _measure(axis: Axis, results: Results | None, state: State = "unlearned") -> list[float] | None:
    found = axis.of(results, state)
    return [found.value, found.low, found.high] if found else None


def _plain(value: object) -> JsonValue:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else trials.show(value)


def log_sweep(summary: Summary, settings: Tracking) -> None:
    """Send the tables of all trials and of the front, the plots, the page, and the chosen trial, if tracking is on.

    They are one run of type ``sweep-report`` in the sweep's group.
    """
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
        names = (axis.name, f"{axis.name}_low", f"{axis.name}_high")
        line |= dict(zip(names, _measure(axis, trial.results) or (None, None, None), strict=True))
    return line
