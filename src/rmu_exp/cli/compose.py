"""The words of a command line, the settings that they compose to, and the one line for what is wrong with them.

The only place that knows what Hydra and OmegaConf write. Imports nothing heavy.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config import plugins
from rmu_exp.config.parse import (
    one_line,
    outline,
    outline_judge,
    parse,
    parse_judge,
    register,
    unknown_attack_key,
    unknown_key,
)
from rmu_exp.settings import Judge, Run
from rmu_exp.support import program
from rmu_exp.support.boundary import line_for
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.files import moved_homes
from rmu_exp.support.redaction import redact
from rmu_exp.support.setting import keys_of
from rmu_exp.sweep.overrides import key_of, once_each, sweep_of

SPECIAL = set("=,'\"()[]{}:;\\ \t")  # characters that mean something to Hydra inside a value
# Launchers that their packages add to the choices, and the extra that installs them.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
QUIET = {  # other libraries, which read this when they are imported
    "TQDM_DISABLE": "1",
    "HF_HUB_VERBOSITY": "error",  # its client reports every retry
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",  # without it every fork after tokenizing is warned of
}
register()


def silence_libraries() -> None:
    """Leave out what other libraries would print, progress bars where nobody looks among it.

    Where the user's cache or settings folders cannot be written to, libraries get others, and one line says so.
    """
    if moved := moved_homes():
        os.environ |= moved
        lost = ", ".join(key for key in moved if key.startswith("XDG_"))
        place = next(iter(moved.values()))
        print(f"rmu_exp: your folders for {lost} cannot be written to; {place} and its like are used", file=sys.stderr)
    bars = {} if sys.stderr.isatty() else {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ |= QUIET | bars | os.environ
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft imports where it is installed


def prepared(words: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it.

    Values that name files or folders are quoted where they need it, and so are those that Hydra takes in quotes only.
    A key inside a swept group (``method=npo,simnpo method.beta=0.1``) is set in every trial, though the group's
    default may not know it.
    """
    flags = [word for word in words if word in ("-m", "--multirun")]  # which Hydra does not take between overrides
    ready = [*flags, *(_quoted(word) for word in words if word not in flags)]
    swept = tuple(f"{word.partition('=')[0]}." for word in ready if _is_sweep(word))
    return [f"++{word}" if word.startswith(swept) else word for word in ready]


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    if word.startswith("-") or not SPECIAL & set(value):
        return word
    if paths := _paths(value.split(",")):
        return f"{key}={','.join(map(quote, paths))}"
    quoted = f"{key}={quote(value)}"
    if value[0] not in "[{'\"$" and "(" not in value and not _parsed(word) and _parsed(quoted):
        return quoted
    return word


def _paths(parts: list[str]) -> list[str]:
    """The parts put together again to names of files or folders that exist; empty when they are none."""
    for count in range(len(parts), 0, -1):
        head = ",".join(parts[:count])
        try:
            there = bool(head) and Path(head).expanduser().exists()
        except (OSError, ValueError):  # no name for a file
            continue
        if there and (count == len(parts) or (rest := _paths(parts[count:]))):
            return [head, *(rest if count < len(parts) else [])]
    return []


def quote(value: str) -> str:
    """A value in quotes, as Hydra takes it whatever it holds."""
    end = value[len(value.rstrip("\\")) :]  # backslashes before the closing quote count double
    return "'" + value.replace("'", "\\'") + end + "'"


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except Exception:  # whatever the parser raises at odd input is its refusal
        return None


def _is_sweep(word: str) -> bool:
    override = _parsed(word)
    return override is not None and override.is_sweep_override()


def outlined(config: DictConfig) -> None:
    """Check of a composed configuration what can be checked at once, without torch. Raises UserError."""
    (outline_judge if _judging(config) else outline)(_own(config))


def _own(config: DictConfig) -> DictConfig:
    """A copy without what is Hydra's."""
    config = copy.deepcopy(config)
    with read_write(config), open_dict(config):
        config.pop("hydra", None)
    return config


def _judging(config: DictConfig) -> bool:
    return "unlearned" in list(config)  # `in` says no to a key without a value


def checked(config: DictConfig, given: Sequence[str] = ()) -> Run | Judge:
    """A composed configuration as checked settings; ``given``: the overrides on the command line. Raises UserError."""
    config = _own(config)
    if not _judging(config):
        return parse(config)
    return parse_judge(get_method("rmu_exp.pipeline.judgement.completed")(config, list(map(key_of, given))))


def composed(words: Sequence[str], conf: Path, name: str = "train", multirun: bool = False) -> list[Run | Judge]:
    """The settings of a command line that is not run; of a sweep, with each swept value once. Raises UserError."""
    try:
        with hydra.initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            lines = [prepared(words)]
            if multirun:
                plain = [word for word in lines[0] if not _is_sweep(word)]
                whole = hydra.compose(name, overrides=plain, return_hydra_config=True)
                lines = list(once_each(sweep_of(lines[0], whole.hydra)))
            return [checked(hydra.compose(name, overrides=line), line) for line in lines]
    except (UserError, RunError):
        raise
    except Exception as error:  # whatever Hydra raises at odd input is its refusal
        raise refused(error, words) or UserError(f"command line: {type(error).__name__}: {error}") from error


def ended(
    error: BaseException, words: Sequence[str] = (), folder: Path | None = None, interrupted: str = "interrupted"
) -> int:
    """Print the one line for an error. Raises the error when it is a fault of the program.

    Args:
        words: the command line.
        folder: where the program writes.
        interrupted: the line for an interruption.

    Returns:
        The exit status: 2 the user's input is wrong, 1 it failed or was stopped.
    """
    line: object = interrupted
    if not isinstance(error, KeyboardInterrupt):
        then = f"the same command with output={folder} resumes it" if folder else "run it again"
        line = line_for(error, folder or Path(), then, (lambda cause: refused(cause, words),))
    if line is None:
        raise error
    print(redact(f"rmu_exp: {line}"), file=sys.stderr, flush=True)
    return 2 if isinstance(line, UserError) else 1


def refused(error: BaseException, words: Sequence[str] = ()) -> UserError | None:
    """What Hydra or OmegaConf refuse, as one line: the key, what was given, what is allowed. None: something else."""
    if str(error).startswith("Error merging override") and error.__cause__:
        error = error.__cause__  # a wrong type, which OmegaConf says better
    if isinstance(error, OmegaConfBaseException) and "is not in struct" not in str(error):
        return UserError(one_line(error))
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        quotes = f"; a value with special characters stands in quotes: '{key}=\"{value}\"'" if value else ""
        return UserError(f"command line: {_first_lines(error)}{quotes}")
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
    if found := re.search(r"Could not load 'attacks/([^']+)'", text):  # a choice in a list of choices
        return f"attacks: got {found[1]!r}, allowed is {', '.join((*plugins.files(plugins.ATTACKS), 'all'))}"
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=']+)=", text):
        return f"{found[1]}: several values need a sweep; add -m, or write '{found[1]}=[…]' for a list"
    return f"command line: {_first_lines(text)}"


def _no_such_key(key: str, words: Sequence[str]) -> str:
    """The line for a key that is not there; the keys of a method are those of the one that the words name."""
    if key.startswith("hydra."):
        return f"{key}: no such key; `{program.command('train')} … --cfg hydra` shows those there are"
    if key.startswith("attacks."):
        return unknown_attack_key(key)
    known = keys_of(Judge)
    if not program.judging():
        named = [word.partition("=")[2] for word in words if word.startswith("method=")]
        method = named[-1] if named and named[-1] in plugins.files(plugins.METHODS) else "rmu"
        known = [*keys_of(Run), *(f"method.{name}" for name in plugins.declared(plugins.METHODS, method))]
    near = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return unknown_key(key, near or keys_of(Run))


def _first_lines(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])
