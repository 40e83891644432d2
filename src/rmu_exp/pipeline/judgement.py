"""What a judgement starts from: a model that somebody unlearned, and the base that it was made from.

The two checkpoints become a base and a Delta; all the rest is what a run does with the Delta that it trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rmu_exp.model import adapter, diff
from rmu_exp.model.checkpoint import Checkpoint, named
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import on_disk
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.record import Record
from rmu_exp.record import provenance, rundir
from rmu_exp.record.results import Results, RunInfo
from rmu_exp.settings import ROLES, Data, Judge, Model
from rmu_exp.support.errors import UserError

OWN = [
    "model.oracle",
    "model.device",
    "model.device_map",
    "model.dtype",
    "model.threads",
    "data.attacked",
]  # the command line's own stay
OWN += [f"data.questions.{role}" for role in ROLES]


def is_run(word: str) -> bool:
    """Whether a word names a run's folder."""
    return (Path(word).expanduser() / rundir.CONFIG).is_file()


def completed(config: DictConfig, given: Sequence[str] = ()) -> DictConfig:
    """The configuration with the model and the data of the run that is judged; unchanged for a checkpoint.

    Raises UserError: the folder has no Delta, or the keys on the command line (``given``) say otherwise than the run.
    """
    if OmegaConf.is_missing(config, "unlearned") or not is_run(str(config.unlearned)):
        return config
    folder = Path(config.unlearned).expanduser()
    if not (folder / rundir.DELTA).is_file():
        raise UserError(f"unlearned: {folder} is a run without a model (no {rundir.DELTA}); let it finish first")
    for key in given:
        if key.split(".")[0] in ("base", "model", "data") and key not in OWN:
            raise UserError(f"{key}: comes from the run in {folder}; leave it out, or give a checkpoint as unlearned=")
    run = rundir.of(folder / rundir.CONFIG)
    own = {key: OmegaConf.select(config, key) for key in OWN}
    config.model, config.data = run.part("model", Model), run.part("data", Data)
    for key, value in own.items():
        if key in given or (key == "model.oracle" and value is not None):
            OmegaConf.update(config, key, value)
    if "model.device" in given and "model.device_map" not in given:  # the run's GPUs are not those of this machine
        config.model.device_map = None
    if "model.device_map" in given and "model.device" not in given:
        config.model.device = "auto"
    return config


@dataclass(frozen=True)
class Judged:
    """The two models of a judgement: the base, and what was made from it.

    Attributes:
        other: the unlearned model; None: a run's folder has the Delta, or an adapter goes onto the base.
    """

    judge: Judge
    models: Models
    other: Checkpoint | None

    @cached_property
    def delta(self) -> Delta:
        """What differs from the base; for two checkpoints their weights are read."""
        if self.other is not None:
            return diff.changes(self.models.base, self.other)
        folder = Path(self.judge.unlearned).expanduser()
        if adapter.is_adapter(self.judge.unlearned):
            return adapter.merged(self.models.base, folder, "unlearned")
        return Delta.load(folder / rundir.DELTA)

    def check(self, record: Record) -> None:
        """Refuse a Delta of another base, what no Delta reaches, and results of other weights; reads weights."""
        base, unlearned = self.models.base, self.judge.unlearned
        if self.other is None:
            self.delta.refuse_other_base(base, f"unlearned: {unlearned}")
        origin = record.results.provenance if record.results else None
        if origin and (origin.model_digest, origin.delta_digest) != (base.digest(), self.delta.digest()):
            raise UserError(f"output: {record.folder} judged other weights than are there now; choose another folder")
        missing = sorted(set(self.delta.tensors) - set(on_disk(base.skeleton(base.depth))))
        if missing:
            raise UserError(
                f"unlearned: {unlearned}: {missing[0]} differs from the base, and lies outside of the decoder "
                "layers; only models that differ inside of them can be judged"
            )


def refuse_missing(judge: Judge) -> None:
    """Refuse an unlearned model that is not there, before any trial of a search asks for it (UserError)."""
    if not is_run(judge.unlearned) and not adapter.is_adapter(judge.unlearned):
        named(judge.unlearned, "unlearned", judge.model)


def prepare_judgement(judge: Judge, record: Record, shared: bool = False) -> Judged:
    """Find both models. Raises UserError when there is nothing to do, or the two do not belong together.

    Args:
        shared: the base is loaded once by all trials in this process.
    """
    if not (judge.eval.tasks or judge.attacks or judge.texts_compared or judge.prompts_asked):
        raise UserError("attacks: none chosen, and eval.tasks is empty; there is nothing to do")
    if is_run(judge.unlearned):
        revision = Delta.load(Path(judge.unlearned).expanduser() / rundir.DELTA).base.get("revision")
        return Judged(judge, Models.find(judge.model, judge.base, revision or record.revision, shared=shared), None)
    if adapter.is_adapter(judge.unlearned):
        return Judged(judge, Models.find(judge.model, judge.base, record.revision, shared=shared), None)
    other = named(judge.unlearned, "unlearned", judge.model)
    models = Models.find(judge.model, judge.base, judge.model.revision or record.revision, shared=shared)
    models.refuse_other(other, "unlearned")
    return Judged(judge, models, other)


def describe(judge: Judge, judged: Judged, texts: Texts, record: Record) -> Results:
    """What is judged, as results.json says it; what was measured before stays."""
    base, before = judged.models.base, record.results
    info = RunInfo(
        kind="judge",
        model=base.name,
        unlearned=judge.unlearned,
        seed=judge.seed,
        topics=judge.topics,
        changed_tensors=sorted(judged.delta.tensors),
    )
    origin = provenance.describe(
        judge,
        judged.models.device,
        command=record.command,
        data_hashes=texts.digests if judge.attacks or judge.texts_compared else {},
        question_hashes=before.provenance.question_hashes if before and before.provenance else {},
        model_revision=base.revision,
        model_digest=base.digest(),
        model_file=base.made_from,
        delta_digest=judged.delta.digest(),
    )
    return (before or Results(run=info)).model_copy(update={"run": info, "provenance": origin})
