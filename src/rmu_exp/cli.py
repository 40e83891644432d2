"""The command line: Hydra composes, this module refuses what is wrong before anything starts.

:func:`guard` composes the configuration once, ahead of Hydra's own run, and turns every mistake into
one line on standard error and exit status 2, with nothing written. :func:`run` is one job.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rmu_exp import disk
from rmu_exp.attacks import registry
from rmu_exp.errors import RunError, UserError
from rmu_exp.parse import keys_of, one_line, parse, parse_judge, unknown_key
from rmu_exp.paths import LOCK
from rmu_exp.run import Judge, Run
from rmu_exp.secrets import redact
from rmu_exp.unlearn import catalog

ConfigStore.instance().store("run_schema", Run)
ConfigStore.instance().store("judge_schema", Judge)
RESUME = "resume="
DEFAULT = re.compile(r"outputs/[\d-]+/[\d-]+")  # the output folder of conf/config.yaml
_was_there: Path | None = None  # what there was of the output folder's path before this program


def guard(main: Callable[[], Any], conf: Path, name: str = "config") -> None:
    """Check the command line, then hand over to Hydra.

    Args:
        main: the program's function, decorated by ``hydra.main``.
        conf: the folder of configurations.
        name: of the one that the program composes.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # other libraries' bars; read when they are imported
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub client tells of every retry; read on import, too
    args = get_args_parser().parse_args()
    offer_all(conf)
    if any(word.startswith(RESUME) for word in args.overrides):
        sys.exit(resume(args.overrides, judging=name == "judge"))
    if args.help:
        from rmu_exp.help import page

        sys.stdout.write(page(conf, name))
        sys.exit(0)
    if args.info or args.shell_completion or args.hydra_help:
        main()
        return
    try:
        runs = check(args.overrides, conf, multirun=args.multirun, name=name)
    except (UserError, RunError) as error:
        sys.exit(_tell(error, 2 if isinstance(error, UserError) else 1))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through, of which Hydra would print the traceback
    try:
        main()
    except OSError as error:
        folder = Path(runs[0].output)
        line = disk.told(error, folder, f"the same command with output={folder} goes on")
        if line is None:
            raise
        sys.exit(_tell(line, 1))


def run(config: DictConfig) -> None:
    """One job: parse and carry out."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    judging = "unlearned" in config
    if hydra.mode == RunMode.MULTIRUN and not judging:
        from rmu_exp.sweep import trial

        os.environ.setdefault("TQDM_DISABLE", "1")  # a trial may have a process of its own
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        return trial.carry_out(config, folder, hydra.sweeper)
    given = [word.split("=")[0].lstrip("+~") for word in hydra.overrides.task]
    if "output" not in given and DEFAULT.fullmatch(str(config.output)):
        folder = _own(folder)
    status = 0
    if judging:
        from rmu_exp import judgement

        status = carry_out(lambda: parse_judge(judgement.taken_up(config, given)), folder)
    else:
        status = carry_out(lambda: parse(config), folder)
    if status:
        sys.exit(status)


def _own(folder: Path) -> Path:
    """The default folder; one beside it when another run has begun in the same second, by whatever clock."""
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        place.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (place / LOCK).touch(exist_ok=False)
            break
    return place


def carry_out(asked: Callable[[], Run | Judge], folder: Path) -> int:
    """A run or a judgement in its folder; what goes wrong is told in one line. Returns the exit status."""
    try:
        wanted = asked()
        if isinstance(wanted, Judge):
            from rmu_exp import judgement

            judgement.execute(wanted, folder)
        else:
            from rmu_exp import pipeline  # heavy

            pipeline.execute(wanted, folder)
    except (UserError, RunError) as error:
        _remove_if_empty(folder)
        return _tell(error, 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        program = Path(sys.argv[0]).name
        return _tell(f"stopped; python {program} {RESUME}{shlex.quote(str(folder))} goes on", 1)
    return 0


def resume(words: Sequence[str], judging: bool) -> int:
    """``resume=DIR``: go on with the run in a folder, whose settings it holds. Returns the exit status."""
    global _was_there
    try:
        if len(words) > 1:
            raise UserError("resume: goes alone; the folder holds the run's settings")
        folder = Path(words[0].removeprefix(RESUME)).expanduser()
        wanted = stored(folder, judging)
        _was_there = check_writable(folder)
    except (UserError, RunError) as error:
        return _tell(error, 2 if isinstance(error, UserError) else 1)
    return carry_out(lambda: wanted, folder)


def stored(folder: Path, judging: bool = False) -> Run | Judge:
    """The run or the judgement whose folder this is.

    Raises:
        UserError: it is no such folder, or its settings are damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        sweep = f"; a sweep goes on by its own command with output={folder}"
        also = sweep if (folder / "sweep.yaml").is_file() else ""
        raise UserError(f"resume: {folder} is no run's folder (no config.yaml){also}")
    from rmu_exp import rundir  # heavy

    found = rundir.of(file)
    if found.judged != judging:
        whose, other = ("judge.py", "train.py") if judging else ("train.py", "judge.py")
        raise UserError(f"resume: {folder} is not of {whose}; python {other} {RESUME}{folder}")
    wanted = found.settings
    wanted.output = str(folder)
    if found.digest != wanted.digest:
        raise UserError(f"{file}: its digest is not that of its settings; it was changed, or made by another version")
    return wanted


def offer_all(conf: Path) -> None:
    """Let ``attacks=all`` mean every file of conf/attacks/."""
    ConfigStore.instance().store(registry.ALL, {"defaults": registry.names(conf)}, group="attacks")


def check(overrides: Sequence[str], conf: Path, multirun: bool = False, name: str = "config") -> list[Any]:
    """Compose and parse what the overrides ask for; in a sweep, each swept value once.

    Raises:
        UserError: in one line.
    """
    try:
        with _strict():
            parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"command line: {_first_lines(error)}") from error
    swept = [o for o in parsed if o.is_sweep_override()]
    for override in parsed:
        if override.key_or_group == "attacks" and not override.is_sweep_override():
            registry.refuse_unknown(override.value(), conf)
    if swept and not multirun:
        key = swept[0].key_or_group
        raise UserError(f"{key}: several values need a sweep; add -m, or write '{key}=[…]' for a list")
    plain = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    runs = []
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        for override in parsed:
            override.config_loader = GlobalHydra.instance().config_loader()  # of glob(…)
        if multirun:
            from rmu_exp.sweep import check as sweeps

            sweeps.check_choices(parsed)
            swept = sweeps.check(_with_hydra(plain, parsed), parsed, swept)
        first = [next(iter(_values(o)), None) for o in swept]
        chosen = [c for c in first if c is not None]
        runs.append(_compose([*plain, *chosen], parsed, name))
        for i, override in enumerate(swept):
            for value in list(_values(override))[1:]:
                others = [c for j, c in enumerate(first) if j != i and c is not None]
                runs.append(_compose([*plain, *others, value], parsed, name))
    GlobalHydra.instance().clear()
    global _was_there
    _was_there = check_writable(Path(runs[0].output))
    return runs


def check_writable(folder: Path) -> Path:
    """The deepest folder of a path that exists. Refuses what cannot be written to; leaves nothing behind."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".rmu_exp-"):
            pass
    except OSError as error:
        if error.errno in disk.FULL:
            raise RunError(disk.told(error, folder, f"the same command with output={folder} goes on")) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"output: cannot write to {folder} ({reason.lower()}); choose another folder") from error
    return existing


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    interval = cast(IntervalSweep, override.value())  # of a search: its ends
    return [f"{key}={interval.start}", f"{key}={interval.end}"]


def _with_hydra(plain: list[str], parsed: list[Override]) -> DictConfig:
    """Hydra's own settings: the launcher and the sweeper."""
    try:
        with _strict():
            return compose("config", overrides=plain, return_hydra_config=True).hydra
    except HydraException as error:
        raise UserError(_translate(error, parsed, Run)) from error


def _compose(overrides: list[str], parsed: list[Override], name: str) -> Run | Judge:
    try:
        with _strict():
            composed = compose(name, overrides=overrides)
        if name == "config":
            return parse(composed)
        from rmu_exp import judgement

        return parse_judge(judgement.taken_up(composed, [o.key_or_group for o in parsed]))
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" not in str(cause):
            raise UserError(one_line(cause)) from error
        raise UserError(_translate(error, parsed, Run if name == "config" else Judge)) from error


@contextmanager
def _strict() -> Iterator[None]:
    """Whatever Hydra raises at odd input is its refusal."""
    try:
        yield
    except (HydraException, UserError):
        raise
    except Exception as error:
        raise HydraException(f"{type(error).__name__}: {error}") from error


def _translate(error: HydraException, parsed: list[Override], schema: type) -> str:
    """Hydra's message as one line: the key, what was given, what is allowed."""
    text = str(error)
    for override in parsed:
        key, value = override.key_or_group, override.input_line or ""
        given = value.split("=", 1)[-1]
        if f"Could not override '{key}'" in text and key.startswith("hydra."):
            return f"{key}: no such key; `python train.py … --cfg hydra` shows those there are"
        if f"Could not override '{key}'" in text:
            if key.startswith("attacks."):
                return registry.unknown_setting(key)
            near = key.rsplit(".", 1)[0] + "." if "." in key else ""
            known = [k for k in _known_keys(parsed, schema) if k.startswith(near) and "." not in k[len(near) :]]
            return unknown_key(key, known or keys_of(schema))
        if "Available options in" in text and f"'{key}/{given}'" in text.splitlines()[0]:
            listed = text.split("Available options in")[1].split("Config search path")[0]
            options = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
            return f"{key}: got {given!r}, allowed is {', '.join(options)}"
    return f"command line: {_first_lines(error)}"


def _known_keys(parsed: list[Override], schema: type) -> list[str]:
    """Every key, with the settings of the method that the command line names."""
    if schema is not Run:
        return keys_of(schema)
    named = [str(o.value()) for o in parsed if o.key_or_group == "method" and not o.is_sweep_override()]
    method = named[-1] if named and named[-1] in catalog.names() else "rmu"
    return [*keys_of(Run), *(f"method.{f.name}" for f in dataclasses.fields(catalog.settings(method)))]


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])


def _tell(message: object, status: int) -> int:
    print(redact(f"rmu_exp: {message}"), file=sys.stderr)
    return status


def _remove_if_empty(folder: Path) -> None:
    """Take back the folders that Hydra made for a job that was then refused."""
    folder = folder.absolute()
    for candidate in (folder, *folder.parents):
        if candidate == _was_there or (candidate != folder and _was_there not in candidate.parents):
            return
        try:
            candidate.rmdir()
        except OSError:
            return
