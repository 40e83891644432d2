"""A sweep from the checked command line to its report. What happens in between is Hydra's: any sweeper, any launcher.

Trials leave files in their folders that say how they went, so that it does not matter where they ran or whether
whoever started them is still there.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from pydantic import BaseModel, ValidationError

from rmu_exp import tracking
from rmu_exp.pipeline.judgement import refuse_missing
from rmu_exp.record import rundir
from rmu_exp.report import objectives
from rmu_exp.settings import Judge, Run, Tracking, digest_of, result_settings
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import report, trials
from rmu_exp.sweep.overrides import split, trial_name, trial_settings, value_of, values

NEEDS = {  # the last part of a target to the extra that installs what it needs, and a module of that
    "SlurmLauncher": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "RayLauncher": ("ray", "ray"),
    "RmuOptunaSweeper": ("search", "optuna"),
}


class Notes(BaseModel):
    """What sweep.yaml keeps, so that the same command resumes the sweep and its report can be written again.

    Attributes:
        swept: the swept keys.
        one: the swept values of one trial, with which ``settings`` were composed.
        objectives, asked: what the report compares, and the tasks that each axis stands for.
        trials: names of the trials' folders; empty when the sweeper chooses as it goes.
        ranges: the swept overrides, where the sweeper chooses as it goes; of others its trials mean other values.
    """

    swept: list[str]
    one: list[str] = []
    settings: dict[str, Any] = {}
    objectives: list[str]
    asked: dict[str, list[str]]
    tracking: dict[str, Any] = {}
    trials: list[str] = []
    ranges: list[str] = []

    @property
    def bound(self) -> float | None:
        """The part of general accuracy that an attack of a search must leave; None: it is none."""
        bound = self.settings.get("attacker", {}).get("bound")
        return bound if isinstance(bound, float) else None

    @classmethod
    def read(cls, folder: Path) -> Notes:
        """The notes of a sweep's folder. Raises UserError when they are damaged."""
        try:
            return cls.model_validate(rundir.settings(folder / rundir.SWEEP))
        except ValidationError as error:
            raise UserError(f"{folder / rundir.SWEEP}: damaged ({first_line(error)}); remove it") from error


def check(hydra: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse a launcher or a sweeper that cannot work here, and an interval without a search.

    Args:
        hydra: Hydra's own settings.
        overrides: all of the sweep's.
    """
    kinds = {group: hydra[group]._target_.rpartition(".")[2] for group in ("launcher", "sweeper")}
    for group, name in kinds.items():
        if name in NEEDS and find_spec(NEEDS[name][1]) is None:
            raise UserError(f"hydra/{group}: {name} is not installed; pip install 'rmu_exp[{NEEDS[name][0]}]'")
    if kinds["launcher"] == "SlurmLauncher":
        _slurm_answers()
    _, swept = split(overrides)
    if kinds["sweeper"] == "BasicSweeper":
        size = hydra.sweeper.max_batch_size
        if size is not None and size < 1:
            raise UserError(f"hydra.sweeper.max_batch_size: got {size}, allowed is 1 or more, or null for all")
        for o in swept:
            if not o.is_discrete_sweep():
                wanted = "needs a search; add hydra/sweeper=rmu_optuna, or list values"
                raise UserError(f"{o.key_or_group}: {value_of(str(o.input_line))} {wanted}")
    elif kinds["sweeper"] == "RmuOptunaSweeper":
        _search(hydra.sweeper, swept)


def _slurm_answers() -> None:
    if shutil.which("sbatch") is None:
        raise UserError("hydra/launcher: no sbatch here; start it where Slurm's commands are, or choose joblib or ray")
    done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=120)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(f"hydra/launcher: Slurm does not answer ({line}); is slurmctld up, and munge?")


def _search(sweeper: DictConfig, swept: Sequence[Override]) -> None:
    if not swept:
        wanted = "give a range, such as 'steer=interval(1,10)', or leave out the search"
        raise UserError(f"hydra/sweeper: nothing to search; {wanted}")
    for key in ("n_trials", "n_jobs", "prune_on"):
        count = sweeper[key]
        if not (count is None and key == "prune_on") and (type(count) is not int or count < 1):
            raise UserError(f"hydra.sweeper.{key}: got {count!r}, allowed is a whole number, 1 or more")
    if sweeper.sampler not in ("tpe", "nsga2", "random"):
        raise UserError(f"hydra.sweeper.sampler: got {sweeper.sampler!r}, allowed is tpe, nsga2, random")
    objectives.known("hydra.sweeper.objectives", sweeper.objectives)
    if sweeper.prune_on is not None and (late := {"worst", *objectives.ATTACKED}.intersection(sweeper.objectives)):
        raise UserError(f"hydra.sweeper.prune_on: attacks come after the questions; leave out it or {min(late)}")


def begin(
    config: DictConfig,
    overrides: Sequence[Override],
    settings: Callable[[list[str]], Run | Judge],
    compared: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a sweep that cannot work, or a folder that holds something else (UserError); then note and plan it.

    Args:
        config: the composed configuration, Hydra's part included.
        overrides: the command line's, and the sweeper's own.
        settings: gives the settings of a command line without a sweep.
        compared: what the report compares: ``objectives``, and the tasks of ``forget`` and ``general``.
    """
    check(config.hydra, overrides)
    objectives.known("hydra.callbacks.sweep.objectives", compared["objectives"])
    folder, (plain, swept) = Path(config.hydra.sweep.dir), split(overrides)
    found = [values(o) for o in swept]
    combinations = list(itertools.product(*found)) if config.hydra.sweeper._target_.endswith(".BasicSweeper") else []
    one = [mine[0] for mine in found]  # the settings that are not swept are compared by those of one trial
    keys = sorted(o.key_or_group for o in swept)
    ranges = [] if combinations else sorted("".join(str(o.input_line).split()) for o in swept)
    if (folder / rundir.CONFIG).is_file():
        raise UserError(f"output: {folder} holds a single run; choose another folder")
    before = Notes.read(folder) if (folder / rundir.SWEEP).is_file() else None
    one = before.one or one if before else one
    now = settings([*plain, *one])
    tracking.refuse(now.tracking, sweep=True)
    own = {key: list(config.hydra.sweeper.get(key) or value) for key, value in compared.items()}
    if isinstance(now, Judge) and not combinations:
        if "unlearned" in keys:
            raise UserError(
                "unlearned: a search is for the worst attack on one model; start one for each, each with its own output"
            )
        refuse_missing(now)
        if {*own["objectives"]} & {*objectives.ATTACKED} and len(now.attacks) > 1:
            named, one_of_them = ", ".join(now.attacks), f"'attacks=[{next(iter(now.attacks))}]'"
            raise UserError(f"attacks: a search is for the worst of one attack, got {named}; name one, {one_of_them}")
    if before:
        _same(folder, before, keys, ranges, now)
    notes = Notes(
        swept=keys,
        one=one,
        settings=dataclasses.asdict(now),
        objectives=own.pop("objectives"),
        asked=own,
        tracking=dataclasses.asdict(now.tracking),
        trials=[trial_name(words) for words in combinations],
        ranges=ranges,
    )
    write_atomic(folder / rundir.SWEEP, yaml.safe_dump(notes.model_dump(), sort_keys=False))
    places = [folder / name for name in notes.trials]
    done = sum(map(trials.is_done, places))
    for number, (place, words) in enumerate(zip(places, combinations, strict=True)):
        trials.plan(place, number, trial_settings(words))
    if combinations:
        there = f" ({done} done before)" if done else ""
        print(f"{len(combinations)} trials{there}: {folder}", file=sys.stderr)


def _same(folder: Path, before: Notes, swept: list[str], ranges: list[str], now: Run | Judge) -> None:
    """Refuse a folder whose trials have other settings, beside the swept ones, than those to come.

    A search is refused other ranges, attacks and questions, too: it never asks for a trial again.
    """
    other, search = f"output: {folder} holds another sweep", f"output: {folder} holds another search"
    if before.swept != swept:
        had, has = ", ".join(before.swept), ", ".join(swept)
        raise UserError(f"{other} (of {had or 'nothing'}; now: of {has or 'nothing'}); choose another folder")
    settings = before.settings, dataclasses.asdict(now)
    if digest_of(before.settings) != now.digest:
        raise _differs(other, *(rundir.flat(result_settings(s)) for s in settings))
    if not before.ranges:
        return
    if had := ", ".join(sorted({*before.ranges} - {*ranges})):
        raise UserError(f"{search} (of {had}); choose another folder")
    was, is_now = ({"attacks": s.get("attacks")} | trials.asked(s) for s in settings)
    if was != is_now:
        raise _differs(search, rundir.flat(was), rundir.flat(is_now))


def _differs(what: str, had: rundir.Object, has: rundir.Object) -> UserError:
    """The first setting in which two differ, as a refusal."""
    key = next((k for k in {**has, **had} if has.get(k) != had.get(k)), "settings")
    return UserError(f"{what} ({key}: {had.get(key)}; now: {has.get(key)}); choose another folder")


def finish(folder: Path, why: str = "") -> int:
    """Write the report of a sweep, whatever became of its trials. Returns the exit status.

    Args:
        why: what ended it early.
    """
    notes = Notes.read(folder)
    listed = report.write(folder, notes.objectives, notes.asked, tracked := Tracking(**notes.tracking), notes.bound)
    if line := tracking.sweep_line(tracked, folder):
        print(line)
    mine = set(notes.trials) or {t.name for t in listed}
    bad = [t for t in listed if t.name in mine and t.state in ("failed", "unfinished")]
    for trial in bad:
        print(f"rmu_exp: {trial.name}: {trial.state}{': ' * bool(trial.reason)}{trial.reason}", file=sys.stderr)
    if not (bad or why):
        return 0
    what = why or f"{len(bad)} of {len(listed)} trials did not finish"
    print(f"rmu_exp: {what}; the same command with output={folder} runs what is not done", file=sys.stderr)
    return 1
