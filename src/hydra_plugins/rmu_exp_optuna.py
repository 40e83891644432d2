"""Hydra's way to the search of :mod:`rmu_exp.sweep.search`.

Hydra imports every module of this namespace at its start, so nothing heavy is imported here.
"""

from __future__ import annotations

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig


class RmuOptunaSweeper(Sweeper):
    """A search on Optuna's current release: two or three objectives, shared by several processes."""

    launcher: Launcher

    def __init__(self, **_: object) -> None:
        """The settings are read from the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        get_method("rmu_exp.sweep.search.run")(self.launcher, self.config, arguments)
