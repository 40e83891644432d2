"""The command line of train.py and judge.py, around ``hydra.main``.

Hydra composes; what is wrong is refused by :mod:`rmu_exp.cli.callback` before anything is written, and every error
ends here as one line. Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from rmu_exp.cli.callback import finish_sweep
from rmu_exp.cli.compose import prepared
from rmu_exp.cli.endings import ended, refused, say
from rmu_exp.cli.folders import remove_if_empty
from rmu_exp.config.reference import page
from rmu_exp.support.errors import UserError, first_line

RESUME = "resume="
NOTHING_DONE = "stopped before anything was done; the same command starts it"
ENVIRONMENT = {
    "HYDRA_FULL_ERROR": "1",  # let errors through, of which Hydra would print the traceback
    "TQDM_DISABLE": "1",  # other libraries' progress bars; read when they are imported, as is the next
    "HF_HUB_VERBOSITY": "error",  # the hub client reports every retry
}


def start(main: Callable[[], object], conf: Path) -> None:
    """Run a program, and leave it with its exit status.

    Args:
        main: the program's function, decorated by ``hydra.main``.
        conf: the folder of configurations.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    words, judging = sys.argv[1:], Path(sys.argv[0]).stem == "judge"
    if asked := next((word for word in words if word in ("-h", "--help")), None):
        named = words[words.index(asked) + 1 :][:1]
        try:
            sys.stdout.write(page(conf, "judge" if judging else "train", *named))
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
    begun = HydraConfig.initialized()  # by the callback, once the settings were checked
    hydra = cast(DictConfig, HydraConfig.get()) if begun else OmegaConf.create()
    folder = Path(hydra.runtime.output_dir) if begun else None
    sweeping = begun and hydra.mode == RunMode.MULTIRUN
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif sweeping and isinstance(error, KeyboardInterrupt):
        return finish_sweep("interrupted")
    elif sweeping and not isinstance(error, UserError):
        return finish_sweep(
            f"the launcher gave up ({refused(error, words) or f'{type(error).__name__}: {first_line(error)}'})"
        )
    else:
        try:
            status = ended(error, words, folder, NOTHING_DONE)
        except Exception as fault:
            if begun:
                raise
            status = say(UserError(f"command line: {first_line(fault)}"), 2)
    if folder and status:
        remove_if_empty(folder, Path(hydra.runtime.existing))
    return status
