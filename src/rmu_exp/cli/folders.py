"""The folder of a run before and after it: whether it can be written to, and nothing left behind when it is refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rmu_exp.support.boundary import FULL, full_disk
from rmu_exp.support.errors import UserError


def existing_part(folder: Path) -> Path:
    """The deepest folder of a path that exists.

    Raises:
        UserError: it cannot be written to. Nothing is left behind.
        RunError: its disk is full.
    """
    existing = folder.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryDirectory(dir=existing, prefix=".rmu_exp-"):
            pass
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        full = full_disk(error, folder, f"the same command with output={folder} resumes it")
        if full is not None and number in FULL:
            raise full from error
        reason = os.strerror(number).lower() if number else str(error)
        raise UserError(f"output: cannot write to {folder} ({reason}); choose another folder") from error
    return existing


def remove_if_empty(folder: Path, existing: Path) -> None:
    """Remove the folders that were made for a run that was then refused, down to what was there before."""
    for candidate in (folder, *folder.parents):
        if candidate == existing or existing not in candidate.parents:
            return
        try:
            candidate.rmdir()
        except OSError:
            return
