"""What Hydra calls before and after a run or a sweep: settings are checked before a folder is made.

Hydra swallows what its callbacks raise, but lets them leave the program. Imports nothing heavy; what a sweep needs
beyond that is loaded when there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write

from rmu_exp.cli.compose import checked
from rmu_exp.cli.endings import ended
from rmu_exp.cli.folders import existing_part
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.sweep import names
from rmu_exp.sweep.overrides import once_each, sweep_of

names.register()  # wherever Hydra unpickles its callbacks, trials have their names


class Checks(Callback):
    """Refuses wrong settings in one line with exit status 2, and sees a sweep to its report.

    Args:
        objectives: what the report of a sweep compares: forget, general, worst.
        forget, general: the groups or tasks that these stand for; empty: found by name.
    """

    def __init__(self, objectives: Sequence[str], forget: Sequence[str] = (), general: Sequence[str] = ()) -> None:
        self.objectives, self.asked = list(objectives), {"forget": list(forget), "general": list(general)}

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Check a run's settings and its folder."""
        _or_exit(self._check_run, config)

    def _check_run(self, config: DictConfig) -> None:
        checked(config, config.hydra.overrides.task)
        _start(config, Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Check each value of a sweep, its launcher and its folder, and plan its trials."""
        _or_exit(self._check_sweep, config)

    def _check_sweep(self, config: DictConfig) -> None:
        given, loader = list(config.hydra.overrides.task), GlobalHydra.instance().config_loader()
        overrides = sweep_of(given, config.hydra)

        def settings(words: list[str]) -> Run | Judge:
            return checked(loader.load_sweep_config(config, words), given)

        for words in once_each(overrides):
            settings(words)
        fixed = [o.key_or_group for o in overrides if not o.is_sweep_override()]
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(names.override(fixed))
        begin = get_method("rmu_exp.sweep.session.begin")
        begin(config, overrides, settings, {"objectives": self.objectives, **self.asked})
        _start(config, Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Write the report. The program ends with status 1 when a trial did not finish."""
        if status := finish_sweep():
            sys.exit(status)


def finish_sweep(why: str = "") -> int:
    """Write the report of the sweep that this program has started. Returns the exit status.

    Args:
        why: what ended it early.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return int(get_method("rmu_exp.sweep.session.finish")(folder, why))
    except Exception as error:  # Hydra would swallow it
        return ended(error, folder=folder)


def _start(config: DictConfig, folder: Path) -> None:
    """Note the folder, and what there is of it already, where the end of the program finds it."""
    with read_write(config.hydra), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder.absolute())
        config.hydra.runtime.existing = str(existing_part(folder))
    HydraConfig.instance().set_config(config)


def _or_exit(check: Callable[[DictConfig], None], config: DictConfig) -> None:
    words = list(config.hydra.overrides.task)
    try:
        check(config)
    except Exception as error:
        try:
            status = ended(error, words)
        except Exception:  # of Hydra, at odd input
            status = ended(UserError(f"command line: {first_line(error)}"))
        sys.exit(status)
