"""Attacking: what adversaries with stated budgets get out of the unlearned model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch

from rmu_exp.attacks import runner
from rmu_exp.attacks.api import Context, Outcome
from rmu_exp.attacks.relearn import NEIGHBOURS
from rmu_exp.evaluation import questions
from rmu_exp.evaluation.questions import Question
from rmu_exp.model.delta import Delta
from rmu_exp.model.weight_files import LAYER
from rmu_exp.pipeline.models import Models, Texts, once
from rmu_exp.pipeline.record import Record, made_from
from rmu_exp.record import provenance
from rmu_exp.record.results import Results
from rmu_exp.record.store import Store, fingerprint
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class AttackPlan:
    """The chosen attacks, and the questions.

    Attributes:
        asked: about the forget topics.
        others: about the rest, by task or group.
        general: those that an attack must not unlearn.
        neighbours: those on adjacent topics that an attack makes texts of.
    """

    run: Run | Judge
    models: Models
    texts: Texts
    asked: list[Question]
    others: dict[str, list[Question]]
    general: list[Question]
    neighbours: list[Question]

    def fingerprint(self, *made: object) -> str:
        """What attacks' results belong to: the models (``made``: what tells the unlearned one), texts, questions."""
        oracle = self.models.oracle.identity() if self.models.oracle else None
        asked = (self.asked, *self.others.values(), self.general, self.neighbours)
        groups = [[dataclasses.astuple(item) for item in group] for group in asked if group]
        return fingerprint(self.models.base.identity(), *made, oracle, self.texts.digests, list(self.others), groups)

    @cached_property
    def origin(self) -> str:
        """What goes into an attack on the base model beside its settings."""
        models = self.models
        where = str(models.dtype), models.device.partition(":")[0], torch.get_num_threads(), provenance.versions()
        return self.fingerprint(self.run.seed, *where)

    def missing(self, delta: Delta, results: Results) -> dict[str, dict[str, Any]]:
        """The attacks that are still to be run, with their settings; none on a run that its search has given up."""
        if results.pruned is not None:
            return {}
        return runner.missing(self.run.attacks, results, self.fingerprint(delta.digest()))


def prepare_attacks(run: Run | Judge, models: Models, texts: Texts) -> AttackPlan | None:
    """What the chosen attacks need; None: none are chosen. Raises UserError when some of it is not there."""
    if not run.attacks:
        return None
    _, _ = models.oracle, texts.corpora  # which refuse what does not fit
    forget, given = run.data.questions.forget, [run.topics, run.eval]

    def load(tasks: list[str]) -> dict[str, list[Question]]:
        return {k: v for k, v in questions.load(tasks, run.topics, run.eval).items() if v}

    def find() -> tuple[list[Question], dict[str, list[Question]]]:
        if set(run.attacks) - runner.ASK_NOTHING:
            asked = questions.needed(forget, run.topics, run.eval, run.data.attacked, run.seed)
        else:
            asked = list(chain.from_iterable(load(forget).values()))
        return asked, load(run.other_tasks)

    key = [*given, forget, run.other_tasks, run.data.attacked, run.seed, sorted(run.attacks)]
    asked, others = _kept(models, "attacked questions", key, find)
    roles = run.data.questions
    near = [*given, roles.adjacent]
    needs = any(NEIGHBOURS in values.get("sources", ()) for values in run.attacks.values())
    neighbours = _kept(models, "neighbours", near, lambda: load(roles.adjacent)) if needs else {}
    if needs and not neighbours:
        raise UserError(f"attacks.relearn.sources: {NEIGHBOURS} needs questions; give data.questions.adjacent")
    general = list[Question]()
    if isinstance(run, Judge) and run.attacker.general:
        asks = run.general_tasks
        tasks = _kept(models, "general questions", [*given, asks], lambda: load(asks))
        in_turn = (item for item in chain.from_iterable(zip_longest(*tasks.values())) if item is not None)
        general = [item for item, _ in zip(in_turn, range(run.attacker.general), strict=False)]
        if not general:
            raise UserError(f"attacker.general: {', '.join(asks)} have no multiple-choice questions; name others")
    return AttackPlan(run, models, texts, asked, others, general, list(chain.from_iterable(neighbours.values())))


def _kept(models: Models, kind: str, key: object, make: Callable[[], T]) -> T:
    """What ``make`` gives, made once by the trials of a sweep in this process."""
    return once(kind, key, make) if models.shared else make()


def attack(plan: AttackPlan, delta: Delta, record: Record, results: Results) -> Iterator[Results]:
    """Run the missing attacks; gives the results after each."""
    belongs, run, base = plan.fingerprint(delta.digest()), plan.run, plan.models.base

    def store(stage: str, *parts: object) -> Store:
        return record.store(stage, made_from(run, base, *parts))

    yield from runner.run_attacks(_context(plan, delta, belongs), plan.missing(delta, results), results, belongs, store)


def _context(plan: AttackPlan, delta: Delta, belongs: str) -> Context:
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
        load=lambda: models.open(None),
        load_oracle=(lambda: models.load(models.oracle)) if models.oracle else None,
        general=plan.general,
        neighbours=plan.neighbours,
        bound=plan.run.attacker.bound if isinstance(plan.run, Judge) else 0.0,
        asked=_kept(models, "plain answers", belongs, dict[str, Outcome]),
        origin=plan.origin,
    )
