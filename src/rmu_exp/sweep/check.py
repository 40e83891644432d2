"""What is refused of a sweep before anything starts: its ranges, its launcher, its sweeper."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from rmu_exp.report.objectives import NAMES
from rmu_exp.support.errors import UserError

# The last part of a target to what it needs: extra, modules.
NEEDS = {
    "JoblibLauncher": ("joblib", ("hydra_plugins.hydra_joblib_launcher",)),
    "SlurmLauncher": ("slurm", ("hydra_plugins.hydra_submitit_launcher", "submitit")),
    "LocalLauncher": ("slurm", ("hydra_plugins.hydra_submitit_launcher", "submitit")),
    "RayLauncher": ("ray", ("ray",)),
    "Optuna": ("search", ("optuna", "sqlalchemy")),
}
# Launchers that their packages add to the choices: without the package Hydra knows no such choice.
ADDED = {"joblib": "JoblibLauncher", "submitit_slurm": "SlurmLauncher", "submitit_local": "LocalLauncher"}


def check_choices(given: Sequence[Override]) -> None:
    """Refuse a launcher whose package is not there, before Hydra says that there is no such choice.

    Raises:
        UserError: in one line.
    """
    for override in given:
        if override.key_or_group == "hydra/launcher" and str(override.value()) in ADDED:
            _installed("launcher", ADDED[str(override.value())])


def check(hydra: DictConfig, given: Sequence[Override], swept: Sequence[Override]) -> list[Override]:
    """The swept overrides, those of the sweeper's own ``params`` with them.

    Raises:
        UserError: an empty range, an interval without a search, a launcher or sweeper that cannot work here.
    """
    named = {o.key_or_group for o in given}
    own = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items() if key not in named]
    swept = [*(o for o in OverridesParser.create().parse_overrides(own) if o.is_sweep_override()), *swept]
    searching = hydra.sweeper._target_.endswith(".Optuna")
    for group in ("launcher", "sweeper"):
        _installed(group, hydra[group]._target_)
    if hydra.launcher._target_.endswith("SlurmLauncher"):
        _slurm_answers()
    for override in swept:
        _not_empty(override, searching)
    if searching:
        _search(hydra.sweeper, swept)
    return swept


def _installed(group: str, target: str) -> None:
    extra, modules = NEEDS.get(target.rsplit(".", 1)[-1], ("", ()))
    for module in modules:
        try:
            missing = find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            name = target.rsplit(".", 1)[-1]
            raise UserError(f"hydra/{group}: {name} is not installed; pip install 'rmu_exp[{extra}]'")


def _slurm_answers() -> None:
    if shutil.which("sbatch") is None:
        raise UserError("hydra/launcher: no sbatch here; start it where Slurm's commands are, or choose joblib or ray")
    done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=120)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(f"hydra/launcher: Slurm does not answer ({line}); is slurmctld up, and munge?")


def _not_empty(override: Override, searching: bool) -> None:
    key = override.key_or_group
    given = str(override.input_line).split("=", 1)[-1]
    if override.is_discrete_sweep():
        try:
            first = next(iter(override.sweep_string_iterator()), None)
        except HydraException as error:
            raise UserError(f"{key}: {given} cannot be taken apart ({' '.join(str(error).split())})") from error
        if first is None:
            raise UserError(f"{key}: {given} is empty; give a start below its end")
        return
    interval = cast(IntervalSweep, override.value())
    if not searching:
        raise UserError(f"{key}: {given} needs a search; add hydra/sweeper=optuna, or list values")
    start, end = cast(float, interval.start), cast(float, interval.end)
    if not start < end:
        raise UserError(f"{key}: {given} is empty; give a start below its end")
    if "log" in interval.tags and start <= 0:
        raise UserError(f"{key}: {given} starts at {start}; a logarithmic range starts above 0")


def _search(sweeper: DictConfig, swept: Sequence[Override]) -> None:
    if not swept:
        raise UserError("hydra/sweeper: nothing to search; give a range such as 'steer=interval(1,10)'")
    for key, least in (("n_trials", 1), ("n_jobs", 1), ("prune_on", 1)):
        if sweeper[key] is not None and sweeper[key] < least:
            raise UserError(f"hydra.sweeper.{key}: got {sweeper[key]}, allowed is {least} or more")
    if sweeper.sampler not in ("tpe", "nsga2", "random"):
        raise UserError(f"hydra.sweeper.sampler: got {sweeper.sampler!r}, allowed is tpe, nsga2, random")
    for name in sweeper.objectives:
        if name not in NAMES:
            raise UserError(f"hydra.sweeper.objectives: got {name!r}, allowed is {', '.join(NAMES)}")
    if sweeper.prune_on is not None and "worst" in sweeper.objectives:
        raise UserError("hydra.sweeper.prune_on: attacks come after the questions; leave out either it or worst")
