"""One run from start to end: unlearn, judge, report. What an earlier start has done is not done again.

Data flows one way: each stage reads what earlier ones left in the run's folder and writes its own part.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from rmu_exp import provenance
from rmu_exp.errors import RunError, UserError
from rmu_exp.paths import write_atomic
from rmu_exp.run import Run
from rmu_exp.stages.attacking import Attacking
from rmu_exp.stages.exporting import Exporting
from rmu_exp.stages.job import Job, Stage
from rmu_exp.stages.judging import Judging
from rmu_exp.stages.reporting import Reporting
from rmu_exp.stages.training import Training
from rmu_exp.sweep.prune import Hopeless
from rmu_exp.tracking import Tracker, open_tracker

log = logging.getLogger("rmu_exp")
THREADS = torch.get_num_threads()  # what this process may use


def execute(run: Run, folder: Path, hopeless: Hopeless | None = None) -> None:
    """Carry out a run in its folder.

    Args:
        hopeless: the rule by which a search gives the run up on a part of the questions.

    Raises:
        UserError: what the run asks for does not exist or does not fit; nothing has been written.
        RunError: it failed on the way.
    """
    job = Job(run, folder)
    carry_out(job, [Training(job), Exporting(job), Judging(job, hopeless), Attacking(job), Reporting(job)])


def carry_out(job: Job, stages: Sequence[Stage]) -> None:
    """Check all stages, then carry them out one after the other. Raises as :func:`execute`."""
    torch.set_num_threads(job.run.model.threads or THREADS)
    with warned():
        preflight(job, stages)
        with logged(job), tracked(job) as tracker:
            for stage in stages:
                stage.carry_out(tracker)


def preflight(job: Job, stages: Sequence[Stage]) -> None:
    """Refuse what cannot work before anything is written."""
    _check_device(job.device)
    job.take_up()
    for stage in stages:
        stage.preflight()
    job.check()


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", device):
        raise UserError(f"model.device: got {device!r}, allowed is auto, cpu, cuda, cuda:1, …")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device: got {device!r}, but no GPU is visible; allowed here is cpu")


@contextmanager
def warned() -> Iterator[None]:
    """Show warnings of the project on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("rmu_exp: %(message)s"))
    handler.addFilter(lambda record: not record.exc_info)  # the log has it; the screen gets one line at the end
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """run.log for the time of the run, and config.yaml."""
    job.folder.mkdir(parents=True, exist_ok=True)
    settings = provenance.settings(job.run) | {"digest": job.run.digest}
    write_atomic(job.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    file = job.folder / "run.log"
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except RunError as error:
        raise RunError(f"{error} (log: {file})") from error
    except Exception as error:
        log.exception("the run failed")
        raise RunError(f"{type(error).__name__}: {error} (log: {file})") from error
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def tracked(job: Job) -> Iterator[Tracker]:
    """The run's tracker, closed at the end whatever happens."""
    t, (name, tags) = job.run.tracking, job.name
    tracker = open_tracker(
        t.kind,
        job.folder,
        dataclasses.asdict(job.run),
        t.name or name,
        t.group,
        [*t.tags, *tags],
        t.project,
        t.entity,
        t.mode,
    )
    try:
        yield tracker
    finally:
        tracker.close()
