"""Checkpoint folders in the cache folder, made of something else: once, whole or not at all, with a note of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rmu_exp.model import weight_files as weights
from rmu_exp.support.boundary import full_disk
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.files import cache_path, write_atomic


def kept(kind: str, sha256: str, note: str, make: Callable[[Path], dict[str, str]], where: str) -> Path:
    """A checkpoint folder in the cache folder, made when it is not there whole.

    Args:
        kind: the name of the folder that holds such folders.
        sha256: of what it is made from, its own name.
        note: the file in it that says what it was made from.
        make: writes the checkpoint into a folder, and says what it was made from.
        where: what a message begins with: the setting, and what it named.

    Raises:
        UserError: the cache folder may not be written to.
        RunError: it does not fit the memory or the disk.
    """
    from filelock import FileLock

    folder = cache_path() / kind / sha256
    if _whole(folder, note):
        return folder
    with _in_one_line(where):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _whole(folder, note):  # another process may have made it meanwhile
                _put(folder, note, make)
    return folder


def note_of(folder: Path, note: str) -> dict[str, str]:
    """What a folder was made from, as its note of this name says; empty where there is no such note."""
    file = folder / note
    return {k: str(v) for k, v in weights.read_json(file).items()} if file.is_file() else {}


def _whole(folder: Path, note: str) -> bool:
    if not (folder / note).is_file():
        return False
    try:
        weights.check_folder(folder, "cache")
    except UserError:
        return False
    return True


@contextmanager
def _in_one_line(where: str) -> Iterator[None]:
    """Report a cache folder that cannot be written to, and a disk or memory that is full, in one line."""
    try:
        yield
    except (UserError, RunError):
        raise
    except MemoryError as error:
        raise RunError(f"{where} does not fit the memory when it is dequantised") from error
    except Exception as error:
        line = full_disk(error, cache_path())
        if line is not None:
            raise RunError(line) from error
        if isinstance(error, OSError):
            raise UserError(
                f"{where} is dequantised into {cache_path()}, which cannot be written to ({error.strerror}); "
                "set RMU_EXP_CACHE to a folder that can"
            ) from error
        raise


def _put(folder: Path, note: str, make: Callable[[Path], dict[str, str]]) -> None:
    """Make it in a temporary folder beside ``folder``, and rename it into place."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        said = {"sha256": folder.name} | make(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors makes it readable by its owner only
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        write_atomic(temporary / note, json.dumps(said, indent=1) + "\n")
        temporary.chmod(0o755)
        if folder.exists():  # damaged, or _whole would have been content with it
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
