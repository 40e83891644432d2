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
from rmu_exp.sweep.overrides import split, value_of

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
    kinds = {group: hydra[group]._target_.rpartition(".")[2] for group in ("launcher", "sweeper")}
    for group, name in kinds.items():
        extra, modules = NEEDS.get(name, ("", ()))
        if not all(map(_installed, modules)):
            raise UserError(f"hydra/{group}: {name} is not installed; pip install 'rmu_exp[{extra}]'")
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


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


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
    for key in ("n_trials", "n_jobs", "prune_on"):
        if sweeper[key] is not None and sweeper[key] < 1:
            raise UserError(f"hydra.sweeper.{key}: got {sweeper[key]}, allowed is 1 or more")
    if sweeper.sampler not in ("tpe", "nsga2", "random"):
        raise UserError(f"hydra.sweeper.sampler: got {sweeper.sampler!r}, allowed is tpe, nsga2, random")
    axes("hydra.sweeper.objectives", sweeper.objectives)
    if sweeper.prune_on is not None and "worst" in sweeper.objectives:
        raise UserError("hydra.sweeper.prune_on: attacks come after the questions; leave out either it or worst")


def axes(key: str, names: Sequence[str]) -> None:
    """Refuse names of axes that there are not."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"{key}: got {name!r}, allowed is {', '.join(NAMES)}")
