"""What a run has measured so far and what it is kept by: the one place that writes results.json and config.yaml."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.record import provenance, rundir
from rmu_exp.record import results as results_json
from rmu_exp.record.results import Results
from rmu_exp.record.store import Store, fingerprint
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic


class Record:
    """A run and its folder, with the results of an earlier start of it, and the command of the first.

    Raises UserError: the folder is another run's, or its files are damaged.
    """

    def __init__(self, run: Run | Judge, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.command = provenance.command()
        self.results: Results | None = None
        if not (folder / rundir.CONFIG).is_file():
            return
        before = rundir.of(folder / rundir.CONFIG)
        if before.digest != run.digest:
            raise UserError(f"output: {folder} holds a run with other settings; choose another folder")
        self.command = before.command or self.command
        if (folder / results_json.NAME).is_file():
            self.results = results_json.load(folder / results_json.NAME)

    @property
    def revision(self) -> str | None:
        """The base's commit on the hub with which the run began."""
        origin = self.results.provenance if self.results else None
        return origin.model_revision if origin else None

    def begin(self) -> None:
        """Write config.yaml. The reports, which are written last, go: the run is no longer finished."""
        kind = "judge" if isinstance(self.run, Judge) else "train"
        settings = {"kind": kind} | provenance.settings(self.run)
        settings |= {"digest": self.run.digest, "command": self.command}
        write_atomic(self.folder / rundir.CONFIG, yaml.safe_dump(settings, sort_keys=False))
        for report in (rundir.REPORT, rundir.PAGE):
            (self.folder / report).unlink(missing_ok=True)

    def save(self, results: Results) -> Results:
        """Write results.json; gives the results back."""
        results.save(self.folder / results_json.NAME)
        self.results = results
        return results

    def store(self, stage: str, made_from: str) -> Store:
        """The parts of a stage that are done, by the fingerprint of what they were made from."""
        return Store(self.folder / rundir.STATE / f"{stage}.jsonl", made_from)


def made_from(run: Run | Judge, base: Checkpoint, *parts: object) -> str:
    """The fingerprint of unfinished work: settings, base model, versions of the program, and ``parts``."""
    return fingerprint(run.digest, base.identity(), provenance.versions(), torch.get_num_threads(), *parts)
