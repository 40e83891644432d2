"""report.html: a sweep in one file that needs no server and no network; hover, filter, sort."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from rmu_exp.sweep import trials
from rmu_exp.sweep.axes import Axis
from rmu_exp.sweep.summary import Summary


def page(summary: Summary) -> str:
    """The page, with the data in it."""
    template = (files("rmu_exp.sweep") / "page.html").read_text(encoding="utf-8")
    inside = json.dumps(data(summary), allow_nan=False).replace("</", "<\\/")  # a name cannot end the script
    return template.replace("/*DATA*/null", inside)


def data(summary: Summary) -> dict[str, Any]:
    """What the page shows: keys, axes, and one object a trial."""
    front = {t.name for t in summary.front}
    first = next((t.results for t in summary.trials if t.results.get("qa")), {})
    groups = [name for name, row in first.get("qa", {}).items() if "tasks" in row]
    rows = []
    for t in summary.trials:
        qa = t.results.get("qa", {})
        rows.append(
            {
                "name": t.name,
                "state": t.state,
                "reason": t.reason,
                "settings": {key: _plain(value) for key, value in t.settings.items()},
                "axes": {axis.name: _measure(axis, t.results) for axis in summary.axes},
                "groups": {g: qa[g]["unlearned"]["acc"] for g in groups if "unlearned" in qa.get(g, {})},
                "seconds": t.results.get("train", {}).get("seconds"),
                "front": t.name in front,
                "chosen": t is summary.chosen,
            }
        )
    axes = [{"name": a.name, "label": a.label, "sign": a.sign, "chance": a.chance(first)} for a in summary.axes]
    base = {axis.name: _measure(axis, first, "base") for axis in summary.axes if axis.tasks}
    keys = trials.swept(summary.trials)
    return {"title": summary.folder.name, "keys": keys, "axes": axes, "groups": groups, "trials": rows, "base": base}


def _measure(axis: Axis, results: dict[str, Any], who: str = "unlearned") -> list[float] | None:
    found = axis.of(results, who)
    return [found.value, found.low, found.high] if found else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else trials.show(value)
