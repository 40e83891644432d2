"""Running out of memory: recognised, tried again with less, and a limit to run into before the machine does.

Light to import: a command line that only reports such an error needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rmu_exp.support.errors import RunError, first_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's
        or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))
    )


def explain(error: BaseException) -> RunError | None:
    """The line for an error of memory that nobody could make do with."""
    if not ran_out(error):
        return None
    return RunError(f"out of memory ({first_line(error)}); try a smaller batch or model.dtype, or a larger device")


def until_it_fits(work: Callable[[], T], smaller: Callable[[], object], device: torch.device) -> T:
    """What ``work`` gives; when memory runs out it is made smaller and tried again.

    Args:
        work: one batch's work. What it holds must be its own: a failed attempt's tensors are then gone before the next.
        smaller: halves what ``work`` does next time. Raises RunError when there is nothing to halve.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        # outside of the except clause, which keeps the failed attempt's tensors alive
        if device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        smaller()


def room(device: str, gigabytes: float | None = None) -> tuple[int, int] | None:
    """Bytes free on a device now, and what it has in all; of a CPU at most ``gigabytes``. None: it does not say.

    A CPU's is the machine's memory with its swap, or what a container or a job of Slurm's may take of it.
    """
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    if device != "cpu" or not MEMINFO.is_file():
        return None
    known = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in MEMINFO.read_text().splitlines()}
    swap = known.get("SwapTotal", 0)
    limits = [known["MemTotal"] + swap, *(limit + swap for limit in _of_groups())]
    if gigabytes is not None:
        limits.append(int(gigabytes * 1e9))
    return min(known["MemAvailable"], *limits), min(limits)


def _of_groups() -> Iterator[int]:
    """The limits on memory, in bytes, of this process's control groups and of all that they are in."""
    for line in CGROUP.read_text().splitlines() if CGROUP.is_file() else ():
        _, kinds, path = line.split(":", 2)  # of version 2 there is one, without kinds
        name = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}.get(kinds, "")
        folder, _, file = name.rpartition("/")
        place = Path(path.lstrip("/"))
        for group in (place, *place.parents) if name else ():
            limit = CGROUPS / folder / group / file
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                yield int(text)


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
