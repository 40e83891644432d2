"""Comparing trials on several axes at once: the Pareto front, its hypervolume, and the trial to choose.

A point is a tuple of costs, each to be made small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rmu_exp.report.objectives import Axis
from rmu_exp.sweep.trials import Trial

Point = tuple[float, ...]
KEEP = 0.03  # general accuracy that may be lost


def dominates(a: Point, b: Point) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by the first cost."""
    kept = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    return sorted(kept, key=lambda i: points[i])


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that the points dominate, up to a reference that is worse than all that counts.

    Exact: of each point of the front its box, less what later points dominate of it.
    """
    inside = list({p for p in points if all(x < r for x, r in zip(p, reference, strict=True))})
    best = [inside[i] for i in front(inside)]
    return sum(
        math.prod(r - x for x, r in zip(p, reference, strict=True))
        - hypervolume([tuple(map(max, p, q)) for q in best[i + 1 :]], reference)
        for i, p in enumerate(best)
    )


def costs(trials: Sequence[Trial], axes: Sequence[Axis]) -> dict[str, Point]:
    """Name to costs, of the trials that were measured whole on every axis."""
    found = {}
    for trial in trials:
        point = tuple(axis.cost(m) for axis in axes if (m := axis.of(trial.results)))
        if trial.state == "done" and axes and len(point) == len(axes):
            found[trial.name] = point
    return found


def on_front(trials: Sequence[Trial], axes: Sequence[Axis]) -> list[Trial]:
    """The trials that no other beats on every axis."""
    by_name, points = {t.name: t for t in trials}, costs(trials, axes)
    names = list(points)
    return [by_name[names[i]] for i in front(list(points.values()))]


def chosen(trials: Sequence[Trial], axes: Sequence[Axis]) -> Trial | None:
    """The trial to take, by :func:`rule`."""
    by = {axis.name: axis for axis in axes}
    if not {"forget", "general"} <= set(by):
        return None
    target = by.get("worst", by["forget"])
    ranked: dict[tuple[float, float, float, str], Trial] = {}
    for trial in trials:
        general, base = by["general"].of(trial.results), by["general"].of(trial.results, "base")
        reached = target.of(trial.results)
        if trial.state == "done" and general and base and reached:
            lost = round(base.value - general.value, 9)  # 1 - 0.97 is not 0.03
            left = max(reached.value, by["forget"].chance(trial.results))
            ranked[max(0.0, lost - KEEP), left, lost, trial.name] = trial
    return ranked[min(ranked)] if ranked else None


def rule(axes: Sequence[Axis]) -> str:
    """The rule in words."""
    what = "accuracy after the worst attack" if any(a.name == "worst" for a in axes) else "forget accuracy"
    return (
        f"of the trials whose general accuracy is at most {100 * KEEP:g} points below the base model's (if there are "
        f"none, of those that lost least), the one with the lowest {what}, below chance counting as chance; "
        "at a tie, the one with the higher general accuracy"
    )
