"""The one place where errors of all kinds become lines: around a command, a run, an attack.

Inside of it modules raise what they have. Where a line needs to know more (the name of a repository), the block that
knows it has its own: :func:`rmu_exp.support.hub.asking`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rmu_exp.support import hub, memory
from rmu_exp.support.errors import Explainer, RunError, UserError, explain
from rmu_exp.support.files import cache_path

FULL = {errno.ENOSPC: "no space left on", errno.EDQUOT: "no quota left on", errno.EFBIG: "a file grew too large on"}
BROKEN = {errno.EROFS: "has become read-only", errno.EIO: "cannot be read or written (input/output error)"}
OTHERS: tuple[Explainer, ...] = (hub.explain, memory.explain)
_RUST = re.compile(r"\(os error (\d+)\)")


def line_for(
    error: BaseException, folder: Path = Path(), then: str = "run it again", more: tuple[Explainer, ...] = ()
) -> UserError | RunError | None:
    """The one line for an error; None: it is a fault of the program, which a traceback reports best.

    Args:
        folder: where the program writes; named when a disk is full and the error does not say which.
        then: what to do once the disk has space.
        more: explainers of errors that only the caller knows, asked after those of the disk.
    """
    full = partial(full_disk, folder=folder, then=then)
    return explain(error, (full, lambda e: e if isinstance(e, (UserError, RunError)) else None, *more, *OTHERS))


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


def full_disk(error: BaseException, folder: Path = Path(), then: str = "run it again") -> RunError | None:
    """The line for an error of a full or broken disk; arguments as :func:`line_for`."""
    found = _RUST.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else 0
    if number not in FULL and number not in BROKEN:
        return None
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = Path(named).parent if isinstance(named, str) else _fullest(folder)
    log = f" (log: {folder / 'run.log'})" if (folder / "run.log").is_file() else ""
    if number in FULL:
        return RunError(f"{FULL[number]} {place}; free some, then {then}{log}")
    return RunError(f"{place} {BROKEN[number]}; once it is repaired, {then}{log}")


def _fullest(folder: Path) -> Path:
    """Of the places that a run writes to, the one with the least space."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    places = [p for p in (folder, cache_path(), Path(tempfile.gettempdir()), Path(home)) if p.is_dir()]
    return min(places, key=lambda place: shutil.disk_usage(place).free, default=folder)
