"""Weights & Biases through its own SDK: online when a key is found, files in the run's folder otherwise."""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.tracking.logged import Line
from rmu_exp.tracking.tracker import OFF, ClientTracker, Head, say

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 30  # how long the server may take before the run goes on offline
Mode = Literal["online", "offline"]


def switched(mode: str) -> str:
    """What is wanted of W&B: its own WANDB_MODE wins over ``mode``; ``off`` when that says disabled."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower() or mode
    return {"disabled": OFF, "dryrun": "offline", "run": "online"}.get(wanted, wanted)


def refuse(settings: Tracking, sweep: bool) -> None:
    """Raise UserError where W&B's variables contradict each other, the settings, or a sweep."""
    mode, off = switched(settings.mode), os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1")
    if mode not in ("auto", "online", "offline", OFF):
        raise UserError(f"WANDB_MODE: got {mode!r}, allowed is online, offline, disabled, dryrun or run")
    if off and mode == "online":
        raise UserError("WANDB_DISABLED: contradicts the mode online; unset one of the two")
    if sweep and os.environ.get("WANDB_RUN_ID"):
        raise UserError("WANDB_RUN_ID: one run of W&B cannot hold the trials of a sweep; unset it")


class WandbTracker(ClientTracker["wandb.Run"]):
    """A run of W&B; its own variables name it where the settings do not, and add tags."""

    library, title, kept = "wandb", "W&B", "wandb/run.json"

    def __init__(self, settings: Tracking, folder: Path, head: Head, quiet: bool) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # read on import; what matters is said here
        self.mode: Mode = "offline"
        super().__init__(settings, folder, head, quiet)

    @property
    def later(self) -> str:
        return f"; what it had by then is in wandb/{f'; {self.sync}' if self.mode == 'online' else ''}"

    def _open(self) -> tuple[wandb.Run, str]:
        """Offline, if the server does not answer well."""
        run, why = None, ""
        self.mode = self._wanted()
        try:
            run = self._init()
        except Exception as error:
            if self.mode == "offline":
                raise
            self.mode, why = "offline", first_line(error)
        run = run or self._init()
        for handler in logging.getLogger("wandb").handlers:  # its log on a full disk would print a traceback per line
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        self.sync = f"upload later with: wandb sync {shlex.quote(str(Path(run.dir).parent))}"
        run.define_metric("*", step_metric="step")
        if self.mode == "offline" and (why or not self.quiet):
            say(f"W&B is offline{f' ({why})' if why else ''}; {self.sync}")
        return run, run.id

    def _wanted(self) -> Mode:
        import wandb

        wanted = switched(self.settings.mode)
        if wanted == "auto":
            with suppress(Exception):  # only whether there is a key: the server is asked by init, for a limited time
                return "online" if wandb.login(prompt=False, verify=False) else "offline"
        return "online" if wanted == "online" else "offline"

    def _init(self) -> wandb.Run:
        import wandb

        own = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=not self.settings.system,
            x_disable_meta=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=0.6 * self.settings.wait,
            finish_timeout_raises=True,
        )
        tags = [*self.settings.tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(",")), *self.head.tags]
        return wandb.init(
            mode=self.mode,
            settings=own,
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            project=self.settings.project or os.environ.get("WANDB_PROJECT") or "rmu_exp",
            entity=self.settings.entity,
            group=self.settings.group,
            id=os.environ.get("WANDB_RUN_ID") or self.known.id,  # an agent gives the first
            resume="allow" if self.mode == "online" else None,
            config=dict(self.head.config),
            name=self.settings.name or os.environ.get("WANDB_NAME") or self.head.name,
            tags=tags,
            job_type=os.environ.get("WANDB_JOB_TYPE") or self.head.kind,
        )

    def _log(self, run: wandb.Run, values: Line, step: int) -> None:
        run.log({"step": step, **values})

    def _end(self, run: wandb.Run, values: Line, numbers: Line, about: Line) -> None:
        run.config.update(dict(about), allow_val_change=True)
        run.summary.update(dict(numbers))
        if values:
            run.log(dict(values))

    def _finish(self, run: wandb.Run) -> None:
        run.finish()


def sweep_line(folder: Path) -> str:
    """How to upload what a sweep's trials and report have tracked offline; empty: nothing."""
    kept = [
        f"{pattern}/wandb/offline-run-*" for pattern in (".", "*") if any(folder.glob(f"{pattern}/wandb/offline-*"))
    ]
    if not kept:
        return ""
    return f"W&B is offline; upload later with: (cd {shlex.quote(str(folder))} && wandb sync {' '.join(kept)})"
