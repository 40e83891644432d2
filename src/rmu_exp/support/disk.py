"""A disk that is full or cannot be written to: known wherever it was noticed, reported in one line.

Libraries wrap what the system said, or keep only its words; both are recognised.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from rmu_exp.support.errors import RunError
from rmu_exp.support.files import cache_path

FULL = {errno.ENOSPC: "no space left on", errno.EDQUOT: "no quota left on", errno.EFBIG: "a file grew too large on"}
BROKEN = {errno.EROFS: "has become read-only", errno.EIO: "cannot be read or written (input/output error)"}
_RUST = re.compile(r"\(os error (\d+)\)")


def explain(error: BaseException, folder: Path = Path(), then: str = "run it again") -> RunError | None:
    """The line for an error of a full or broken disk.

    Args:
        folder: where the program writes; named when the error does not say where.
        then: what to do once there is space.
    """
    number = number_of(error)
    if number not in FULL and number not in BROKEN:
        return None
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = Path(named).parent if isinstance(named, str) else _fullest(folder)
    log = f" (log: {folder / 'run.log'})" if (folder / "run.log").is_file() else ""
    if number in FULL:
        return RunError(f"{FULL[number]} {place}; free some, then {then}{log}")
    return RunError(f"{place} {BROKEN[number]}; once it is well, {then}{log}")


def number_of(error: BaseException) -> int:
    """The system's number of an error; 0: it has none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _RUST.search(str(error))
    return int(found[1]) if found else 0


def _fullest(folder: Path) -> Path:
    """Of the places that a run writes to, the one with the least space."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    places = [p for p in (folder, cache_path(), Path(tempfile.gettempdir()), Path(home)) if p.is_dir()]
    return min(places, key=lambda place: shutil.disk_usage(place).free, default=folder)
