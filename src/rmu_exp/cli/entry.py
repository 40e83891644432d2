"""The command line of train.py and judge.py, around ``hydra.main``.

Hydra composes, and calls :class:`Checks` before anything is written and after a sweep; every error ends here as one
line. Imports nothing heavy; what a sweep needs beyond that is loaded when there is one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write

from rmu_exp.cli.compose import checked, ended, outlined, prepared, refused, silence_libraries
from rmu_exp.config.reference import page
from rmu_exp.settings import Judge, Run
from rmu_exp.support import program
from rmu_exp.support.boundary import FULL, full_disk
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.redaction import redact
from rmu_exp.sweep import overrides as sweeping

CONF = (Path(__file__).parents[1] / "conf").resolve()
RESUME = "resume="
NOTHING_DONE = "stopped before anything was done; the same command starts it"
BEGUN: list[DictConfig] = []
"""Hydra's settings of what this program has begun, once they were checked; a trial may put its own into HydraConfig."""
sweeping.register()  # wherever Hydra unpickles its callbacks, trials have their names


def start(main: Callable[[], object]) -> None:
    """Run a program that is decorated by ``hydra.main``; leaves with its exit status."""
    silence_libraries()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through, of which Hydra would print the traceback
    words, judging = sys.argv[1:], program.judging()
    if asked := next((word for word in words if word in ("-h", "--help")), None):
        named = words[words.index(asked) + 1 :][:1]
        try:
            sys.stdout.write(page(CONF, "judge" if judging else "train", *named))
        except UserError as error:
            sys.exit(ended(error))
        sys.exit(0)
    if any(word.startswith(RESUME) for word in words):
        sys.exit(get_method("rmu_exp.cli.job.resume")(words, judging))
    sys.argv[1:] = prepared(words)
    try:
        main()
    except BaseException as error:
        sys.exit(_end(error, sys.argv[1:]))


def _end(error: BaseException, words: Sequence[str]) -> int:
    """Bring a program that did not end by itself to its end. Returns the exit status."""
    hydra = BEGUN[0] if BEGUN else None
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif hydra is None:
        return _refuse(error, words)
    elif hydra.mode == RunMode.MULTIRUN and not isinstance(error, UserError):
        why = refused(error, words) or f"{type(error).__name__}: {first_line(error)}"
        stopped = isinstance(error, KeyboardInterrupt)
        return _finish_sweep("interrupted" if stopped else f"the launcher gave up ({why})")
    else:
        status = ended(error, words, Path(hydra.runtime.output_dir), NOTHING_DONE)
    if hydra is not None and status:
        remove_if_empty(Path(hydra.runtime.output_dir), Path(hydra.runtime.existing))
    return status


def _refuse(error: BaseException, words: Sequence[str]) -> int:
    """The exit status where nothing has begun: whatever Hydra raises at odd input is its refusal."""
    try:
        return ended(error, words, interrupted=NOTHING_DONE)
    except Exception:
        return ended(UserError(f"command line: {first_line(error)}"))


def job(config: DictConfig) -> float:
    """What ``hydra.main`` calls, for a run as for a trial. Returns the metric that a sweeper may maximise."""
    found: float = get_method("rmu_exp.cli.job.run")(config)  # imports torch, which the first line need not wait for
    return found


def announce(config: DictConfig) -> None:
    """Say what runs, on what, and where its results go: the first line on screen, before anything heavy is loaded."""
    if "unlearned" in list(config):
        what = f"evaluating {config.unlearned}"
    else:
        what = f"{config.method.name} on {config.model.name}, layer {config.layer}, steer {config.steer}"
    print(f"{what}, data {config.data.name}; results in {config.hydra.run.dir}", flush=True)


class Checks(Callback):
    """Refuses wrong settings in one line with exit status 2, and sees a sweep to its report.

    Hydra swallows what its callbacks raise, but lets them leave the program.

    Args:
        objectives: what the report of a sweep compares: forget, general, worst.
        forget, general: the groups or tasks that these stand for; empty: those with that role.
    """

    def __init__(self, objectives: Sequence[str], forget: Sequence[str] = (), general: Sequence[str] = ()) -> None:
        self.compared = {"objectives": list(objectives), "forget": list(forget), "general": list(general)}

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Check a run's settings and its folder."""
        with _refusing(config):
            outlined(config)
            announce(config)
            checked(config, config.hydra.overrides.task)
            _start(config, Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Check each value of a sweep, its launcher and its folder, and plan its trials."""
        given, loader = list(config.hydra.overrides.task), GlobalHydra.instance().config_loader()

        def settings(words: list[str]) -> Run | Judge:
            return checked(loader.load_sweep_config(config, words), given)

        with _refusing(config):
            overrides = sweeping.sweep_of(given, config.hydra)
            for words in sweeping.once_each(overrides):
                settings(words)
            fixed = [o.key_or_group for o in overrides if not o.is_sweep_override()]
            with read_write(config), open_dict(config):
                config.hydra.overrides.hydra.append(sweeping.tell_trials(fixed))
            get_method("rmu_exp.sweep.session.begin")(config, overrides, settings, self.compared)
            _start(config, Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Write the report. The program ends with status 1 when a trial did not finish."""
        if status := _finish_sweep():
            sys.exit(status)


@contextmanager
def _refusing(config: DictConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        sys.exit(_refuse(error, list(config.hydra.overrides.task)))


def _finish_sweep(why: str = "") -> int:
    """Write the report of the sweep that this program has started; ``why`` it ended early. Returns the exit status."""
    folder = Path(BEGUN[0].runtime.output_dir)
    try:
        return int(get_method("rmu_exp.sweep.session.finish")(folder, why))
    except Exception as error:  # Hydra would swallow it, and a fault of the program, too
        try:
            return ended(error, folder=folder)
        except Exception:
            print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
            return 1


def _start(config: DictConfig, folder: Path) -> None:
    """Note the folder, and what there is of it already, where the end of the program finds it."""
    with read_write(config.hydra), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder.absolute())
        config.hydra.runtime.existing = str(existing_part(folder))
    HydraConfig.instance().set_config(config)
    BEGUN[:] = [config.hydra]


def existing_part(folder: Path) -> Path:
    """The deepest folder of a path that exists.

    Raises UserError when it cannot be written to, RunError when its disk is full. Nothing is left behind.
    """
    existing = folder.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryDirectory(dir=existing, prefix=".rmu_exp-"):
            return existing
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        full = full_disk(error, folder, f"the same command with output={folder} resumes it")
        if full is not None and number in FULL:
            raise full from error
        reason = os.strerror(number).lower() if number else str(error)
    # outside of the block: a refusal that came from an error of the disk would be taken for one
    raise UserError(f"output: cannot write to {folder} ({reason}); choose another folder")


def remove_if_empty(folder: Path, existing: Path) -> None:
    """Remove the folders that were made for a run that was then refused, down to what was there before."""
    with suppress(OSError):
        while existing in folder.parents:
            folder.rmdir()
            folder = folder.parent
