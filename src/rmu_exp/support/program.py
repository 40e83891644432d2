"""How the program was started, for whatever says what to type next: a checkout's scripts, or ``rmu-exp``."""

from __future__ import annotations

import sys
from pathlib import Path

INSTALLED, MODULE = "rmu-exp", "python -m rmu_exp"
RUNS = ("train", "judge")  # commands that Hydra reads, which a checkout has as scripts


def started() -> str:
    """``python train.py`` in a checkout, ``rmu-exp train`` where the package is installed."""
    name = Path(sys.argv[0]).name
    return name if name.startswith((INSTALLED, MODULE)) else f"python {name}"


def judging() -> bool:
    """Whether a model that exists is evaluated, not trained."""
    return started().removesuffix(".py").endswith(" judge")


def command(name: str) -> str:
    """A command of the project as it is typed here."""
    for prefix in (INSTALLED, MODULE):
        if started().startswith(prefix):
            return f"{prefix} {name}"
    return f"python {name}.py" if name in RUNS else f"{MODULE} {name}"
