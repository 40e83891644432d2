"""The report of a sweep: report.md, plots/, report.html, W&B. Made anew from the trials' folders each time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import JsonValue

from rmu_exp.record.differing import shown
from rmu_exp.record.results import Results, State
from rmu_exp.report import objectives
from rmu_exp.report.markdown import render
from rmu_exp.report.objectives import Axis, TasksByAxis
from rmu_exp.report.style import save
from rmu_exp.report.table import Number, Table, interval, numbers, percent
from rmu_exp.settings import Tracking
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import front, plots, trials, worst_case
from rmu_exp.sweep.trials import Trial
from rmu_exp.tracking import open_tracker

STATES = {"done": "", "pruned": "", "failed": "", "running": "a process is working on it"}
STATES |= {"unfinished": "not started, or cut off"}
RULE = (
    "of the attacks that did what they were to do and leave enough of the general accuracy, the one with the highest "
    "corrected accuracy on the facts to choose by; if there are none, the one that leaves most"
)
FOLD = 40  # trials in report.md's table; all of them are in report.html
Measured = tuple[float, float, float] | None  # with its interval


@dataclass(frozen=True)
class Row:
    """A trial as report.html has it: accuracies on the axes and of groups of questions, seconds of training."""

    name: str
    state: str
    reason: str
    settings: dict[str, JsonValue]
    axes: dict[str, Measured]
    groups: dict[str, float]
    seconds: float | None
    front: bool
    chosen: bool


@dataclass(frozen=True)
class Summary:
    """All that a report shows.

    Attributes:
        axes: what the trials are compared by.
        front: those that no other beats on every axis.
        chosen: the one to take.
        plots: the files drawn.
        worst: what a search for the worst attack found; None: it was none.
    """

    folder: Path
    trials: list[Trial]
    axes: list[Axis]
    front: list[Trial]
    chosen: Trial | None
    plots: list[Path]
    worst: worst_case.WorstCase | None = None

    @property
    def first(self) -> Results | None:
        """The first trial's that was asked everything: it has what all share, the base model and the questions."""
        return next((t.results for t in self.trials if t.results and t.results.qa), None)

    @property
    def groups(self) -> list[str]:
        """Names of the groups of questions."""
        return [name for name, row in self.first.qa.items() if row.tasks is not None] if self.first else []

    @property
    def headline(self) -> str:
        """How many trials there are of each state, and the chosen one."""
        states = {state: sum(t.state == state for t in self.trials) for state in STATES}
        said = [f"{count} {'given up' if s == 'pruned' else s}" for s, count in states.items() if count or s == "done"]
        take = "none to choose from yet"
        if best := self.chosen:
            reached = [f"{axis.name} {_shown(axis, m.value)}" for axis in self.axes if (m := axis.of(best.results))]
            take = f"chosen: {best.name} ({', '.join(reached)})"
        return f"{len(self.trials)} trials: {', '.join(said)}; {take}"

    def row(self, trial: Trial) -> Row:
        """A trial's."""
        qa, train = (trial.results.qa, trial.results.train) if trial.results else ({}, None)
        return Row(
            name=trial.name,
            state=trial.state,
            reason=trial.reason,
            settings={key: _plain(value) for key, value in trial.settings.items()},
            axes={axis.name: _measure(axis, trial.results) for axis in self.axes},
            groups={g: after.acc for g in self.groups if g in qa and (after := qa[g].unlearned)},
            seconds=train.seconds if train else None,
            front=trial in self.front,
            chosen=trial is self.chosen,
        )


def figures(listed: Sequence[Trial]) -> dict[str, Figure]:
    """Name to figure, of what these trials have numbers for: forget against general accuracy, what was swept."""
    axes = objectives.choose(("forget", "general"), [t.results for t in listed if t.results])
    drawn = plots.figures(listed, axes, front.on_front(listed, axes), front.chosen(listed, axes))
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write(
    folder: Path,
    names: Sequence[str],
    asked: TasksByAxis | None = None,
    tracking: Tracking | None = None,
    bound: float | None = None,
) -> list[Trial]:
    """Write the report of the sweep in a folder, and show its end on the screen. Returns the trials.

    Args:
        names: the axes, such as ``forget`` and ``general``.
        asked: axis to the groups or tasks that it stands for, where they are not to be found by name.
        tracking: the Run's settings of W&B; None: off.
        bound: the part of general accuracy that an attack of a search must leave; None: as its trials say.

    Raises:
        UserError: no trials there, or an axis that they were not asked about.
    """
    listed = trials.read(folder)
    axes = objectives.choose(names, [t.results for t in listed if t.results], asked)
    best = front.on_front(listed, axes)
    worst = worst_case.find(listed, bound) if set(names) & set(objectives.ATTACKED) else None
    take = worst.chosen if worst else front.chosen(listed, axes)
    drawn = plots.draw_all(folder, listed, axes, best, take)
    if worst:
        drawn = [*save({"worst_case": worst_case.figure(worst)}, folder), *drawn]
        worst_case.write(worst, folder)
    summary = Summary(folder, listed, axes, best, take, drawn, worst)
    rows = list(map(summary.row, listed))
    write_atomic(folder / "report.md", _markdown(summary, rows))
    write_atomic(folder / "report.html", _page(summary, rows))
    log_sweep(summary, rows, tracking or Tracking())
    for line in worst_case.sentences(worst) if worst else ():
        print(line.replace("**", ""))
    print(f"{summary.headline}\nReport: {folder / 'report.md'} and report.html")
    return listed


def _markdown(summary: Summary, rows: Sequence[Row]) -> str:
    axes, names, keys = summary.axes, [axis.name for axis in summary.axes], trials.swept(summary.trials)
    by_name = {row.name: row for row in rows}
    best = [[str(i), t.name, *_cells(by_name[t.name].axes)] for i, t in enumerate(summary.front, 1)]
    best.append(["", "*base model*", *_cells({axis.name: _measure(axis, summary.first, "base") for axis in axes})])
    costs = front.costs(summary.front, axes)
    on_axes = {task for axis in axes for task in axis.tasks}
    groups = [name for name in summary.groups if name not in on_axes]
    body = []
    for row in rows[:FOLD]:
        state = "chosen" if row.chosen else "on the front" if row.front else row.state
        cells = [*(shown(row.settings.get(key, "")) for key in keys), state, *_cells(row.axes)]
        cells += [f"{100 * row.groups[g]:.1f}" if g in row.groups else "" for g in groups]
        body.append([*cells, "" if row.seconds is None else f"{row.seconds:.1f}"])
    left = [[r.name, r.state, r.reason.replace("|", "/") or STATES[r.state]] for r in rows if r.state != "done"]
    return render(
        "sweep.md.jinja",
        summary=summary,
        keys=keys,
        rule=RULE if summary.worst else front.rule(axes),
        worst=worst_case.sentences(summary.worst) if summary.worst else [],
        so_far=worst_case.table(summary.worst) if summary.worst else None,
        front=Table([Number(""), "trial", *numbers(*names)], best),
        volume=front.hypervolume(list(costs.values()), tuple(1.0 if axis.sign > 0 else 0.0 for axis in axes)),
        trials=Table([*keys, "state", *numbers(*names, *groups, "s")], body),
        more=len(rows) - len(body),
        left=Table(["trial", "state", "reason"], left),
    )


def _shown(axis: Axis, value: float) -> str:
    return f"{value:.3g}" if axis.name == "probability" else percent(value)


def _cells(axes: dict[str, Measured]) -> list[str]:
    """Measures with their intervals, in per cent."""
    return [f"{100 * m[0]:.1f} ({interval(m[1:])})" if m else "" for m in axes.values()]


def _page(summary: Summary, rows: Sequence[Row]) -> str:
    """report.html, one file without a network, with the data in it: keys, axes, and the rows."""
    first = summary.first
    shown = {
        "title": summary.folder.name,
        "axes": [{"name": a.name, "label": a.label, "sign": a.sign, "chance": a.chance(first)} for a in summary.axes],
        "trials": list(map(dataclasses.asdict, rows)),
        "base": {axis.name: _measure(axis, first, "base") for axis in summary.axes if axis.tasks},
        "keys": trials.swept(summary.trials),
        "groups": summary.groups,
    }
    inside = json.dumps(shown, allow_nan=False).replace("</", "<\\/")  # a name cannot end the script
    return (files("rmu_exp.sweep") / "page.html").read_text(encoding="utf-8").replace("/*DATA*/null", inside)


def _measure(axis: Axis, results: Results | None, state: State = "unlearned") -> Measured:
    found = axis.of(results, state)
    return (found.value, found.low, found.high) if found else None


def _plain(value: object) -> JsonValue:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else shown(value)


def log_sweep(summary: Summary, rows: Sequence[Row], settings: Tracking) -> None:
    """Send the tables of all trials and of the front, the plots, the page, and the chosen trial, if tracking is on.

    They are one run tagged ``sweep-report`` in the sweep's group.
    """
    group = settings.group or summary.folder.name
    about = {"folder": str(summary.folder), "trials": len(rows), "front": [t.name for t in summary.front]}
    settings = dataclasses.replace(settings, group=group)
    tracker = open_tracker(
        settings, summary.folder, about, f"report-{group}", ["sweep-report"], kind="report", quiet=True
    )
    lines = {row.name: _line(row) for row in rows}
    chosen = lines[summary.chosen.name] if summary.chosen else {}
    tracker.send(
        {f"sweep/chosen/{key}": value for key, value in chosen.items() if value is not None},
        tables={"sweep/trials": list(lines.values()), "sweep/front": [lines[t.name] for t in summary.front]},
        files={"sweep/page": summary.folder / "report.html"} | {f"sweep/plots/{p.stem}": p for p in summary.plots},
    )


def _line(row: Row) -> dict[str, object]:
    """A trial as a table's line: its settings, its state, and its measures with their intervals."""
    line: dict[str, object] = {"trial": row.name, "state": row.state, "reason": row.reason, **row.settings}
    for name, found in row.axes.items():
        line |= dict(zip((name, f"{name}_low", f"{name}_high"), found or (None, None, None), strict=True))
    return line
