"""Evaluation: the questions of lm-eval's tasks and perplexity, before and after, by the same code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rmu_exp import data
from rmu_exp.data.sources import Corpus
from rmu_exp.evaluation import harness
from rmu_exp.evaluation.harness import Answers
from rmu_exp.evaluation.perplexity import perplexity
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.models import Models
from rmu_exp.pipeline.record import Record, made_from
from rmu_exp.record import rundir
from rmu_exp.record.results import PerplexityRow, Pruned, Results
from rmu_exp.settings import Eval, Judge, Run
from rmu_exp.support.files import write_atomic

PERPLEXITY_TOKENS = 4096  # per forward pass; its logits are what takes memory


class EarlyStop(NamedTuple):
    """An early stopping rule of a search: questions of each task that are asked first, and why they end the run.

    ``because`` is given the results with ``pruned.qa`` over these questions; None: the run goes on.
    """

    questions: int
    because: Callable[[Results], str | None]


@dataclass(frozen=True)
class Evaluation:
    """What is still to be evaluated: whether questions are asked, and the texts to measure perplexity on."""

    run: Run | Judge
    models: Models
    asks: bool
    held_out: list[Corpus]


def prepare_evaluation(run: Run | Judge, models: Models, results: Results | None) -> Evaluation:
    """What of the evaluation an earlier start has not done. Raises UserError for unknown tasks and texts."""
    given_up = results is not None and results.pruned is not None
    asks = bool(run.eval.tasks) and not given_up and not (results and (results.qa or results.measured))
    if asks:
        harness.refuse(run.eval, models.base.tokenizer(), models.base.context)
    reads = bool(run.eval.held_out) and not given_up and not (results and results.perplexity)
    return Evaluation(run, models, asks, data.held_out(run.data, run.eval) if reads else [])


def evaluate(
    plan: Evaluation, delta: Delta, record: Record, results: Results, early_stop: EarlyStop | None
) -> Iterator[Results]:
    """Ask and measure; gives the results each time a part is added. Writes answers.jsonl.

    When the early stopping rule says so, what it has seen is the last that is added.
    """
    models = plan.models
    if plan.asks:
        results = _ask(plan, delta, record, results, early_stop)
        yield results
    if plan.held_out and results.pruned is None:
        tokenizer, model = models.base.tokenizer(), models.open(None)
        size = {"max_length": models.base.context, "max_batch_tokens": PERPLEXITY_TOKENS}
        rows = {}
        for corpus in plan.held_out:
            base = perplexity(model, tokenizer, corpus.texts, **size)
            with delta.applied(model):
                unlearned = perplexity(model, tokenizer, corpus.texts, **size)
            rows[corpus.source] = PerplexityRow(base=base, unlearned=unlearned)
        yield results.model_copy(update={"perplexity": rows})


def _ask(plan: Evaluation, delta: Delta, record: Record, results: Results, early_stop: EarlyStop | None) -> Results:
    """Ask both models: in memory, or the checkpoints on disk by one of lm-eval's own backends."""
    run, models, tokenizer = plan.run, plan.models, plan.models.base.tokenizer()
    model = models.open(None) if run.eval.backend in harness.IN_MEMORY else None

    def ask(folder: Path, who: str = "base", *parts: object) -> Answers:
        if model is None:
            return harness.ask_backend(folder, run.eval, run.model, models.device, models.dtype)
        store = record.store(f"questions-{who}", made_from(run, models.base, *parts))
        return harness.ask(model, tokenizer, run.eval, store)

    def ask_base(anew: bool = False) -> Answers:
        return harness.base_answers(models.base, _questions_only(run.eval), models.dtype, models.device, ask, anew)

    roles = harness.entry_roles(run.eval, run.data.questions.roles(run.eval.tasks or ()))
    before = ask_base()
    with delta.applied(model) if model is not None else nullcontext():
        if early_stop is not None and model is not None:
            few = dataclasses.replace(run.eval, corrected=False)
            first = harness.ask(model, tokenizer, few, first=early_stop.questions)
            count = max(map(len, first.correct.values()), default=0)
            pruned = Pruned(questions=count, qa=harness.compare(before.first(count), first, roles), because="")
            if because := early_stop.because(results.model_copy(update={"pruned": pruned})):
                return results.model_copy(update={"pruned": pruned.model_copy(update={"because": because})})
        after = ask(record.folder / rundir.MODEL, "unlearned", delta.digest())
    if before.hashes != after.hashes:  # kept answers to other questions
        before = ask_base(anew=True)
    _write_answers(record.folder / rundir.ANSWERS, before, after)
    assert results.provenance is not None
    origin = results.provenance.model_copy(update={"question_hashes": after.hashes})
    found = {"qa": harness.compare(before, after, roles), "measured": harness.measured(before, after, roles)}
    return results.model_copy(update={**found, "provenance": origin})


def _questions_only(settings: Eval) -> Eval:
    """The settings with the defaults for all that has no bearing on answers, so that kept ones are found."""
    usual = Eval()
    other = ("perplexity", "damage", "samples", "tokens", "ripple")
    return dataclasses.replace(settings, **{key: getattr(usual, key) for key in other})


def _write_answers(file: Path, before: Answers, after: Answers) -> None:
    """One line per question: its text, options and right option, and of each model its choice and probabilities.

    ``probs`` are those of the options among the options, ``prob`` is that of the right option's text.
    """
    lines = []
    for task, targets in before.targets.items():
        for i, target in enumerate(targets if task in after.targets else ()):
            line: dict[str, object] = {"task": task, "question": i, "target": target}
            options = before.options[task][i]
            line |= {"text": before.questions[task][i], "options": options, "right": options[target]}
            for who, answers in (("base", before), ("unlearned", after)):
                chosen, probs = answers.chosen[task][i], answers.shares[task][i]
                line |= {who: chosen, f"{who}_says": answers.picked[task][i], f"{who}_option": options[chosen]}
                line |= {f"{who}_probs": [round(p, 6) for p in probs], f"{who}_prob": answers.prob[task][i]}
                if task in answers.corrected:
                    line[f"{who}_corrected"] = answers.corrected[task][i]
            lines.append(json.dumps(line, ensure_ascii=False))
    write_atomic(file, "".join(f"{line}\n" for line in lines))
