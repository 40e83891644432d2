"""How a program ends: any error as one line on standard error, and its exit status.

The only place that knows what Hydra and OmegaConf write. Statuses: 2 the user's input is wrong, 1 it failed or was
stopped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config import plugins
from rmu_exp.config.parse import one_line, unknown_attack_key, unknown_key
from rmu_exp.settings import Judge, Run
from rmu_exp.support.boundary import line_for
from rmu_exp.support.errors import UserError
from rmu_exp.support.redaction import redact
from rmu_exp.support.setting import keys_of

# Launchers that their packages add to the choices, and the extra that installs them.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}


def ended(
    error: BaseException, words: Sequence[str] = (), folder: Path | None = None, interrupted: str = "interrupted"
) -> int:
    """Print the one line for an error. Returns the exit status; raises the error when it is a fault of the program.

    Args:
        words: the command line.
        folder: where the program writes.
        interrupted: the line for an interruption.
    """
    if isinstance(error, KeyboardInterrupt):
        return say(interrupted, 1)
    then = f"the same command with output={folder} resumes it" if folder else "run it again"
    line = line_for(error, folder or Path(), then, (lambda cause: refused(cause, words),))
    if line is None:
        raise error
    return say(line, 2 if isinstance(line, UserError) else 1)


def say(message: object, status: int) -> int:
    """Print a line as every message of the program looks. Returns the status."""
    print(redact(f"rmu_exp: {message}"), file=sys.stderr, flush=True)
    return status


def refused(error: BaseException, words: Sequence[str] = ()) -> UserError | None:
    """What Hydra or OmegaConf refuse, as one line: the key, what was given, what is allowed. None: something else."""
    if isinstance(error, OmegaConfBaseException) and "is not in struct" not in str(error):
        return UserError(one_line(error))
    if isinstance(error, OverrideParseException):
        return UserError(f"command line: {_first_lines(error)}{_quotes(error.override)}")
    if isinstance(error, HydraException):
        return UserError(_composition(str(error), words))
    return None


def _composition(text: str, words: Sequence[str]) -> str:
    if found := re.match(r"Could not override '([^']+)'", text):
        return _no_such_key(found[1], words)
    missing = re.search(r"Could not find '([^']+)'", text)
    options = re.search(r"Available options in '([^']+)':\n((?:\t.*\n?)+)", text)
    if missing and options:
        group, choice = options[1], missing[1].removeprefix(f"{options[1]}/")
        if group == "hydra/launcher" and choice in EXTRAS:
            return f"{group}: {choice} is not installed; pip install 'rmu_exp[{EXTRAS[choice]}]'"
        return f"{group}: got {choice!r}, allowed is {', '.join(options[2].split())}"
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=']+)=", text):
        return f"{found[1]}: several values need a sweep; add -m, or write '{found[1]}=[…]' for a list"
    return f"command line: {_first_lines(text)}"


def _no_such_key(key: str, words: Sequence[str]) -> str:
    if key.startswith("hydra."):
        return f"{key}: no such key; `python train.py … --cfg hydra` shows those there are"
    if key.startswith("attacks."):
        return unknown_attack_key(key)
    near = key.rpartition(".")[0]
    known = [k for k in _known_keys(words) if k.rpartition(".")[0] == near]
    return unknown_key(key, known or keys_of(Run))


def _known_keys(words: Sequence[str]) -> list[str]:
    """Every key of the program, with the settings of the method that the command line names."""
    if Path(sys.argv[0]).stem == "judge":
        return keys_of(Judge)
    named = [word.partition("=")[2] for word in words if word.startswith("method=")]
    method = named[-1] if named and named[-1] in plugins.files(plugins.METHODS) else "rmu"
    return [*keys_of(Run), *(f"method.{name}" for name in plugins.declared(plugins.METHODS, method))]


def _quotes(word: str) -> str:
    key, _, value = word.partition("=")
    return f"; a value with special characters stands in quotes: '{key}=\"{value}\"'" if value else ""


def _first_lines(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])
