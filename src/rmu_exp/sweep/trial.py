"""One trial of a sweep, wherever its launcher runs it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from rmu_exp.pipeline.evaluate import EarlyStop
from rmu_exp.pipeline.run import execute
from rmu_exp.pipeline.session import claimed
from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.report import objectives
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import BusyError, RunError, UserError, first_line
from rmu_exp.sweep import front, overrides, trials

RECENT = 9  # trials by whose ends the pace of a sweep is measured


def run(asked: Callable[[], Run | Judge], folder: Path, hydra: DictConfig) -> float:
    """Run a trial in its folder; what goes wrong is noted there and ends nothing else.

    A trial that another process works on, or has finished, is left to it.

    Args:
        asked: gives the trial's settings.
        hydra: Hydra's part of the trial's configuration.

    Returns:
        The trial's :func:`metric`.
    """
    try:
        with claimed(folder):  # before the trial is noted: what is noted and nobody's counts as cut off
            if not (folder / trials.TRIAL).is_file():
                trials.plan(folder, hydra.job.num, overrides.trial_settings(overrides.swept_words(hydra)))
            wanted = asked()
            wanted.tracking.group = wanted.tracking.group or folder.parent.name
            if not is_finished(folder, wanted):
                print(f"trial {folder.name}", file=sys.stderr, flush=True)
                began = time.monotonic()
                execute(wanted, folder, early_stop(folder.parent, hydra.sweeper))
                with suppress(UserError):  # a damaged neighbour is the report's to tell
                    print(so_far(folder, time.monotonic() - began, hydra.sweeper.get("n_trials")), file=sys.stderr)
    except BusyError:
        print(f"rmu_exp: {folder.name}: another process works on it", file=sys.stderr)
        return math.nan
    except Exception as error:
        known = isinstance(error, (UserError, RunError))
        trials.failed(folder, str(error) if known else f"{type(error).__name__}: {first_line(error)}")
        print(f"rmu_exp: {folder.name}: {error}", file=sys.stderr)
        return math.nan
    return metric(folder)


def so_far(folder: Path, seconds: float, searched: int | None = None) -> str:
    """How far the sweep is with this trial, in a line: how many of how many, time left, the best so far.

    Args:
        seconds: that the trial took; used until others have shown how fast they follow each other.
        searched: how many a search tries; None: those that are planned.
    """
    found = trials.read(folder.parent)
    over = [t for t in found if t.state in ("done", "pruned", "failed")]
    ends = sorted(f.stat().st_mtime for t in over if t.folder and (f := t.folder / results_json.NAME).is_file())[
        -RECENT:
    ]
    pace = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 2 else seconds
    rest = max(0, (searched or len(found)) - len(over))
    left = f"; about {rest * pace / 60:.0f} min left" if rest else ""
    scored = {t.name: s for t in over if t.results and (s := objectives.score(t.results)) is not None}
    best = max(scored, key=lambda name: scored[name], default=None)
    gain = f"; best so far {best} (forget lost less general lost: {100 * scored[best]:.1f} points)" if best else ""
    return f"trial {folder.name}: {len(over)} of {searched or len(found)} are over{left}{gain}"


def is_finished(folder: Path, wanted: Run | Judge) -> bool:
    """Whether all that is asked for is in a folder, by its files alone: nothing is loaded."""
    if not trials.is_done(folder) or not (folder / rundir.CONFIG).is_file():
        return False
    if rundir.of(folder / rundir.CONFIG).digest != wanted.digest:
        return False
    results = results_json.load(folder / results_json.NAME)
    if results.pruned is not None:
        return True
    if isinstance(wanted, Run) and wanted.export and not (folder / rundir.MODEL).is_dir():
        return False
    same = trials.asked(rundir.settings(folder / rundir.CONFIG)) == trials.asked(dataclasses.asdict(wanted))
    made = {name: entry.settings for name, entry in results.attacks.items() if entry.error is None}
    return not wanted.attacks or (same and all(made.get(name) == values for name, values in wanted.attacks.items()))


def metric(folder: Path) -> float:
    """What a sweeper may maximise: forget accuracy lost less general accuracy lost; nan: not measured."""
    file = folder / results_json.NAME
    reached = objectives.score(results_json.load(file)) if file.is_file() else None
    return math.nan if reached is None else reached


def early_stop(sweep: Path, sweeper: DictConfig) -> EarlyStop | None:
    """The early stopping rule in the settings of a sweeper; None if it does not prune.

    A trial is given up on a part of the questions if a trial of the sweep that is done is at least as good on every
    axis as this one would be at the favourable end of each 95 % interval, and better on one.
    """
    if (questions := sweeper.get("prune_on")) is None:
        return None
    asked = {key: sweeper[key] for key in ("forget", "general")}

    def because(partly: Results) -> str | None:
        axes = objectives.choose(sweeper.objectives, [partly], asked)
        best = [m.low if axis.sign > 0 else -m.high for axis in axes if (m := axis.of(partly))]
        if len(best) < len(axes):
            return None
        for name, point in front.costs(trials.read(sweep), axes).items():
            if front.dominates(point, tuple(best)):
                return f"on {questions} questions per task clearly beaten by {name}"
        return None

    return EarlyStop(questions, because)
