"""The report of a sweep: report.md, plots/, report.html, W&B. Made anew from the trials' folders each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmu_exp.report.tables import percent
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import axes as axes_of
from rmu_exp.sweep import front, page, plots, trials
from rmu_exp.sweep.axes import Measure, TasksByAxis
from rmu_exp.sweep.summary import Summary
from rmu_exp.sweep.trials import Trial

REASONS = {"running": "a process is at it", "unfinished": "not started, or cut off", "failed": "", "pruned": ""}
STATES = ("done", "pruned", "failed", "running", "unfinished")
FOLD = 40  # trials in report.md's table; all of them are in report.html


def write(folder: Path, names: Sequence[str], asked: TasksByAxis | None = None, tracking: Any = None) -> list[Trial]:
    """Write the report of the sweep in a folder, and show its end on the screen. Returns the trials.

    Args:
        names: the axes, such as ``forget`` and ``general``.
        asked: axis to the groups or tasks that it stands for, where they are not to be found by name.
        tracking: the Run's settings of W&B; None for no W&B.

    Raises:
        UserError: no trials there, or an axis that they were not asked about.
    """
    listed = trials.read(folder)
    chosen_axes = axes_of.choose(names, [t.results for t in listed if t.results], asked)
    best, take = front.on_front(listed, chosen_axes), front.chosen(listed, chosen_axes)
    drawn = plots.draw_all(folder, listed, chosen_axes, best, take)
    summary = Summary(folder, listed, chosen_axes, best, take, drawn)
    write_atomic(folder / "report.md", "\n".join(markdown(summary)) + "\n")
    write_atomic(folder / "report.html", page.page(summary))
    if tracking is not None and tracking.get("kind") == "wandb":
        from rmu_exp.tracking.sweep import log_sweep

        log_sweep(summary, tracking)
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
    base = next((t.results for t in summary.trials if t.results.get("qa")), {})
    reference = tuple(1.0 if axis.sign > 0 else 0.0 for axis in axes)
    volume = front.hypervolume(list(front.costs(summary.front, axes).values()), reference)
    lines = ["## The front", "", "Trials that no other beats on every axis; accuracies in %, with 95 % intervals.", ""]
    lines += ["| | trial | " + " | ".join(axis.name for axis in axes) + " |", "|--:|---|" + "--:|" * len(axes)]
    rows = [(str(i), t.name, [axis.of(t.results) for axis in axes]) for i, t in enumerate(summary.front, 1)]
    rows.append(("", "*base model*", [axis.of(base, "base") if axis.tasks else None for axis in axes]))
    lines += [f"| {number} | {name} | " + " | ".join(measured(m) for m in ms) + " |" for number, name, ms in rows]
    return [*lines, "", f"Hypervolume of the front, of what is best on every axis: {volume:.4f}.", ""]


def _trials(summary: Summary) -> list[str]:
    keys, axes = trials.swept(summary.trials), summary.axes
    groups = _groups(summary)
    shown = summary.trials[:FOLD]
    head = [*keys, "state", *(axis.name for axis in axes), *groups, "s"]
    lines = ["## Trials", "", "Accuracies after unlearning in %; *s*: seconds of training with loading.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * (len(keys) + 1) + "--:|" * (len(axes) + len(groups) + 1)]
    for t in shown:
        mark = "chosen" if t is summary.chosen else "on the front" if t in summary.front else t.state
        cells = [trials.show(t.settings.get(key, "")) for key in keys] + [mark]
        cells += [measured(axis.of(t.results)) for axis in axes]
        qa = t.results.get("qa", {})
        cells += [f"{100 * qa[g]['unlearned']['acc']:.1f}" if "unlearned" in qa.get(g, {}) else "" for g in groups]
        cells.append(f"{t.results['train']['seconds']:.1f}" if "train" in t.results else "")
        lines.append("| " + " | ".join(cells) + " |")
    left = len(summary.trials) - len(shown)
    return [*lines, "", *([f"{left} more in report.html.", ""] if left else [])]


def _groups(summary: Summary) -> list[str]:
    """Groups of questions that no axis shows."""
    on_axes = {task for axis in summary.axes for task in axis.tasks}
    qa: dict[str, Any] = next((t.results["qa"] for t in summary.trials if t.results.get("qa")), {})
    return [name for name, row in qa.items() if "tasks" in row and name not in on_axes]


def _not_done(listed: Sequence[Trial]) -> list[str]:
    bad = [t for t in listed if t.state != "done"]
    if not bad:
        return []
    rows = [f"| {t.name} | {t.state} | {t.reason.replace('|', '/') or REASONS[t.state]} |" for t in bad]
    return ["## Trials without a full result", "", "| trial | state | reason |", "|---|---|---|", *rows, ""]
