"""One run, one judgement or one trial: what ``hydra.main`` calls, and what ``resume=DIR`` does."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rmu_exp.cli.compose import checked, ended
from rmu_exp.cli.entry import NOTHING_DONE, RESUME, existing_part, remove_if_empty
from rmu_exp.pipeline import run as pipeline_run
from rmu_exp.record import rundir
from rmu_exp.settings import Judge, Run
from rmu_exp.support import program
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import LOCK
from rmu_exp.sweep import trial

DEFAULT = re.compile(r"outputs/[\d-]+/[\d-]+")  # a run's folder when the user names none


def run(config: DictConfig) -> float:
    """Run what was composed. Returns the metric of :func:`rmu_exp.sweep.trial.metric`."""
    hydra = cast(DictConfig, HydraConfig.get())
    folder, given = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN:
        return trial.run(lambda: checked(config, given), folder, hydra)
    named = any(word.startswith(("output=", "hydra.run.dir=")) for word in (*given, *hydra.overrides.hydra))
    if not named and DEFAULT.fullmatch(str(hydra.run.dir)):
        folder = unused(folder)
    if status := execute(lambda: checked(config, given), folder):
        sys.exit(status)
    return trial.metric(folder)


def unused(folder: Path) -> Path:
    """The default folder; one beside it when another run has begun in the same second."""
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        place.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (place / LOCK).touch(exist_ok=False)
            break
    if place != folder:
        print(f"another run began in the same second; results in {place.relative_to(Path.cwd())}", flush=True)
    return place


def execute(wanted: Callable[[], Run | Judge], folder: Path) -> int:
    """A run or a judgement in its folder; what goes wrong is reported in one line. Returns the exit status."""
    try:
        pipeline_run.execute(wanted(), folder)
    except BaseException as error:
        resume_by = f"stopped; {program.started()} {RESUME}{shlex.quote(str(folder))} resumes"
        return ended(error, (), folder, resume_by if (folder / "config.yaml").is_file() else NOTHING_DONE)
    return 0


def resume(words: Sequence[str], judging: bool) -> int:
    """``resume=DIR``: resume the run in a folder, whose settings it holds. Returns the exit status."""
    try:
        if len(words) > 1:
            raise UserError("resume: goes alone; the folder holds the run's settings")
        folder = Path(words[0].removeprefix(RESUME)).expanduser()
        wanted = stored(folder, judging)
        existing = existing_part(folder)
    except Exception as error:
        return ended(error)
    status = execute(lambda: wanted, folder)
    remove_if_empty(folder.absolute(), existing)
    return status


def stored(folder: Path, judging: bool = False) -> Run | Judge:
    """The settings of the run or the judgement whose folder this is. Raises UserError: it is none, or is damaged."""
    file = folder / "config.yaml"
    if not file.is_file():
        sweep = f"; a sweep is resumed by its own command with output={folder}"
        also = sweep if (folder / rundir.SWEEP).is_file() else ""
        raise UserError(f"resume: {folder} is no run's folder (no config.yaml){also}")
    found = rundir.of(file)
    if found.judged != judging:
        whose, other = ("judge", "train") if judging else ("train", "judge")
        raise UserError(f"resume: {folder} is not of {whose}; {program.command(other)} {RESUME}{folder}")
    wanted = found.settings
    wanted.output = str(folder)
    if found.digest != wanted.digest:
        raise UserError(f"{file}: its digest is not that of its settings; it was changed, or made by another version")
    return wanted
