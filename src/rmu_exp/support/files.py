"""Where things are kept outside a run's folder, and how files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOCK = ".lock"  # in a run's folder, held by the process that works in it


def cache_path() -> Path:
    """The cache folder, ``RMU_EXP_CACHE`` or ``rmu_exp`` in the user's cache folder; it may not be there yet."""
    given = os.environ.get("RMU_EXP_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "rmu_exp"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it into place."""
    data = content.encode() if isinstance(content, str) else content
    replace_atomic(path, lambda temporary: temporary.write_bytes(data))


def replace_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name in the same folder, then rename it to ``path``.

    Raises:
        OSError: with the file's name; what was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    with suppress(OSError):  # lets the rename outlive a power cut, where the file system can
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
