"""A sweep from the checked command line to its report. What happens in between is Hydra's: any sweeper, any launcher.

Trials leave files in their folders that say how they went, so that it does not matter where they ran or whether
whoever started them is still there.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from pydantic import BaseModel, ValidationError

from rmu_exp.record import rundir
from rmu_exp.settings import Judge, Run, Tracking, digest_of, result_settings
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import check, report, trials
from rmu_exp.sweep.overrides import split, trial_name, trial_settings, values

NOTES = "sweep.yaml"


class Notes(BaseModel):
    """What sweep.yaml keeps, so that the same command resumes the sweep and its report can be written again.

    Attributes:
        swept: the swept keys.
        one: the swept values of one trial, with which ``settings`` were composed.
        objectives, asked: what the report compares, and the tasks that each axis stands for.
        trials: names of the trials' folders; empty when the sweeper chooses as it goes.
    """

    swept: list[str]
    one: list[str] = []
    settings: dict[str, Any] = {}
    objectives: list[str]
    asked: dict[str, list[str]]
    tracking: dict[str, Any] = {}
    trials: list[str] = []

    @classmethod
    def read(cls, folder: Path) -> Notes:
        """The notes of a sweep's folder. Raises UserError when they are damaged."""
        try:
            return cls.model_validate(rundir.settings(folder / NOTES))
        except ValidationError as error:
            raise UserError(f"{folder / NOTES}: damaged ({first_line(error)}); remove it") from error


def begin(
    config: DictConfig,
    overrides: Sequence[Override],
    settings: Callable[[list[str]], Run | Judge],
    compared: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a sweep that cannot work, or a folder that holds something else; then note it and plan its trials.

    Args:
        config: the composed configuration, Hydra's part included.
        overrides: the command line's, and the sweeper's own.
        settings: gives the settings of a command line without a sweep.
        compared: what the report compares: ``objectives``, and the tasks of ``forget`` and ``general``.

    Raises:
        UserError: in one line.
    """
    check.check(config.hydra, overrides)
    check.axes("hydra.callbacks.sweep.objectives", compared["objectives"])
    folder, (plain, swept) = Path(config.hydra.sweep.dir), split(overrides)
    found = [values(o) for o in swept]
    combinations = list(itertools.product(*found)) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
    one = [mine[0] for mine in found]  # the settings that are not swept are compared by those of one trial
    keys = sorted(o.key_or_group for o in swept)
    if (folder / rundir.CONFIG).is_file():
        raise UserError(f"output: {folder} holds a single run; choose another folder")
    before = Notes.read(folder) if (folder / NOTES).is_file() else None
    one = before.one or one if before else one
    now = settings([*plain, *one])
    if before:
        _same(folder, before, keys, now)
    own = {key: list(config.hydra.sweeper.get(key) or value) for key, value in compared.items()}
    notes = Notes(
        swept=keys,
        one=one,
        settings=dataclasses.asdict(now),
        objectives=own.pop("objectives"),
        asked=own,
        tracking=dataclasses.asdict(now.tracking),
        trials=[trial_name(words) for words in combinations],
    )
    write_atomic(folder / NOTES, yaml.safe_dump(notes.model_dump(), sort_keys=False))
    places = [folder / name for name in notes.trials]
    done = sum(map(trials.is_done, places))
    for number, (place, words) in enumerate(zip(places, combinations, strict=True)):
        trials.plan(place, number, trial_settings(words))
    if combinations:
        there = f" ({done} done before)" if done else ""
        print(f"{len(combinations)} trials{there}: {folder}", file=sys.stderr)


def _same(folder: Path, before: Notes, swept: list[str], now: Run | Judge) -> None:
    """Refuse a folder whose trials have other settings, beside the swept ones, than those to come."""
    other = f"output: {folder} holds another sweep"
    if before.swept != swept:
        had, has = ", ".join(before.swept), ", ".join(swept)
        raise UserError(f"{other} (of {had or 'nothing'}; now: of {has or 'nothing'}); choose another folder")
    if digest_of(before.settings) == now.digest:
        return
    flat_had, flat_has = (rundir.flat(result_settings(s)) for s in (before.settings, dataclasses.asdict(now)))
    key = next((k for k in flat_has if flat_has[k] != flat_had.get(k)), "settings")
    raise UserError(f"{other} ({key}: {flat_had.get(key)}; now: {flat_has.get(key)}); choose another folder")


def finish(folder: Path, why: str = "") -> int:
    """Write the report of a sweep, whatever became of its trials. Returns the exit status.

    Args:
        why: what ended it early.
    """
    notes = Notes.read(folder)
    listed = report.write(folder, notes.objectives, notes.asked, Tracking(**notes.tracking))
    mine = set(notes.trials) or {t.name for t in listed}
    bad = [t for t in listed if t.name in mine and t.state in ("failed", "unfinished")]
    for trial in bad:
        print(f"rmu_exp: {trial.name}: {trial.state}{': ' * bool(trial.reason)}{trial.reason}", file=sys.stderr)
    if not (bad or why):
        return 0
    what = why or f"{len(bad)} of {len(listed)} trials did not finish"
    print(f"rmu_exp: {what}; the same command with output={folder} runs what is not done", file=sys.stderr)
    return 1
