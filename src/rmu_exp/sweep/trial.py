"""One trial of a sweep, wherever its launcher runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rmu_exp.config.parse import parse
from rmu_exp.support.errors import BusyError, RunError, UserError
from rmu_exp.sweep import trials
from rmu_exp.sweep.prune import EarlyStopRule


def carry_out(config: DictConfig, folder: Path, sweeper: Any) -> None:
    """Run a trial in its folder; what goes wrong is noted there and ends nothing else.

    A trial that another process is at, or has finished, is left to it.
    """
    from rmu_exp.pipeline import run as pipeline  # heavy

    print(f"trial {folder.name}", file=sys.stderr, flush=True)
    try:
        run = parse(config)
        run.tracking.group = run.tracking.group or folder.parent.name
        early_stop = EarlyStopRule.of(folder.parent, sweeper)
        if not (trials.is_done(folder) and trials.digest_in(folder) == run.digest):
            pipeline.execute(run, folder, early_stop)
    except BusyError:
        print(f"rmu_exp: {folder.name}: another process is at it", file=sys.stderr)
    except (UserError, RunError) as error:
        trials.failed(folder, str(error))
        print(f"rmu_exp: {folder.name}: {error}", file=sys.stderr)
