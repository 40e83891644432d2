"""One run from start to end: unlearn, judge, report. What an earlier start has done is not done again.

Data flows one way: each stage reads what earlier ones left in the run's folder and writes its own part.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout

from rmu_exp.pipeline.attack import Attacking
from rmu_exp.pipeline.evaluate import EarlyStop, Judging
from rmu_exp.pipeline.export import Exporting
from rmu_exp.pipeline.job import Job, Stage
from rmu_exp.pipeline.report import Reporting
from rmu_exp.pipeline.train import Training
from rmu_exp.record import provenance
from rmu_exp.settings import Run
from rmu_exp.support import boundary, memory, signals
from rmu_exp.support.errors import BusyError, RunError, UserError, first_line
from rmu_exp.support.files import LOCK, write_atomic
from rmu_exp.support.redaction import Formatter
from rmu_exp.tracking import Tracker, open_tracker

log = logging.getLogger("rmu_exp")
THREADS = torch.get_num_threads()  # what this process may use


def execute(run: Run, folder: Path, early_stop: EarlyStop | None = None) -> None:
    """Carry out a run in its folder.

    Args:
        early_stop: the rule by which a search gives the run up on a part of the questions.

    Raises:
        UserError: what the run asks for does not exist or does not fit; nothing has been written.
        RunError: it failed on the way.
    """
    job = Job(run, folder)
    carry_out(job, [Training(job), Exporting(job), Judging(job, early_stop), Attacking(job), Reporting(job)])


def carry_out(job: Job, stages: Sequence[Stage]) -> None:
    """Check all stages, then carry them out one after the other. Raises as :func:`execute`."""
    torch.set_num_threads(job.run.model.threads or THREADS)
    bits = deterministic(job.run.model.deterministic)
    with signals.listening(), warned(), boundary.one_line(job.folder), claimed(job.folder), bits:
        preflight(job, stages)
        with logged(job), tracked(job) as tracker, memory.limited(job.run.model.memory):
            for stage in stages:
                stage.carry_out(tracker)
        shutil.rmtree(job.state, ignore_errors=True)


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
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder to oneself.

    Raises:
        BusyError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout as error:
        raise BusyError(f"output: another process is at {folder}; wait for it, or choose another folder") from error
    finally:
        if [f.name for f in folder.iterdir()] == [LOCK]:
            file.unlink(missing_ok=True)  # a folder that was refused is left as it was


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the block torch takes kernels that give the same bits each time, or none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a GPU is first used
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def warned() -> Iterator[None]:
    """Show warnings of the project on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(Formatter("rmu_exp: %(message)s"))
    handler.addFilter(lambda record: not record.exc_info)  # the log has it; the screen gets one line at the end
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class RunLog(logging.FileHandler):
    """run.log. Once it cannot be written it stays as it is: the run goes on, and says so at its end.

    Attributes:
        lost: why it ends early; empty: it does not.
    """

    lost = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.lost:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.lost = first_line(sys.exc_info()[1] or OSError())

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """run.log for the time of the run, and config.yaml."""
    settings = provenance.settings(job.run) | {"digest": job.run.digest, "command": job.command}
    write_atomic(job.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    file = job.folder / "run.log"
    handler = RunLog(file, encoding="utf-8")
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
        if handler.lost:
            log.warning("%s ends early (%s)", file, handler.lost)
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
        t.wait,
    )
    try:
        yield tracker
    finally:
        tracker.close()
