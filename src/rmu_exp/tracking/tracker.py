"""A tracker in general: what a run tells it, and how a client library is kept from holding the run up.

It knows none of the libraries: weights_and_biases.py and trackio.py say how theirs begins, takes values, and ends.
"""

from __future__ import annotations

import json
import logging
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.report.objectives import score
from rmu_exp.settings import Tracking
from rmu_exp.support.errors import first_line
from rmu_exp.support.files import write_atomic
from rmu_exp.support.redaction import redact
from rmu_exp.tracking import logged
from rmu_exp.tracking.logged import NOTHING, Line

log = logging.getLogger("rmu_exp")
OFF = "off"


class Tracker:
    """Tracks nothing; the base of those that do."""

    def log(self, metrics: Line, step: int) -> None:
        """One training step's metrics."""

    def finish(self, results: Results, plots: Sequence[Path], folder: Path) -> None:
        """The results of the run in a folder, once everything is measured; ends tracking."""

    def send(self, values: Line, tables: Mapping[str, Sequence[Line]], files: Mapping[str, Path]) -> None:
        """Log values, tables (whose lines need not have the same keys), pictures and pages once; ends tracking."""

    def close(self) -> bool:
        """End tracking, also when the run failed; may be called twice. Returns whether all has arrived."""
        return True


@dataclass(frozen=True)
class Head:
    """What is shown of a run before it has done anything.

    Attributes:
        name, tags: those that the run gives itself; the user's own name wins, and tags are added.
        kind: the job type: train, judge or report.
    """

    config: Mapping[str, object]
    name: str
    tags: Sequence[str]
    kind: str


class Known(BaseModel):
    """What is kept of the client's run of a folder: its id, and the fingerprint of what it was last finished with."""

    id: str | None = None
    finished: str = ""


class ClientRun(Protocol):
    """What the runs of all libraries can do."""

    @property
    def id(self) -> str: ...
    def log_artifact(self, artifact: Any, /) -> object: ...


RunT = TypeVar("RunT", bound=ClientRun)


class ClientTracker(Tracker, Generic[RunT]):
    """Config, every step, tables, plots, and the Delta as an artifact, through a client library.

    All calls after the start are made by one thread, so that none holds the run up; only the end is waited for, and
    not for long. ``run`` is the library's run: None before the start, and once tracking is over (it has ended or
    failed). A run's folder has one run of the library: a resumed run goes on in it, and a finished one opens it again
    only if there is something new.
    """

    library: ClassVar[str]  # the module with init, Table, Image, Html and Artifact
    title: ClassVar[str]
    kept: ClassVar[str]  # the file in the run's folder that remembers the library's run

    def __init__(self, settings: Tracking, folder: Path, head: Head, quiet: bool) -> None:
        self.settings, self.folder, self.head, self.quiet = settings, folder, head, quiet
        self.run: RunT | None = None
        self.over = False
        self.file, self.known = folder / self.kept, Known()
        with suppress(OSError, ValueError):
            self.known = Known.model_validate_json(self.file.read_text(encoding="utf-8"))
        self.waiting: SimpleQueue[tuple[Callable[[RunT], object], Event]] = SimpleQueue()
        if not self.known.finished:
            self._start()

    @abstractmethod
    def _open(self) -> tuple[RunT, str]:
        """Begin or continue the library's run, and say where it goes. Returns it and what to remember it by."""

    @abstractmethod
    def _log(self, run: RunT, values: Line, step: int) -> None:
        """One step's values."""

    @abstractmethod
    def _end(self, run: RunT, values: Line, numbers: Line, about: Line) -> None:
        """The last values, with tables and media; numbers for the summary; where they come from, for the config."""

    @abstractmethod
    def _finish(self, run: RunT) -> None:
        """Wait until everything has arrived. May raise whatever it wants."""

    @property
    def later(self) -> str:
        """What to do when it failed, and where what was tracked until then is."""
        return ""

    def _start(self) -> None:
        try:
            self.run, known = self._open()
        except Exception as error:
            self.over = True
            return say(f"{self.title} cannot start ({first_line(error)}); the run goes on without it")
        self._keep(Known(id=known))
        Thread(target=self._work, daemon=True).start()

    def _keep(self, known: Known) -> None:
        """Remember the library's run, if the disk takes it."""
        self.known = known
        try:
            write_atomic(self.file, known.model_dump_json() + "\n")
        except OSError as error:
            log.info("the id of %s's run is not kept (%s)", self.title, first_line(error))

    def log(self, metrics: Line, step: int) -> None:
        named = logged.of_step(metrics)
        self._do(lambda run: self._log(run, named, step))

    def finish(self, results: Results, plots: Sequence[Path], folder: Path) -> None:
        reached = score(results)
        files = {f"plots/{p.stem}": p for p in plots}
        if (page := folder / rundir.PAGE).is_file():
            files["report"] = page
        kind = self.settings.artifact
        if kind != OFF and (weights := folder / {"delta": rundir.DELTA, "export": rundir.MODEL}[kind]).exists():
            files[kind] = weights
        values = {} if reached is None else {"score": reached}
        self.send(values, logged.tables(results, folder), files, logged.summary(results), logged.about(results))

    def send(
        self,
        values: Line,
        tables: Mapping[str, Sequence[Line]],
        files: Mapping[str, Path],
        numbers: Line = NOTHING,
        about: Line = NOTHING,
    ) -> None:
        """As :meth:`Tracker.send`; nothing is done if the run was finished with the same numbers before.

        Args:
            files: pictures, pages, and what becomes an artifact: the Delta, or the folder of a checkpoint.
            numbers: for the run's summary.
            about: where the results come from, for the run's config and the artifact's metadata.
        """
        said = json.dumps([values, tables, numbers], sort_keys=True, default=str)
        fingerprint = sha256(said.encode()).hexdigest()
        if self.run is None and self.known.finished == fingerprint:
            return

        def send(run: RunT) -> None:
            sdk = import_module(self.library)
            ended = dict(values)
            for name, lines in tables.items():
                columns = list(dict.fromkeys(key for line in lines for key in line))
                ended[name] = sdk.Table(columns=columns, data=[[line.get(c) for c in columns] for line in lines])
            for key, file in files.items():
                if file.is_dir() or file.suffix == ".safetensors":
                    artifact = sdk.Artifact(f"{key}-{run.id}", type=key, metadata=dict(about))
                    (artifact.add_dir if file.is_dir() else artifact.add_file)(str(file))
                    run.log_artifact(artifact)
                else:
                    ended[key] = (sdk.Html if file.suffix == ".html" else sdk.Image)(str(file))
            self._end(run, ended, numbers, about)

        self._do(send, limit=0.3 * self.settings.wait)
        if self.close():
            self._keep(Known(id=self.known.id, finished=fingerprint))

    def close(self) -> bool:
        if self.run is not None:
            self._do(self._finish, limit=0.7 * self.settings.wait)
        well, self.run, self.over = self.run is not None, None, True
        self.waiting.put((lambda run: None, Event()))  # so that the thread sees it
        return well

    def _do(self, action: Callable[[RunT], object], limit: float | None = None) -> None:
        """Let the thread do something, and wait for it if there is a limit.

        Tracking never ends a run, nor holds it up: the first failure is reported once, and tracking stops.
        """
        if self.run is None and not self.over:
            self._start()
        if self.run is not None:
            done = Event()
            self.waiting.put((action, done))
            if limit is not None and not done.wait(limit):
                self._fail(TimeoutError(f"no answer within {limit:g} s"))

    def _work(self) -> None:
        while not self.over:
            action, done = self.waiting.get()
            try:
                if (run := self.run) is not None:
                    action(run)
            except Exception as error:
                self._fail(error)
            done.set()

    def _fail(self, error: Exception) -> None:
        if not self.over:
            self.run, self.over = None, True
            say(f"{self.title} failed ({first_line(error)}); the run goes on without it{self.later}")


def say(line: str) -> None:
    """To the log and to standard error."""
    log.info("%s", line)
    print(redact(line), file=sys.stderr)
