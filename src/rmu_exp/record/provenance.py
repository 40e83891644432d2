"""Where a result came from: versions, code, machine, command line."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rmu_exp.settings import Judge, Run
from rmu_exp.support.redaction import redact

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
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "peft",
)
SWITCHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


def describe(run: Run | Judge, device: str) -> dict[str, Any]:
    """The settings and their hash, versions, git state, hardware, seeds and command line of this process.

    Args:
        device: the device that the run used.
    """
    return {
        "config": settings(run),
        "config_hash": run.digest,
        "seeds": {"seed": run.seed},
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(device),
    }


def command() -> str:
    """The command line of this process, without secrets."""
    return redact("python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def settings(run: Run | Judge) -> dict[str, Any]:
    """Every setting but the place of the folder: the content of config.yaml."""
    return {key: value for key, value in dataclasses.asdict(run).items() if key != "output"}


def versions() -> dict[str, str]:
    """Of Python and of every package that can change a number."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and what its files differ from it by.

    Returns:
        ``commit``, ``dirty`` and, when dirty, ``diff``: sha256 of ``git diff HEAD``; None: there is no checkout.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, timeout=20)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.decode(errors="replace")

    try:
        state: dict[str, Any] = {"commit": git("rev-parse", "HEAD").strip()}
        difference = git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    state["dirty"] = bool(difference)
    return state | ({"diff": hashlib.sha256(difference.encode()).hexdigest()} if difference else {})


def hardware(device: str) -> dict[str, Any]:
    """The processor, what of it is used, and the accelerator: bits may differ where these do."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def peak_memory(device: str) -> int:
    """Most memory in use so far, in bytes: of the GPU in use, otherwise of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
