"""One run from start to end: prepare, train, evaluate, attack, report.

A judgement is the same with another source of the changed weights: they are those of a model that exists. What an
earlier start has done is not done again, and a finished run started again does nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console

from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export
from rmu_exp.pipeline import fits, judgement
from rmu_exp.pipeline import train as training
from rmu_exp.pipeline.attack import AttackPlan, attack, prepare_attacks
from rmu_exp.pipeline.evaluate import EarlyStop, Evaluation, evaluate, prepare_evaluation
from rmu_exp.pipeline.judgement import Judged, prepare_judgement
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.observe import Observation, observe, prepare_observation
from rmu_exp.pipeline.record import Record, made_from
from rmu_exp.pipeline.session import logged, session
from rmu_exp.pipeline.train import TrainPlan, prepare_training, train
from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.report import attacks as attack_report
from rmu_exp.report import observed, page, plots, tables
from rmu_exp.report.card import README, card
from rmu_exp.report.verdict import verdict
from rmu_exp.settings import Judge, Run
from rmu_exp.support import memory
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker, open_tracker
from rmu_exp.tracking import refuse as refuse_tracking


def execute(run: Run | Judge, folder: Path, early_stop: EarlyStop | None = None) -> None:
    """Run or judge in a folder; ``early_stop`` is the early stopping rule of a search.

    Raises:
        UserError: what the run asks for does not exist or does not fit; nothing has been written.
        RunError: it failed on the way.
    """
    with session(run.model, folder):
        plan = prepare(run, folder)
        if plan.finished and plan.record.results:
            return show(folder, plan.record.results)
        record = plan.record
        record.begin()
        with logged(folder), tracked(plan) as tracker, memory.limited(run.model.memory):
            delta = changed_weights(plan, tracker)
            results = record.results
            assert results is not None
            if plan.exports:
                export(plan.models.base, delta, folder / rundir.MODEL)
            for measured in evaluate(plan.evaluation, delta, record, results, early_stop):
                results = record.save(measured)
            for measured in observe(plan.observation, delta, record, results):
                results = record.save(measured)
            if plan.attacks is not None:
                for measured in attack(plan.attacks, delta, record, results):
                    results = record.save(measured)
            results = record.save(results.model_copy(update={"verdict": verdict(results)}))
            report(folder, results, tracker)
            show(folder, results)
        shutil.rmtree(folder / rundir.STATE, ignore_errors=True)


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked; ``source`` gives the changed weights: a training, a model, or an earlier Delta."""

    run: Run | Judge
    record: Record
    models: Models
    texts: Texts
    source: TrainPlan | Judged | Delta
    evaluation: Evaluation
    observation: Observation
    attacks: AttackPlan | None

    @property
    def exports(self) -> bool:
        """Whether the full checkpoint is wanted and not there yet."""
        return isinstance(self.run, Run) and self.run.export and not (self.record.folder / rundir.MODEL).exists()

    @property
    def finished(self) -> bool:
        """Whether an earlier start has done everything."""
        results, folder = self.record.results, self.record.folder
        if isinstance(self.source, TrainPlan) or results is None or not (folder / rundir.REPORT).is_file():
            return False
        if self.exports or self.evaluation.asks or self.evaluation.held_out or self.observation.anything:
            return False
        delta = self.source.delta if isinstance(self.source, Judged) else self.source
        return self.attacks is None or not self.attacks.missing(delta, results)


def prepare(run: Run | Judge, folder: Path) -> Plan:
    """Refuse what cannot work, before anything is written. Raises as :func:`execute`."""
    refuse_tracking(run.tracking)
    record, texts = Record(run, folder), Texts(run.data)
    source: TrainPlan | Judged | Delta
    if isinstance(run, Judge):
        source = prepare_judgement(run, record, _swept())
        models = source.models
    else:
        if record.results is None:
            _ = texts.corpora  # before the model, which may have to be fetched or dequantised
        models = Models.find(run.model, None, run.model.revision or record.revision, shared=_shares(run))
        if record.results and record.results.train and (folder / rundir.DELTA).is_file():
            source = Delta.load(folder / rundir.DELTA)
        else:
            source = prepare_training(run, models, texts)
    evaluation = prepare_evaluation(run, models, record.results)
    observation = prepare_observation(run, models, texts, record.results)
    attacks = prepare_attacks(run, models, texts)
    reads = evaluation.asks or evaluation.held_out or observation.anything or attacks is not None
    if reads and not models.base.has_head:
        what = "eval.tasks, eval.perplexity, eval.samples, eval.damage and attacks need"
        raise UserError(f"{what} a language-model head, which {models.base.name} has not; add eval=none 'attacks=[]'")
    if isinstance(source, TrainPlan):
        source = fits.checked(source)
    elif isinstance(source, Judged):  # reading weights comes last
        source.check(record)
    elif isinstance(source, Delta):
        source.refuse_other_base(models.base, f"output: {folder}")
    return Plan(run, record, models, texts, source, evaluation, observation, attacks)


def _shares(run: Run) -> bool:
    """Whether the trials of a sweep in this process use one model, which adapters would change."""
    return not run.layers.lora and (run.share.when == "always" or (run.share.when == "auto" and _swept()))


def _swept() -> bool:
    """Whether this is a trial of a sweep."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def changed_weights(plan: Plan, tracker: Tracker) -> Delta:
    """The weights that unlearning changed; the results begin with what they are."""
    run, record, source = plan.run, plan.record, plan.source
    if isinstance(source, Delta):
        return source
    if isinstance(run, Judge) and isinstance(source, Judged):
        record.save(judgement.describe(run, source, plan.texts, record))
        return source.delta
    assert isinstance(source, TrainPlan)
    belongs = made_from(run, plan.models.base, plan.texts.digests, source.method.made_from(source.settings))
    trained = train(source, record.folder, belongs, lambda metrics: tracker.log(metrics, metrics["step"]))
    trained.delta.save(record.folder / rundir.DELTA)
    record.save(training.describe(source, trained, record.command))
    return trained.delta


def report(folder: Path, results: Results, tracker: Tracker) -> None:
    """Write plots and reports, of which report.md is the last that a run writes, and hand them on to the tracker."""
    drawn = plots.draw_all(folder)
    if (folder / rundir.MODEL).is_dir():
        write_atomic(folder / rundir.MODEL / README, card(results))
    page.write_reports(folder)
    tracker.finish(results, drawn, folder)


def show(folder: Path, results: Results) -> None:
    """Print the results."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    if results.qa:
        console.print(tables.on_screen(results.qa).rich(tables.title(results.run)))
    if measured := tables.metrics(results):
        console.print(measured.rich("lm-eval's metrics"))
    if results.verdict:
        console.print(f"[bold]{results.verdict.word}[/bold]: {' '.join(results.verdict.sentences)}", highlight=False)
    for said in observed.on_screen(results):
        console.print(said, highlight=False, soft_wrap=True)
    if line := attack_report.sentence(results):
        console.print(line.replace("**", ""), highlight=False, soft_wrap=True)
    console.print(f"Results and plots: {folder}", highlight=False)


@contextmanager
def tracked(plan: Plan) -> Iterator[Tracker]:
    """The run's tracker, closed at the end whatever happens."""
    run, base = plan.run, plan.models.base.name.rstrip("/").split("/")[-1]
    if isinstance(run, Judge):
        name, tags = f"judge-{Path(run.unlearned).name}", ["judge", run.data.name]
    else:
        setting = f"layer{run.layer}-steer{_short(run.steer)}-alpha{_short(run.alpha)}-seed{run.seed}"
        name, tags = f"{base}-{run.method.name}-{setting}", [run.method.name, run.data.name]
    kind = "judge" if isinstance(run, Judge) else "train"
    if _swept():
        name = plan.record.folder.name  # what was varied
    tracker = open_tracker(
        run.tracking, plan.record.folder, dataclasses.asdict(run), name, tags, kind=kind, quiet=_swept()
    )
    try:
        yield tracker
    finally:
        tracker.close()


def _short(values: list[float] | str) -> str:
    return values if isinstance(values, str) else "-".join(f"{v:g}" for v in dict.fromkeys(values))
