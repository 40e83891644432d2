"""Evaluation: the questions of lm-eval's tasks and perplexity, before and after, by the same code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rmu_exp import data
from rmu_exp.data.sources import Corpus
from rmu_exp.evaluate import harness
from rmu_exp.evaluate.harness import Answers
from rmu_exp.evaluate.perplexity import perplexity
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.models import Models
from rmu_exp.pipeline.record import Record, made_from
from rmu_exp.record import rundir
from rmu_exp.record.results import PerplexityRow, Pruned, Results
from rmu_exp.settings import Judge, Run
from rmu_exp.support.files import write_atomic

PERPLEXITY_TOKENS = 4096  # per forward pass; its logits are what takes memory


class GiveUp(Protocol):
    """An early stopping rule of a search, and how many questions of each task are asked for it."""

    @property
    def questions(self) -> int: ...

    def __call__(self, partly: Results) -> str | None:
        """Why the run is given up after the questions in ``partly.pruned.qa``; None: it is not."""


@dataclass(frozen=True)
class Evaluation:
    """What is still to be evaluated: whether questions are asked, and texts (or none) to measure perplexity on."""

    run: Run | Judge
    models: Models
    asks: bool
    held_out: Corpus | None


def prepare_evaluation(run: Run | Judge, models: Models, results: Results | None) -> Evaluation:
    """What of the evaluation an earlier start has not done. Raises UserError for unknown tasks and texts."""
    given_up = results is not None and results.pruned is not None
    if run.eval.tasks:
        harness.task_manager(run.eval.tasks)
    asks = bool(run.eval.tasks) and not given_up and not (results and results.qa)
    reads = run.eval.perplexity is not None and not given_up and not (results and results.perplexity)
    return Evaluation(run, models, asks, data.held_out(run.data, run.eval) if reads else None)


def evaluate(
    plan: Evaluation, delta: Delta, record: Record, results: Results, give_up: GiveUp | None
) -> Iterator[Results]:
    """Ask and measure; gives the results each time a part is added. Writes answers.jsonl.

    When the early stopping rule says so, what it has seen is the last that is added.
    """
    run, models = plan.run, plan.models
    if plan.asks:
        outside = run.eval.backend not in harness.IN_MEMORY
        results = _ask_outside(plan, record, results) if outside else _ask(plan, delta, record, results, give_up)
        yield results
    if plan.held_out is not None and results.pruned is None:
        tokenizer, model = models.base.tokenizer(), models.open(None)
        texts, size = plan.held_out.texts, {"max_length": models.base.context, "max_batch_tokens": PERPLEXITY_TOKENS}
        base = perplexity(model, tokenizer, texts, **size)
        with delta.applied(model):
            row = PerplexityRow(base=base, unlearned=perplexity(model, tokenizer, texts, **size))
        yield results.model_copy(update={"perplexity": {plan.held_out.source: row}})


def _ask(plan: Evaluation, delta: Delta, record: Record, results: Results, give_up: GiveUp | None) -> Results:
    run, models = plan.run, plan.models
    tokenizer, model = models.base.tokenizer(), models.open(None)

    def ask(who: str, *parts: object) -> Answers:
        store = record.store(f"questions-{who}", made_from(run, models.base, *parts))
        return harness.ask(model, tokenizer, run.eval, store)

    before = _base(plan, lambda _: ask("base"))
    with delta.applied(model):
        if give_up is not None:
            count = min(give_up.questions, run.eval.limit or give_up.questions)
            first = harness.ask(model, tokenizer, dataclasses.replace(run.eval, limit=count))
            pruned = Pruned(questions=count, qa=harness.compare(before.first(count), first), because="")
            if because := give_up(results.model_copy(update={"pruned": pruned})):
                return results.model_copy(update={"pruned": pruned.model_copy(update={"because": because})})
        after = ask("unlearned", delta.digest())
    if before.hashes != after.hashes:  # kept answers to other questions
        before = _base(plan, lambda _: ask("base"), anew=True)
    return _answered(record, results, before, after)


def _ask_outside(plan: Evaluation, record: Record, results: Results) -> Results:
    """Let one of lm-eval's own backends evaluate the checkpoints on disk."""

    def ask(folder: Path) -> Answers:
        return harness.ask_backend(folder, plan.run.eval, plan.run.model)

    before, after = _base(plan, ask), ask(record.folder / rundir.MODEL)
    if before.hashes != after.hashes:
        before = _base(plan, ask, anew=True)
    return _answered(record, results, before, after)


def _base(plan: Evaluation, ask: harness.Ask, anew: bool = False) -> Answers:
    models = plan.models
    return harness.base_answers(models.base, plan.run.eval, models.dtype, models.device, ask, anew)


def _answered(record: Record, results: Results, before: Answers, after: Answers) -> Results:
    """Write the answers, and add what they say to the results."""
    lines = []
    for task, targets in before.targets.items():
        for i, (target, b, u) in enumerate(zip(targets, before.chosen[task], after.chosen[task], strict=True)):
            lines.append(json.dumps({"task": task, "question": i, "target": target, "base": b, "unlearned": u}))
    write_atomic(record.folder / rundir.ANSWERS, "\n".join(lines) + "\n")
    assert results.provenance is not None
    origin = results.provenance.model_copy(update={"question_hashes": after.hashes})
    return results.model_copy(update={"qa": harness.compare(before, after), "provenance": origin})
