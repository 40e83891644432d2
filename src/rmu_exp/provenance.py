"""Where a result came from: versions, code, machine, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "rmu_exp",
    "torch",
    "transformers",
    "datasets",
    "lm-eval",
    "hydra-core",
    "wandb",
    "safetensors",
    "tokenizers",
)


def describe(device: str) -> dict[str, Any]:
    """Versions, git state and hardware of this process.

    Args:
        device: the device that the run used.
    """
    return {"versions": versions(), "git": git_state(), "hardware": hardware(device)}


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def command() -> str:
    """The command line of this process."""
    return "python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: str) -> dict[str, Any]:
    """The processor, its cores, and the accelerator in use."""
    import torch

    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def peak_memory(device: str) -> int:
    """Most memory in use so far, in bytes: of the GPU in use, otherwise of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
