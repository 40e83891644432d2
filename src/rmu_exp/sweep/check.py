"""What is refused of a sweep before anything starts: its launcher, its sweeper."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from rmu_exp.report.objectives import NAMES
from rmu_exp.support.errors import UserError

# The last part of a target to what it needs: extra, modules.
NEEDS = {
    "JoblibLauncher": ("joblib", ("hydra_plugins.hydra_joblib_launcher",)),
    "SlurmLauncher": ("slurm", ("hydra_plugins.hydra_submitit_launcher", "submitit")),
    "LocalLauncher": ("slurm", ("hydra_plugins.hydra_submitit_launcher", "submitit")),
    "RayLauncher": ("ray", ("ray",)),
    "RmuOptunaSweeper": ("search", ("optuna", "sqlalchemy")),
}


def check(hydra: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse a sweep that cannot work here.

    Args:
        hydra: Hydra's own settings.
        overrides: all of the sweep's.

    Raises:
        UserError: a launcher or sweeper that cannot work here, an interval without a search.
    """
    for group in ("launcher", "sweeper"):
        _installed(group, hydra[group]._target_)
    if hydra.launcher._target_.endswith("SlurmLauncher"):
        _slurm_answers()
    swept = [o for o in overrides if o.is_sweep_override()]
    if hydra.sweeper._target_.endswith(".BasicSweeper"):
        size = hydra.sweeper.max_batch_size
        if size is not None and size < 1:
            raise UserError(f"hydra.sweeper.max_batch_size: got {size}, allowed is 1 or more, or null for all")
        for o in swept:
            if not o.is_discrete_sweep():
                given = str(o.input_line).partition("=")[2]
                raise UserError(
                    f"{o.key_or_group}: {given} needs a search; add hydra/sweeper=rmu_optuna, or list values"
                )
    elif hydra.sweeper._target_.endswith(".RmuOptunaSweeper"):
        _search(hydra.sweeper, swept)


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
