"""Which device ``model.device=auto`` is."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@cache
def automatic() -> str:
    """A GPU where there is one, else the CPU.

    Of several GPUs the first that no other process of this user's has taken in this way; it is taken until the process
    ends. So the trials of a sweep that runs in several processes have one GPU each. Where all are taken, one of them.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return "cuda" if count else "cpu"
    for index in range(count):
        if _take(str(torch.cuda.get_device_properties(index).uuid)):
            return f"cuda:{index}"
    return f"cuda:{os.getpid() % count}"


TAKEN: list[FileLock] = []


def _take(name: str) -> bool:
    lock = FileLock(Path(tempfile.gettempdir()) / f"rmu_exp-{os.getuid()}-gpu-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    TAKEN.append(lock)  # which its end would release
    return True
