"""One trial of a sweep, wherever its launcher runs it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from rmu_exp.pipeline.run import execute
from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.report.objectives import score
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import BusyError, RunError, UserError, first_line
from rmu_exp.sweep import names, trials
from rmu_exp.sweep.prune import EarlyStopRule


def run(asked: Callable[[], Run | Judge], folder: Path, hydra: DictConfig) -> float:
    """Run a trial in its folder; what goes wrong is noted there and ends nothing else.

    A trial that another process is at, or has finished, is left to it.

    Args:
        asked: gives the trial's settings.
        hydra: Hydra's part of the trial's configuration.

    Returns:
        The trial's :func:`metric`.
    """
    if not trials.is_planned(folder):
        trials.plan(folder, hydra.job.num, names.settings(names.swept(hydra)))
    try:
        wanted = asked()
        wanted.tracking.group = wanted.tracking.group or folder.parent.name
        if not is_finished(folder, wanted):
            print(f"trial {folder.name}", file=sys.stderr, flush=True)
            execute(wanted, folder, EarlyStopRule.of(folder.parent, hydra.sweeper))
    except BusyError:
        print(f"rmu_exp: {folder.name}: another process is at it", file=sys.stderr)
        return math.nan
    except Exception as error:
        known = isinstance(error, (UserError, RunError))
        trials.failed(folder, str(error) if known else f"{type(error).__name__}: {first_line(error)}")
        print(f"rmu_exp: {folder.name}: {error}", file=sys.stderr)
        return math.nan
    return metric(folder)


def is_finished(folder: Path, wanted: Run | Judge) -> bool:
    """Whether all that is asked for is in a folder, by its files alone: nothing is loaded."""
    if not trials.is_done(folder) or trials.digest_in(folder) != wanted.digest:
        return False
    results = results_json.load(folder / results_json.NAME)
    if results.pruned is not None:
        return True
    if isinstance(wanted, Run) and wanted.export and not (folder / rundir.MODEL).is_dir():
        return False
    stored = rundir.flat(rundir.settings(folder / rundir.CONFIG))
    asks = [stored.get("model.oracle"), stored.get("data.forget_tasks")]
    same = asks == [wanted.model.oracle, wanted.data.forget_tasks]
    made = {name: entry.settings for name, entry in results.attacks.items() if entry.error is None}
    return not wanted.attacks or (same and all(made.get(name) == values for name, values in wanted.attacks.items()))


def metric(folder: Path) -> float:
    """What a sweeper may maximise: forget accuracy lost less general accuracy lost; nan: not measured."""
    file = folder / results_json.NAME
    reached = score(results_json.load(file)) if file.is_file() else None
    return math.nan if reached is None else reached
