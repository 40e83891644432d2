"""The report of a sweep: report.md, plots/, report.html, W&B. Made anew from the trials' folders each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmu_exp.report import objectives
from rmu_exp.report.objectives import Measure, TasksByAxis
from rmu_exp.report.table import Number, Table, numbers, percent
from rmu_exp.settings import Tracking
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import front, plots, trials
from rmu_exp.sweep.summary import Summary, log_sweep, page
from rmu_exp.sweep.trials import Trial

REASONS = {"running": "a process is working on it", "unfinished": "not started, or cut off", "failed": "", "pruned": ""}
STATES = ("done", "pruned", "failed", "running", "unfinished")
FOLD = 40  # trials in report.md's table; all of them are in report.html


def write(
    folder: Path, names: Sequence[str], asked: TasksByAxis | None = None, tracking: Tracking | None = None
) -> list[Trial]:
    """Write the report of the sweep in a folder, and show its end on the screen. Returns the trials.

    Args:
        names: the axes, such as ``forget`` and ``general``.
        asked: axis to the groups or tasks that it stands for, where they are not to be found by name.
        tracking: the Run's settings of W&B; None: off.

    Raises:
        UserError: no trials there, or an axis that they were not asked about.
    """
    listed = trials.read(folder)
    chosen_axes = objectives.choose(names, [t.results for t in listed if t.results], asked)
    best, take = front.on_front(listed, chosen_axes), front.chosen(listed, chosen_axes)
    drawn = plots.draw_all(folder, listed, chosen_axes, best, take)
    summary = Summary(folder, listed, chosen_axes, best, take, drawn)
    write_atomic(folder / "report.md", "\n".join(markdown(summary)) + "\n")
    write_atomic(folder / "report.html", page(summary))
    log_sweep(summary, tracking or Tracking())
    print(f"{_counts(listed)}; {_take(summary)}\nReport: {folder / 'report.md'} and report.html")
    return listed


def markdown(summary: Summary) -> list[str]:
    """report.md."""
    lines = [f"# Sweep of {', '.join(trials.swept(summary.trials)) or 'one setting'}", ""]
    lines += [f"**{_counts(summary.trials)}; {_take(summary)}**", ""]
    lines += [f"The rule: {front.rule(summary.axes)}.", "", "[All trials, to filter and sort](report.html)", ""]
    lines += [f"![{p.stem}](plots/{p.name})\n" for p in summary.plots]
    lines += _front(summary) + _trials(summary) + _not_done(summary.trials)
    return lines


def _counts(listed: Sequence[Trial]) -> str:
    states = {state: sum(t.state == state for t in listed) for state in STATES}
    told = [f"{count} {'given up' if s == 'pruned' else s}" for s, count in states.items() if count or s == "done"]
    return f"{len(listed)} trials: {', '.join(told)}"


def _take(summary: Summary) -> str:
    if summary.chosen is None:
        return "none to choose from yet"
    results = summary.chosen.results
    told = [f"{axis.name} {percent(m.value)}" for axis in summary.axes if (m := axis.of(results))]
    return f"chosen: {summary.chosen.name} ({', '.join(told)})"


def measured(measure: Measure | None) -> str:
    """A measure with its interval, in percent."""
    if measure is None:
        return ""
    around = f" ({100 * measure.low:.1f}–{100 * measure.high:.1f})" if measure.low < measure.high else ""
    return f"{100 * measure.value:.1f}{around}"


def _front(summary: Summary) -> list[str]:
    if not summary.front:
        return []
    axes = summary.axes
    reference = tuple(1.0 if axis.sign > 0 else 0.0 for axis in axes)
    volume = front.hypervolume(list(front.costs(summary.front, axes).values()), reference)
    lines = ["## The front", "", "Trials that no other beats on every axis; accuracies in %, with 95 % intervals.", ""]
    rows = [[str(i), t.name, *(measured(a.of(t.results)) for a in axes)] for i, t in enumerate(summary.front, 1)]
    rows.append(["", "*base model*", *(measured(axis.of(summary.first, "base")) for axis in axes)])
    table = Table([Number(""), "trial", *numbers(*(axis.name for axis in axes))], rows)
    return [*lines, table.markdown(), "", f"Hypervolume of the front, of what is best on every axis: {volume:.4f}.", ""]


def _trials(summary: Summary) -> list[str]:
    keys, axes = trials.swept(summary.trials), summary.axes
    shown = {task for axis in axes for task in axis.tasks}
    groups = [name for name in summary.groups if name not in shown]
    rows = []
    for t in summary.trials[:FOLD]:
        mark = "chosen" if t is summary.chosen else "on the front" if t in summary.front else t.state
        qa, train = (t.results.qa, t.results.train) if t.results else ({}, None)
        cells = [*(trials.show(t.settings.get(key, "")) for key in keys), mark]
        cells += [measured(axis.of(t.results)) for axis in axes]
        cells += [f"{100 * after.acc:.1f}" if g in qa and (after := qa[g].unlearned) else "" for g in groups]
        rows.append([*cells, f"{train.seconds:.1f}" if train else ""])
    table = Table([*keys, "state", *numbers(*(axis.name for axis in axes), *groups, "s")], rows)
    lines = ["## Trials", "", "Accuracies after unlearning in %; *s*: seconds of training with loading.", ""]
    left = len(summary.trials) - len(rows)
    return [*lines, table.markdown(), "", *([f"{left} more in report.html.", ""] if left else [])]


def _not_done(listed: Sequence[Trial]) -> list[str]:
    rows = [[t.name, t.state, t.reason.replace("|", "/") or REASONS[t.state]] for t in listed if t.state != "done"]
    table = Table(["trial", "state", "reason"], rows)
    return ["## Trials without a full result", "", table.markdown(), ""] if rows else []
