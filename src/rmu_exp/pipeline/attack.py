"""Attacking: what adversaries with stated budgets get out of the unlearned model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rmu_exp.attacks import runner
from rmu_exp.attacks.api import Context
from rmu_exp.evaluate import questions
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.delta import Delta
from rmu_exp.model.weight_files import LAYER
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.record import Record, made_from
from rmu_exp.record.results import Results
from rmu_exp.record.store import Store, fingerprint
from rmu_exp.settings import Judge, Run


@dataclass(frozen=True)
class AttackPlan:
    """The chosen attacks, and the questions: about the forget topics, and of each task or group about the rest."""

    run: Run | Judge
    models: Models
    texts: Texts
    asked: list[Question]
    others: dict[str, list[Question]]

    def fingerprint(self, delta: Delta) -> str:
        """What the attacks' results belong to: the models, the texts, the questions."""
        oracle = self.models.oracle.identity() if self.models.oracle else None
        groups = [[dataclasses.astuple(item) for item in group] for group in (self.asked, *self.others.values())]
        base = self.models.base.identity()
        return fingerprint(base, delta.digest(), oracle, self.texts.digests, list(self.others), groups)

    def missing(self, delta: Delta, results: Results) -> dict[str, dict[str, Any]]:
        """The attacks that are still to be run, with their settings; none on a run that its search has given up."""
        if results.pruned is not None:
            return {}
        return runner.missing(self.run.attacks, results, self.fingerprint(delta))


def prepare_attacks(run: Run | Judge, models: Models, texts: Texts) -> AttackPlan | None:
    """What the chosen attacks need; None: none are chosen. Raises UserError when some of it is not there."""
    if not run.attacks:
        return None
    _, _ = models.oracle, texts.corpora  # which refuse what does not fit
    forget = run.data.questions.forget
    if set(run.attacks) - runner.ASK_NOTHING:
        asked = questions.needed(forget, run.topics, run.eval, run.data.attacked, run.seed)
    else:
        asked = [item for group in questions.load(forget, run.topics, run.eval).values() for item in group]
    others = {k: v for k, v in questions.load(run.other_tasks, run.topics, run.eval).items() if v}
    return AttackPlan(run, models, texts, asked, others)


def attack(plan: AttackPlan, delta: Delta, record: Record, results: Results) -> Iterator[Results]:
    """Run the missing attacks; gives the results after each."""
    belongs, run, base = plan.fingerprint(delta), plan.run, plan.models.base

    def store(stage: str, *parts: object) -> Store:
        return record.store(stage, made_from(run, base, *parts))

    yield from runner.run_attacks(_context(plan, delta), plan.missing(delta, results), results, belongs, store)


def _context(plan: AttackPlan, delta: Delta) -> Context:
    models, (forget, retain) = plan.models, plan.texts.corpora
    span = sorted({int(m[1]) for name in delta.tensors if (m := LAYER.search(name))})
    return Context(
        items=plan.asked,
        others=plan.others,
        forget=[text for corpus in forget for text in corpus.texts],
        retain=list(dict.fromkeys(text for corpus in retain for text in corpus.texts)),
        layer=plan.run.layer if isinstance(plan.run, Run) else span[-1] if span else models.base.depth - 1,
        span=span,
        seed=plan.run.seed,
        tokenizer=models.base.tokenizer(),
        device=torch.device(models.device),
        delta=delta,
        load=models.load,
        load_oracle=(lambda: models.load(models.oracle)) if models.oracle else None,
    )
