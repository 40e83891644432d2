"""What trials are compared by: forget accuracy (down), general accuracy (up), the worst attack (down)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from rmu_exp.support.errors import UserError

NAMES = ("forget", "general", "worst")
TasksByAxis = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Measure:
    """One trial on one axis: a share of questions answered right, with its 95 % interval where one is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: ``forget``, ``general`` or ``worst``.
        tasks: the groups or tasks of results.json whose questions are pooled; empty for ``worst``.
        sign: +1 when less is better, -1 when more is.
    """

    name: str
    tasks: tuple[str, ...]
    sign: int

    @property
    def label(self) -> str:
        """What it is, for an axis of a plot."""
        if self.name == "worst":
            return "forgotten questions right after the worst attack"
        return f"{self.name}: {' + '.join(self.tasks)}"

    def of(self, results: Mapping[str, Any], who: str = "unlearned") -> Measure | None:
        """The trial's measure; None when it was not measured. ``pruned`` trials have it on a part of the questions."""
        if self.name == "worst":
            return _worst(results.get("attacks", {}))
        qa = _questions(results)
        rows = [qa[task][who] for task in self.tasks if who in qa.get(task, {})]
        return _pooled(rows) if rows and len(rows) == len(self.tasks) else None

    def chance(self, results: Mapping[str, Any]) -> float:
        """Accuracy of a blind guess on its questions."""
        qa = _questions(results)
        rows = [qa[task] for task in self.tasks if task in qa]
        return sum(row["chance"] for row in rows) / len(rows) if rows else 0.0

    def cost(self, measure: Measure) -> float:
        """The measure as something to make small."""
        return self.sign * measure.value


def choose(
    names: Sequence[str], all_results: Sequence[Mapping[str, Any]], given: TasksByAxis | None = None
) -> list[Axis]:
    """The axes by name, over the questions that the trials were asked.

    Args:
        given: axis to the groups or tasks it stands for; what it leaves out is found by the groups' names.

    Raises:
        UserError: an axis that these trials have no questions for.
    """
    asked = [_questions(results) for results in all_results]
    qa = next((q for q in asked if q), asked[0] if asked else {})
    axes = []
    for name in names:
        if name not in NAMES:
            raise UserError(f"objectives: got {name!r}, allowed is {', '.join(NAMES)}")
        tasks = tuple((given or {}).get(name) or (() if name == "worst" else _by_name(name, qa)))
        unknown = [task for task in tasks if task not in qa]
        if unknown and qa:
            raise UserError(f"{name}: the trials were not asked {unknown[0]!r}; they were asked {', '.join(qa)}")
        axes.append(Axis(name, tasks, -1 if name == "general" else 1))
    return axes


def _questions(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a trial was asked: everything, or the part on which it was given up."""
    asked: Mapping[str, Any] = results.get("qa") or results.get("pruned", {}).get("qa", {})
    return asked


def _by_name(axis: str, qa: Mapping[str, Any]) -> tuple[str, ...]:
    """lore_forget; of WMDP bio and cyber, which are unlearned (chem is not); lore_general or mmlu."""
    named = [task for task in qa if axis in task and "open" not in task and "tasks" in qa[task]]
    if named:
        return tuple(named)
    if axis == "forget":
        return tuple(task for task in ("wmdp_bio", "wmdp_cyber") if task in qa)
    return ("mmlu",) if "mmlu" in qa else ()


def _pooled(rows: Sequence[Mapping[str, Any]]) -> Measure:
    """Several sets of questions as one; a single one as results.json has it."""
    if len(rows) == 1:
        return Measure(rows[0]["acc"], *rows[0]["ci95"])
    n = sum(row["n"] for row in rows)
    right = sum(round(row["acc"] * row["n"]) for row in rows)
    ci = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Measure(right / n, float(ci.low), float(ci.high))


def _worst(attacks: Mapping[str, Any]) -> Measure | None:
    """The highest forget accuracy that any attack reached."""
    reached = [row["forget_acc"]["after"] for row in attacks.values() if "after" in row.get("forget_acc", {})]
    measures = [
        Measure(r["acc"], *r.get("ci95", (r["acc"], r["acc"]))) if isinstance(r, Mapping) else Measure(r, r, r)
        for r in reached
    ]
    return max(measures, key=lambda m: m.value, default=None)
