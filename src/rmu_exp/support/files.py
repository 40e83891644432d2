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


def moved_homes() -> dict[str, str]:
    """Variables that put what libraries keep beside a run elsewhere, where the user's own place cannot be written to.

    W&B, matplotlib and Hugging Face's libraries go by the XDG folders, and so does :func:`cache_path`; what Hugging
    Face has in its own folder stays in use. Empty where every place can be written to.
    """
    places = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
    now = {key: Path(os.environ.get(key) or Path.home() / name) for key, name in places.items()}
    if not (lost := [key for key, place in now.items() if not _takes_files(place)]):
        return {}
    root = Path(tempfile.gettempdir()) / f"rmu_exp-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    with suppress(OSError):
        root.mkdir(mode=0o700, exist_ok=True)
    if not _takes_files(root) or root.is_symlink() or (hasattr(os, "getuid") and root.stat().st_uid != os.getuid()):
        root = Path(tempfile.mkdtemp(prefix="rmu_exp-"))
    moved = {key: str(root / places[key]) for key in lost}
    if "XDG_CONFIG_HOME" in moved:
        moved["WANDB_CONFIG_DIR"] = os.environ.get("WANDB_CONFIG_DIR") or str(root / ".config/wandb")
    if "XDG_CACHE_HOME" in moved and (hub := now["XDG_CACHE_HOME"] / "huggingface").is_dir():
        moved["HF_HOME"] = os.environ.get("HF_HOME") or str(hub)
    return moved


def _takes_files(place: Path) -> bool:
    """Whether files can be written to a folder, or to the one that it would be made in; leaves nothing there."""
    try:
        there = next(p for p in (place, *place.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


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
