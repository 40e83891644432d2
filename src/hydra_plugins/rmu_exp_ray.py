"""Trials as tasks of a Ray cluster.

Hydra's own launcher for Ray needs boto3 and an AWS library and ends the sweep with the first worker that dies;
this one needs Ray alone and loses only that worker's trial.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

PASSED_ON = ("RMU_EXP_", "PYTHONPATH", "HF_", "WANDB_", "TQDM_", "TOKENIZERS_", "HYDRA_")  # environment variables


class RayLauncher(Launcher):
    """One task a trial, with its resources; Ray starts as many at a time as fit."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float, memory: int | None) -> None:
        self.address = address
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus} | ({"memory": memory} if memory else {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a trial without GPUs hides none
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray: Any = importlib.import_module("ray")  # its types refuse resources given as a dictionary

        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        task = ray.remote(max_retries=0, runtime_env={"env_vars": environment}, **self.resources)(_job)
        shared = ray.put((self.hydra_context, self.config, self.task_function, Singleton.get_state(), Path.cwd()))
        waiting = [task.remote(initial_job_idx + i, list(o), shared) for i, o in enumerate(job_overrides)]
        done: list[JobReturn] = []
        for reference in waiting:
            try:
                done.append(ray.get(reference))
            except ray.exceptions.RayError as error:  # this worker's trial alone is lost
                done.append(JobReturn(status=JobStatus.FAILED))
                done[-1].return_value = error
        return done


def _job(number: int, overrides: list[str], shared: Any) -> JobReturn:
    hydra_context, config, task_function, state, folder = shared
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    one = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(one):
        one.hydra.job.id, one.hydra.job.num = f"ray_{number}", number
    HydraConfig.instance().set_config(one)
    return run_job(task_function, one, "hydra.sweep.dir", "hydra.sweep.subdir", hydra_context=hydra_context)
