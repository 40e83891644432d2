"""The one place where errors of all kinds become lines: around a command, a run, an attack.

Inside of it modules raise what they have. Where a line needs to know more (the name of a repository), the block that
knows it has its own: :func:`rmu_exp.support.hub.asking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rmu_exp.support import disk, hub, memory
from rmu_exp.support.errors import Explainer, RunError, UserError, explain


def line_for(
    error: BaseException, folder: Path = Path(), then: str = "run it again", more: tuple[Explainer, ...] = ()
) -> UserError | RunError | None:
    """The one line for an error; None: it is a fault of the program, which a traceback reports best.

    Args:
        folder: where the program writes; named when a disk is full and the error does not say which.
        then: what to do once the disk has space.
        more: explainers of errors that only the caller knows, asked after those of the disk.
    """
    full = partial(disk.explain, folder=folder, then=then)
    return explain(error, (full, _already, *more, hub.explain, memory.explain))


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Run a block that fills a run's folder. Raises UserError or RunError in the place of what they explain."""
    try:
        yield
    except Exception as error:
        line = line_for(error, folder, f"the same command with output={folder} resumes it")
        if line is None or line is error:
            raise
        raise line from error


def _already(error: BaseException) -> UserError | RunError | None:
    return error if isinstance(error, (UserError, RunError)) else None
