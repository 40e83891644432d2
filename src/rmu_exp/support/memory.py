"""Running out of memory: how it is told from other errors, and a limit to run into before the machine does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def let_go(device: torch.device) -> None:
    """Give back what the failed attempt held; call outside of the except clause, which keeps its tensors alive."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def limited(gigabytes: float | None) -> Iterator[None]:
    """Inside the block this process may take so much more memory of its own (files mapped for reading aside).

    Without it, a CPU that runs out of memory kills the process; with it, the batch is made smaller. Linux only;
    elsewhere there is no such limit.
    """
    if gigabytes is None or not STATUS.is_file():
        yield
        return
    import resource

    held = next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(gigabytes * 1e9), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
