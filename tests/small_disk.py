"""Small file systems of their own, for tests; where none can be mounted, those tests are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, size: str = "1m") -> Iterator[Path]:
    """A tmpfs at a new folder, for the time of the block."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, *options: str) -> None:
    """Change a mounted file system: ``size=64m``, ``ro``."""
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), place], check=True, capture_output=True)
