"""The command line of train.py and judge.py: what is wrong is refused before anything starts.

:func:`guard` composes the configuration once, ahead of Hydra's own run, and turns every mistake into
one line on standard error and exit status 2, with nothing written. :func:`run` is one job.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rmu_exp.config.compose import composed, offer_all
from rmu_exp.config.parse import parse, parse_judge
from rmu_exp.settings import Judge, Run
from rmu_exp.support import disk
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.files import LOCK
from rmu_exp.support.redaction import redact

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
        from rmu_exp.config.reference import page

        sys.stdout.write(page(conf, name))
        sys.exit(0)
    if args.info or args.shell_completion or args.hydra_help:
        main()
        return
    global _was_there
    try:
        if args.multirun and name == "judge":
            raise UserError("-m: judge.py judges one model at a time; use a loop, each with an output=DIR of its own")
        folder = Path(composed(args.overrides, conf, multirun=args.multirun, name=name)[0].output)
        _was_there = check_writable(folder)
    except (UserError, RunError) as error:
        sys.exit(_tell(error, 2 if isinstance(error, UserError) else 1))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through, of which Hydra would print the traceback
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(_stopped(folder))
    except OSError as error:
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
        from rmu_exp.pipeline import judgement

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
        from rmu_exp.pipeline import run as pipeline  # heavy

        pipeline.execute(wanted, folder)
    except (UserError, RunError) as error:
        _remove_if_empty(folder)
        return _tell(error, 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        return _stopped(folder)
    return 0


def _stopped(folder: Path) -> int:
    """Tell how a run that was asked to stop goes on. Returns the exit status."""
    if (folder / "config.yaml").is_file():
        return _tell(f"stopped; python {Path(sys.argv[0]).name} {RESUME}{shlex.quote(str(folder))} goes on", 1)
    _remove_if_empty(folder)
    return _tell("stopped before anything was done; the same command starts it", 1)


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
    from rmu_exp.record import rundir  # heavy

    found = rundir.of(file)
    if found.judged != judging:
        whose, other = ("judge.py", "train.py") if judging else ("train.py", "judge.py")
        raise UserError(f"resume: {folder} is not of {whose}; python {other} {RESUME}{folder}")
    wanted = found.settings
    wanted.output = str(folder)
    if found.digest != wanted.digest:
        raise UserError(f"{file}: its digest is not that of its settings; it was changed, or made by another version")
    return wanted


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
