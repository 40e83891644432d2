"""report.html: a sweep in one file that needs no server and no network; hover, filter, sort."""

from __future__ import annotations

import json
from importlib.resources import files

from pydantic import JsonValue

from rmu_exp.record.results import Results, State
from rmu_exp.report.objectives import Axis
from rmu_exp.sweep import trials
from rmu_exp.sweep.summary import Summary


def page(summary: Summary) -> str:
    """The page, with the data in it."""
    template = (files("rmu_exp.sweep") / "page.html").read_text(encoding="utf-8")
    inside = json.dumps(data(summary), allow_nan=False).replace("</", "<\\/")  # a name cannot end the script
    return template.replace("/*DATA*/null", inside)


def data(summary: Summary) -> dict[str, JsonValue]:
    """What the page shows: keys, axes, and one object per trial."""
    front, first, groups = {t.name for t in summary.front}, summary.first, summary.groups
    rows: list[JsonValue] = []
    for t in summary.trials:
        qa = t.results.qa if t.results else {}
        train = t.results.train if t.results else None
        rows.append(
            {
                "name": t.name,
                "state": t.state,
                "reason": t.reason,
                "settings": {key: _plain(value) for key, value in t.settings.items()},
                "axes": {axis.name: _measure(axis, t.results) for axis in summary.axes},
                "groups": {g: after.acc for g in groups if g in qa and (after := qa[g].unlearned)},
                "seconds": train.seconds if train else None,
                "front": t.name in front,
                "chosen": t is summary.chosen,
            }
        )
    axes: list[JsonValue] = [
        {"name": a.name, "label": a.label, "sign": a.sign, "chance": a.chance(first)} for a in summary.axes
    ]
    base = {axis.name: _measure(axis, first, "base") for axis in summary.axes if axis.tasks}
    shown: dict[str, JsonValue] = {"title": summary.folder.name, "axes": axes, "trials": rows, "base": base}
    return shown | {"keys": [*trials.swept(summary.trials)], "groups": [*groups]}


def _measure(axis: Axis, results: Results | None, state: State = "unlearned") -> JsonValue:
    found = axis.of(results, state)
    return [found.value, found.low, found.high] if found else None


def _plain(value: object) -> JsonValue:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else trials.show(value)
