"""A judgement of a model that exists: questions and attacks, without unlearning anything.

The two checkpoints become a base model and a Delta; from there on everything is a run's own stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmu_exp.config.parse import one_line
from rmu_exp.model import diff
from rmu_exp.model.checkpoint import Checkpoint, named
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import on_disk
from rmu_exp.pipeline import run as pipeline
from rmu_exp.pipeline.attack import Attacking
from rmu_exp.pipeline.evaluate import Judging
from rmu_exp.pipeline.job import Job, Stage
from rmu_exp.pipeline.report import Reporting
from rmu_exp.record import provenance, rundir
from rmu_exp.settings import Data, Judge, Model
from rmu_exp.support.errors import UserError
from rmu_exp.tracking import Tracker

OWN = ("model.oracle", "model.device", "model.dtype", "model.threads")  # of these the command line's own stay


def is_run(word: str) -> bool:
    """Whether a word names a run's folder."""
    return (Path(word).expanduser() / "config.yaml").is_file()


def taken_up(config: DictConfig, given: Sequence[str] = ()) -> DictConfig:
    """The configuration with the model and the data of the run that is judged; unchanged for a checkpoint.

    Args:
        given: keys on the command line.

    Raises:
        UserError: the folder has no Delta, or the command line says otherwise than the run.
    """
    if OmegaConf.is_missing(config, "unlearned") or not is_run(str(config.unlearned)):
        return config
    folder = Path(config.unlearned).expanduser()
    if not (folder / "delta.safetensors").is_file():
        raise UserError(f"unlearned: {folder} is a run without a model (no delta.safetensors); let it finish first")
    for key in given:
        if key.split(".")[0] in ("base", "model", "data") and key not in OWN:
            raise UserError(f"{key}: comes from the run in {folder}; leave it out, or give a checkpoint as unlearned=")
    stored = rundir.settings(folder / "config.yaml")
    own = {key: OmegaConf.select(config, key) for key in OWN}
    for group, schema in (("model", Model), ("data", Data)):
        values = stored.get(group)
        if not isinstance(values, dict):
            raise UserError(f"{folder / 'config.yaml'}: damaged (no {group} in it); give a checkpoint as unlearned=")
        known = {k: v for k, v in values.items() if k in schema.__dataclass_fields__}
        try:
            config[group] = OmegaConf.merge(OmegaConf.structured(schema), known)
        except OmegaConfBaseException as error:
            raise UserError(f"{folder / 'config.yaml'}: {group}.{one_line(error)}") from error
    for key, value in own.items():
        if key in given or (key == "model.oracle" and value is not None):
            OmegaConf.update(config, key, value)
    return config


def execute(judge: Judge, folder: Path) -> None:
    """Carry out a judgement in its folder. Raises as :func:`rmu_exp.pipeline.run.execute`."""
    job = Judgement(judge, folder)  # type: ignore[arg-type]
    pipeline.carry_out(job, stages(job))


def stages(job: Judgement) -> list[Stage]:
    """Those of a judgement."""
    return [Describing(job), Judging(job), Attacking(job), Reporting(job)]


class Judgement(Job):
    """A job whose model somebody else unlearned."""

    run: Judge  # type: ignore[assignment]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        if self.run.base is None:
            return super().checkpoint
        return named(self.run.base, "base", self.run.model)

    @property
    def revision(self) -> str | None:
        """Of a run, the one that its Delta was made for."""
        own = self.changes.base.get("revision") if self.other is None else None
        return own or super().revision

    @cached_property
    def other(self) -> Checkpoint | None:
        """The unlearned checkpoint; None: it is a run's."""
        return None if is_run(self.run.unlearned) else named(self.run.unlearned, "unlearned", self.run.model)

    @cached_property
    def changes(self) -> Delta:
        if self.other is None:
            return Delta.load(Path(self.run.unlearned).expanduser() / "delta.safetensors")
        return diff.changes(self.checkpoint, self.other)

    @property
    def name(self) -> tuple[str, list[str]]:
        return f"judge-{Path(self.run.unlearned).name}", ["judge", self.run.data.name]

    def check(self) -> None:
        """Refuse a model that differs where no Delta reaches, a Delta of another base, and other models than before."""
        if self.other is None:
            self.changes.refuse_other_base(self.checkpoint, f"unlearned: {self.run.unlearned}")
        origin = self.results.get("provenance", {})
        found = {"model_digest": self.checkpoint.digest(), "delta_digest": self.changes.digest()}
        if any(origin.get(key, value) != value for key, value in found.items()):
            raise UserError(f"output: {self.folder} judged other weights than are there now; choose another folder")
        missing = sorted(set(self.changes.tensors) - set(on_disk(self.checkpoint.skeleton(self.checkpoint.depth))))
        if missing:
            raise UserError(
                f"unlearned: {self.run.unlearned}: {missing[0]} differs from the base, and lies outside of the decoder "
                "layers; only models that differ inside of them can be judged"
            )

    def once(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """Nothing is shared between judgements."""
        return make()


class Describing:
    """Writes the parts of results.json that say what is judged."""

    def __init__(self, job: Judgement) -> None:
        self.job = job

    def preflight(self) -> None:
        job = self.job
        if not job.run.eval.tasks and not job.run.attacks:
            raise UserError("attacks: none chosen, and eval.tasks is empty; there is nothing to do")
        if job.other is not None:
            job.refuse_other(job.other, "unlearned")

    def carry_out(self, tracker: Tracker) -> None:
        job, run = self.job, self.job.run
        texts = job.text_digests if run.attacks else {}
        about: dict[str, Any] = {"model": job.checkpoint.name, "unlearned": run.unlearned, "seed": run.seed}
        about |= {"topics": run.topics, "changed_tensors": sorted(job.changes.tensors)}
        job.results |= {
            "schema": 1,
            "run": about,
            "provenance": provenance.describe(run, job.device)
            | {
                "command": job.command,
                "data_hashes": texts,
                "model_revision": job.checkpoint.revision,
                "model_digest": job.checkpoint.digest(),
                "delta_digest": job.changes.digest(),
            },
        }
        job.save()
