"""Hydra's way to this project's sweepers; what they do is in :mod:`rmu_exp.sweep`.

Hydra imports every module of this namespace at its start, so nothing heavy is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Sweeper(Sweeper):
    """What both have in common: one line and exit status 2 for wrong input, 1 if a trial did not finish."""

    name = ""

    def __init__(self, params: DictConfig | None = None, **settings: Any) -> None:
        self.params, self.settings = params, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from rmu_exp.sweep.engine import Session

        self.session = Session(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        from rmu_exp.support.errors import UserError
        from rmu_exp.sweep import engine

        asked = {key: list(self.settings.get(key) or []) for key in ("forget", "general")}
        axes = self.settings.get("objectives") or ("forget", "general")
        try:
            self.session.begin(arguments, self.params, self.name)
            status = engine.carry_out(self.session, self.how(), list(axes), asked)
        except UserError as error:
            print(f"rmu_exp: {error}", file=sys.stderr)
            status = 2
        if status:
            sys.exit(status)

    def how(self) -> Callable[[], None]:
        """What carries the trials out."""
        raise NotImplementedError


class Grid(_Sweeper):
    """Every combination; trials that are done are not run again."""

    name = "grid"

    def how(self) -> Callable[[], None]:
        from rmu_exp.sweep.engine import grid

        return lambda: grid(self.session, self.settings.get("max_batch_size"))


class Optuna(_Sweeper):
    """A search on Optuna's current release."""

    name = "optuna"

    def how(self) -> Callable[[], None]:
        from rmu_exp.sweep.search import Search

        return Search(self.session, **self.settings).run
