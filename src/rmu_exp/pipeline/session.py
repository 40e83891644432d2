"""What surrounds a run: everything of the process and of the folder that it changes is set here, and restored."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from rmu_exp.record import rundir
from rmu_exp.settings import Model
from rmu_exp.support import boundary, signals
from rmu_exp.support.errors import BusyError, RunError, UserError, first_line
from rmu_exp.support.files import LOCK
from rmu_exp.support.redaction import Formatter

log = logging.getLogger("rmu_exp")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LOOKED_AT = 0.5  # seconds for which a folder that nobody works in may be locked: by one that looks whether someone does


@contextmanager
def session(model: Model, folder: Path) -> Iterator[None]:
    """A run's time: threads and kernels as its settings say, signals heard, warnings shown, the folder its own.

    Raises:
        BusyError: another process works in the folder.
        RunError: in the place of any error that can be explained in one line.
    """
    with signals.listening(), warned(), boundary.one_line(folder), claimed(folder), computing(model):
        yield


@contextmanager
def computing(model: Model) -> Iterator[None]:
    """Inside the block torch uses so many threads and, where wanted, kernels that give the same bits each time."""
    threads, same_bits = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get(WORKSPACE)
    torch.set_num_threads(model.threads or threads)
    if model.deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS reads it when a GPU is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(same_bits)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder to oneself; one process may claim it twice. Raises BusyError: another process works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    try:
        with FileLock(file, timeout=LOOKED_AT, is_singleton=True):
            yield
    except Timeout as error:
        raise BusyError(f"output: another process works in {folder}; wait for it, or choose another folder") from error
    finally:
        if [f.name for f in folder.iterdir()] == [LOCK]:
            file.unlink(missing_ok=True)  # a folder that was refused is left as it was


@contextmanager
def handling(handler: logging.Handler, form: str) -> Iterator[None]:
    """Give the project's log a handler for the time of the block."""
    handler.setFormatter(Formatter(form))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


@contextmanager
def warned() -> Iterator[None]:
    """Show warnings of the project on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: not record.exc_info)  # the log has it; the screen gets one line at the end
    with handling(handler, "rmu_exp: %(message)s"):
        yield


class RunLog(logging.FileHandler):
    """run.log. When it cannot be written the run goes on, and says why at its end."""

    lost = ""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.lost = self.lost or first_line(sys.exc_info()[1] or OSError())


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """run.log for the time of the work; what goes wrong is written there in full, and raised in one line."""
    file, level = folder / rundir.LOG, log.level
    handler = RunLog(file, encoding="utf-8")
    log.setLevel(logging.INFO)
    with handling(handler, "%(asctime)s %(levelname)s %(message)s"):
        try:
            yield
            if handler.lost:
                log.warning("%s is not complete (%s)", file, handler.lost)
        except (UserError, KeyboardInterrupt):
            raise
        except RunError as error:
            raise RunError(f"{error} (log: {file})") from error
        except Exception as error:
            log.exception("the run failed")
            raise RunError(f"{type(error).__name__}: {error} (log: {file})") from error
        finally:
            log.setLevel(level)
