"""A disk that is full or cannot be written to: known wherever it was noticed, told in one line.

Libraries wrap what the system told them, or keep only its words; :func:`told` looks through both.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmu_exp.support.errors import RunError, chain
from rmu_exp.support.files import cache_path

FULL = {errno.ENOSPC: "no space left on", errno.EDQUOT: "no quota left on", errno.EFBIG: "a file grew too large on"}
BROKEN = {errno.EROFS: "has become read-only", errno.EIO: "cannot be read or written (input/output error)"}
_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Run a block that fills a run's folder; a full or broken disk becomes one line.

    Raises:
        RunError: in place of whatever the disk's error had become.
    """
    try:
        yield
    except Exception as error:
        log = folder / "run.log"
        line = told(error, folder, f"the same command with output={folder} resumes")
        if line is None:
            raise
        raise RunError(line + (f" (log: {log})" if log.is_file() else "")) from error


def told(error: BaseException, folder: Path, then: str = "run it again") -> str | None:
    """The one line for an error that a disk caused; None when it did not.

    Args:
        folder: where the program writes; named when the error does not tell where.
        then: what to do once there is space.
    """
    for cause in chain(error):
        number = number_of(cause)
        if number not in FULL and number not in BROKEN:
            continue
        named = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
        place = Path(named).parent if isinstance(named, str) else _fullest(folder)
        if number in FULL:
            return f"{FULL[number]} {place}; free some, then {then}"
        return f"{place} {BROKEN[number]}; once it is well, {then}"
    return None


def number_of(error: BaseException) -> int:
    """The system's number of an error; 0: it has none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _RUST.search(str(error))
    return int(found[1]) if found else 0


def is_cause(error: BaseException) -> bool:
    """Whether a full or broken disk is behind an error."""
    return any(number_of(cause) in FULL or number_of(cause) in BROKEN for cause in chain(error))


def _fullest(folder: Path) -> Path:
    """Of the places that a run writes to, the one with the least space."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    places = [p for p in (folder, cache_path(), Path(tempfile.gettempdir()), Path(home)) if p.is_dir()]
    return min(places, key=lambda place: shutil.disk_usage(place).free, default=folder)
