"""Where a result came from: versions, code, machine, command line."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import JsonValue

from rmu_exp.record.results import Git, Provenance
from rmu_exp.settings import Judge, Run
from rmu_exp.support import program
from rmu_exp.support.redaction import redact

PACKAGES = (
    *("rmu_exp", "torch", "transformers", "datasets", "lm-eval", "hydra-core", "wandb", "safetensors"),
    *("tokenizers", "accelerate", "numpy", "scipy", "scikit-learn", "peft", "bitsandbytes"),
)
SWITCHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


def describe(run: Run | Judge, device: str, **made_from: object) -> Provenance:
    """The settings and their hash, versions, git state, hardware and seeds; ``made_from``: further fields of it."""
    return Provenance(
        config=settings(run),
        config_hash=run.digest,
        seeds={"seed": run.seed},
        versions=versions(),
        git=git_state(),
        hardware=hardware(device),
        **made_from,  # type: ignore[arg-type]
    )


def command() -> str:
    """The command line of this process, without secrets."""
    return redact(f"{program.started()} {shlex.join(sys.argv[1:])}".strip())


def settings(run: Run | Judge) -> dict[str, JsonValue]:
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


def git_state() -> Git | None:
    """Commit of the checkout that this package runs from, and what differs from it; None: there is no checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, timeout=20, check=True)
        return done.stdout.decode(errors="replace")

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie in a checkout of others
        commit, difference = git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    digest = hashlib.sha256(difference.encode()).hexdigest() if difference else None
    return Git(commit=commit, dirty=bool(difference), diff=digest)


def hardware(device: str) -> dict[str, JsonValue]:
    """The processor, what of it is used, and the accelerator: bits may differ where these do."""
    found: dict[str, JsonValue] = {
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
    """Its name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def peak_memory(device: str, over: Sequence[int] = ()) -> int:
    """Most memory in use so far, in bytes: of the GPU, of all GPUs that a model is spread over, or of this process."""
    if over:
        return sum(int(torch.cuda.max_memory_allocated(gpu)) for gpu in over)
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # which Windows has not

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
