"""The words of a command line, and the settings that they compose to. Imports nothing heavy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write

from rmu_exp.cli.endings import refused
from rmu_exp.config.parse import parse, parse_judge, register
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.sweep.overrides import once_each, sweep_of

SPECIAL = set("=,'\"()[]{}:;\\ \t")  # characters that mean something to Hydra inside a value
register()


def prepared(words: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it.

    Values that name files or folders are quoted where they need it, and so are those that Hydra takes in quotes only.
    A key inside a swept group (``method=npo,simnpo method.beta=0.1``) is set in every trial, though the group's
    default may not know it.
    """
    flags = [word for word in words if word in ("-m", "--multirun")]  # which Hydra does not take between overrides
    ready = [*flags, *(_quoted(word) for word in words if word not in flags)]
    swept = [f"{key}." for key, _, value in (word.partition("=") for word in ready) if _is_sweep(f"{key}={value}")]
    return [f"++{word}" if word.startswith(tuple(swept)) else word for word in ready] if swept else ready


def _quoted(word: str) -> str:
    key, equals, value = word.partition("=")
    if word.startswith("-") or not equals or not value or not SPECIAL & set(value):
        return word
    if paths := _paths(value.split(",")):
        return f"{key}={','.join(map(_quote, paths))}"
    quoted = f"{key}={_quote(value)}"
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


def _quote(value: str) -> str:
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


def checked(config: DictConfig, given: Sequence[str] = ()) -> Run | Judge:
    """A composed configuration as checked settings.

    Args:
        config: with or without Hydra's own part.
        given: the overrides on the command line.

    Raises:
        UserError: in one line.
    """
    config = copy.deepcopy(config)
    with read_write(config), open_dict(config):
        config.pop("hydra", None)
    keys = [word.partition("=")[0].lstrip("+~") for word in given]
    if "unlearned" not in config:
        return parse(config)
    return parse_judge(get_method("rmu_exp.pipeline.judgement.taken_up")(config, keys))


def composed(words: Sequence[str], conf: Path, name: str = "train", multirun: bool = False) -> list[Run | Judge]:
    """The settings of a command line, for programs that run nothing; of a sweep, with each swept value once.

    Raises:
        UserError: in one line.
    """
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
