"""What the stages of one run share: its settings, its folder, the model and the texts, and what was measured so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rmu_exp import data
from rmu_exp.model import diff
from rmu_exp.model.checkpoint import Checkpoint, locate, named
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline import process_cache
from rmu_exp.record import provenance, rundir
from rmu_exp.record import results as results_json
from rmu_exp.record.store import Store
from rmu_exp.settings import Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker


class Stage(Protocol):
    """One part of a run. What an earlier start has done is not done again."""

    def preflight(self) -> None:
        """Refuse what cannot work before anything is written."""

    def carry_out(self, tracker: Tracker) -> None:
        """Read what earlier stages left in the run's folder, and write its own part."""


class Job:
    """One run over its folder.

    Attributes:
        run: the settings.
        folder: the run's folder.
        results: what has been measured so far; the content of results.json.
        device: where it computes.
        command: what it was first started by.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.results: dict[str, Any] = {}
        self.command = provenance.command()
        self.device = run.model.device
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The base model."""
        model = self.run.model
        return locate(model.name, model.path, self.revision, model.trust_remote_code)

    @property
    def revision(self) -> str | None:
        """The base's commit, where it is on the hub: the one that is asked for, or with which the run began."""
        return self.run.model.revision or self.results.get("provenance", {}).get("model_revision")

    @property
    def dtype(self) -> torch.dtype:
        """The run's precision: fp32 on a CPU, where bf16 is slow; the checkpoint's own on a GPU."""
        wanted = self.run.model.dtype
        if wanted == "auto":
            return torch.float32 if self.device == "cpu" else self.checkpoint.dtype
        return getattr(torch, wanted)

    @property
    def delta(self) -> Path:
        """Where the changed tensors are."""
        return self.folder / "delta.safetensors"

    @property
    def state(self) -> Path:
        """The folder of what unfinished stages have kept; gone when the run is done."""
        return self.folder / "state"

    def mark(self, *about: object) -> str:
        """What kept work belongs to: the settings, the base model, the program's versions, and ``about``."""
        what = [self.run.digest, self.checkpoint.identity(), provenance.versions(), torch.get_num_threads(), *about]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def journal(self, stage: str, *about: object) -> Store:
        """What a stage has done so far of its parts, which belong to ``about``."""
        return Store(self.state / f"{stage}.jsonl", self.mark(*about))

    @cached_property
    def changes(self) -> Delta:
        """What unlearning changed."""
        return Delta.load(self.delta)

    @cached_property
    def oracle(self) -> Checkpoint:
        """The model that never knew the forget topics."""
        return named(str(self.run.model.oracle), "model.oracle", self.run.model)

    @cached_property
    def texts(self) -> tuple[list[data.Corpus], list[data.Corpus]]:
        """The forget and the retain corpora, one a topic."""
        return data.load(self.run.data)

    @cached_property
    def text_digests(self) -> dict[str, str]:
        """Corpus to the sha256 of its texts."""
        return {c.source: c.digest for side in self.texts for c in side}

    @property
    def name(self) -> tuple[str, list[str]]:
        """What tracking calls the run, and its tags."""
        run, model = self.run, self.checkpoint.name.rstrip("/").split("/")[-1]
        setting = f"layer{run.layer}-steer{_short(run.steer)}-alpha{_short(run.alpha)}-seed{run.seed}"
        return f"{model}-{run.method.name}-{setting}", [run.method.name, run.data.name]

    def take_up(self) -> None:
        """What an earlier start of the same run has measured.

        Raises:
            UserError: the folder is another run's, or its files are damaged.
        """
        before, results = self.folder / "config.yaml", self.folder / "results.json"
        if not before.is_file():
            return
        stored = rundir.settings(before)
        if stored.get("digest") != self.run.digest:
            raise UserError(f"output: {self.folder} holds a run with other settings; choose another folder")
        self.command = stored.get("command", self.command)
        if results.is_file():
            self.results = results_json.load(results)

    def check(self) -> None:
        """What takes reading weights to refuse; comes last before anything is written."""
        if "train" in self.results and self.delta.is_file():
            self.changes.refuse_other_base(self.checkpoint, f"output: {self.folder}")

    def save(self) -> None:
        """Write results.json."""
        write_atomic(self.folder / "results.json", json.dumps(self.results, indent=2) + "\n")

    def refuse_other(self, other: Checkpoint, key: str = "model.oracle") -> None:
        """Refuse a checkpoint that is not of the base model's shape and tokenizer."""
        if difference := diff.difference(self.checkpoint, other):
            raise UserError(f"{key}: {other.name} does not match {self.checkpoint.name}: {difference}")

    def once(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """What a sweep's trials in one process share; a run alone keeps nothing."""
        return process_cache.once(kind, key, make) if process_cache.wanted(self.run.share) else make()

    def open(self, depth: int | None) -> torch.nn.Module:
        """The model, left as it is by whoever uses it."""
        where = (self.checkpoint, self.checkpoint.digest(), depth, self.dtype, self.device)
        make = partial(self.checkpoint.open, depth, self.dtype, torch.device(self.device))
        return self.once("full model" if depth is None else "cut model", where, make)


def _short(values: list[float] | str) -> str:
    return values if isinstance(values, str) else "-".join(f"{v:g}" for v in dict.fromkeys(values))
