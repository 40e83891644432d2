"""A sweep's report in W&B: one run of type ``sweep-report`` in the sweep's group, with its tables and plots."""

from __future__ import annotations

from typing import Any

from rmu_exp.sweep.summary import Summary
from rmu_exp.tracking import OFF, switched
from rmu_exp.tracking.weights_and_biases import WandbTracker


def log_sweep(summary: Summary, tracking: Any) -> None:
    """Send the tables of all trials and of the front, the plots, the page, and the chosen trial; not if switched off.

    Args:
        tracking: the Run's ``tracking`` settings.
    """
    if switched(tracking.get("mode") or "auto") == OFF:
        return
    group = tracking.get("group") or summary.folder.name
    about = {"folder": str(summary.folder), "trials": len(summary.trials), "front": [t.name for t in summary.front]}
    where = (
        tracking.get("project") or "rmu_exp",
        tracking.get("entity"),
        tracking.get("mode") or "auto",
        tracking.get("wait") or 60.0,
    )
    tracker = WandbTracker(summary.folder, about, f"report-{group}", group, ["sweep-report"], *where)
    lines = [_line(summary, t) for t in summary.trials]
    ended: dict[str, Any] = {f"sweep/{p.stem}": tracker.wandb.Image(str(p)) for p in summary.plots}
    ended["sweep/trials"] = tracker.table(lines)
    ended["sweep/front"] = tracker.table([_line(summary, t) for t in summary.front])
    ended["sweep/page"] = tracker.wandb.Html(str(summary.folder / "report.html"))
    if summary.chosen is not None:
        ended |= {f"sweep/chosen/{k}": v for k, v in _line(summary, summary.chosen).items() if v is not None}
    tracker.send(ended)


def _line(summary: Summary, trial: Any) -> dict[str, Any]:
    """A trial as a table's line: its settings, its state, and its measures with their intervals."""
    settings = {k: v if isinstance(v, (int, float)) else str(v) for k, v in trial.settings.items()}
    line: dict[str, Any] = {"trial": trial.name, "state": trial.state, "reason": trial.reason} | settings
    for axis in summary.axes:
        found = axis.of(trial.results)
        values = (found.value, found.low, found.high) if found else (None, None, None)
        line |= dict(zip((axis.name, f"{axis.name}_low", f"{axis.name}_high"), values, strict=True))
    return line
