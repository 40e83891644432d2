"""trackio: runs in files of this machine (TRACKIO_DIR), looked at in its own dashboard. No account, no network.

It has neither summary nor tags: numbers of the whole run are logged once, at its end, and the rest is in its config.
"""

from __future__ import annotations

import io
import os
import shlex
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from contextvars import Context
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError
from rmu_exp.tracking.logged import NOTHING, Line
from rmu_exp.tracking.tracker import ClientTracker, Head, say

if TYPE_CHECKING:
    import trackio


def refuse(settings: Tracking) -> None:
    """Raise UserError where trackio is not installed, or something else than a run on this machine is asked for."""
    if find_spec("trackio") is None:
        raise UserError("tracking: trackio is not installed; pip install 'rmu_exp[trackio]'")
    if settings.mode == "online" or settings.entity:
        key = "mode=online" if settings.mode == "online" else f"entity={settings.entity}"
        raise UserError(f"tracking.{key}: trackio keeps runs on this machine; leave it out, or choose tracking=wandb")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        if os.environ.get(name):
            raise UserError(f"{name}: runs are tracked on this machine; unset it, and let `trackio sync` upload them")


def project(settings: Tracking) -> str:
    """trackio's project."""
    return settings.project or "rmu_exp"


def show_line(settings: Tracking) -> str:
    """How to look at what is tracked."""
    return f"tracked by trackio; see it with: trackio show --project {shlex.quote(project(settings))}"


class TrackioTracker(ClientTracker["trackio.Run"]):
    """A run of trackio, found again by its name, which is why no other of the project gets the same."""

    library, title, kept = "trackio", "trackio", "trackio.json"
    about: Line = NOTHING
    told = False  # whether the run has been told anything since it was opened

    def __init__(self, settings: Tracking, folder: Path, head: Head, quiet: bool) -> None:
        warnings.filterwarnings("ignore", module=r"trackio\b")  # what matters is said here
        super().__init__(settings, folder, head, quiet)

    def _open(self) -> tuple[trackio.Run, str]:
        name = self.known.id or self._unused(self.settings.name or self.head.name)
        run = self._init(name)
        if not self.quiet:
            say(show_line(self.settings))
        return run, name

    def _init(self, name: str) -> trackio.Run:
        import huggingface_hub
        import trackio

        more = {"tags": [*self.settings.tags, *self.head.tags], "job_type": self.head.kind}
        watch = None if self.settings.system else False
        # it would ask the hub whose token lies here
        nobody = patch.object(huggingface_hub, "whoami", side_effect=OSError)
        with redirect_stdout(io.StringIO()), nobody:
            return Context().run(  # in a context of its own, or trackio ends the run again when the process ends
                trackio.init,
                project=project(self.settings),
                name=name,
                group=self.settings.group,
                config={**self.head.config, **more, **self.about},
                resume="allow",
                embed=False,
                auto_log_cpu=watch,
                auto_log_gpu=watch,
            )

    def _unused(self, name: str) -> str:
        taken = self._stored()
        return next(n for i in count(1) if (n := name if i == 1 else f"{name}-{i}") not in taken)

    def _stored(self) -> Mapping[str, Mapping[str, object] | None]:
        """Name to config of the runs that the project has."""
        import trackio

        try:
            return {run.name: run.config for run in trackio.Api().runs(project(self.settings))}
        except ValueError:  # there is no such project yet
            return {}

    def _log(self, run: trackio.Run, values: Line, step: int) -> None:
        self.told = True
        run.log(dict(values), step=step)

    def _end(self, run: trackio.Run, values: Line, numbers: Line, about: Line) -> None:
        """The config is stored with the first line after a run is opened, so it is opened again."""
        self._finish(run)
        self.about = about
        run = self._init(run.name)
        self.run = None if self.over else run  # it may have been given up meanwhile
        self.told = True
        run.log({**numbers, **values})

    def _finish(self, run: trackio.Run) -> None:
        """Ends the run, and looks whether it is there: trackio itself only warns when it could not write."""
        with redirect_stdout(io.StringIO()):
            run.finish()
        if self.told and self._stored().get(run.name) != run.config:
            raise OSError("it could not write everything")
        self.told = False
