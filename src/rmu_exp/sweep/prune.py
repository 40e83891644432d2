"""Giving up a trial on a part of the questions, when trials that are done beat it beyond doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmu_exp.record.results import Results
from rmu_exp.report import objectives
from rmu_exp.sweep import front, trials


@dataclass(frozen=True)
class EarlyStopRule:
    """The rule by which a trial is given up.

    Attributes:
        sweep: the sweep's folder, where the other trials are.
        questions: how many questions a task are judged first.
        objectives: the axes of the search.
        asked: axis to the groups or tasks it stands for, where given.
    """

    sweep: Path
    questions: int
    objectives: tuple[str, ...]
    asked: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, sweep: Path, sweeper: Any) -> EarlyStopRule | None:
        """From the settings of a sweeper; None if it does not prune."""
        questions = sweeper.get("prune_on")
        if questions is None:
            return None
        asked = {key: list(sweeper.get(key) or []) for key in ("forget", "general")}
        return cls(sweep, questions, tuple(sweeper.get("objectives")), asked)

    def __call__(self, partly: Results) -> str | None:
        """Why the trial is given up, or None.

        It is if a trial that is done is at least as good on every axis as this one would be at the favourable
        end of each 95 % interval, and better on one.

        Args:
            partly: the trial's results so far, with ``pruned.qa`` over the first questions of each task.
        """
        others = trials.read(self.sweep)
        chosen = objectives.choose(self.objectives, [partly], self.asked)
        measures = [axis.of(partly) for axis in chosen]
        if not all(measures):
            return None
        best = tuple(m.low if axis.sign > 0 else -m.high for axis, m in zip(chosen, measures, strict=True) if m)
        for name, point in front.costs(others, chosen).items():
            if front.dominates(point, best):
                return f"on {self.questions} questions a task clearly beaten by {name}"
        return None
