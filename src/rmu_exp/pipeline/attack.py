"""Attacking: what adversaries with stated budgets get out of the unlearned model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from typing import Any

import torch

from rmu_exp.attacks import runner
from rmu_exp.attacks.api import Context
from rmu_exp.evaluate import questions as items
from rmu_exp.model.weight_files import LAYER
from rmu_exp.pipeline.job import Job
from rmu_exp.tracking import Tracker


class Attacking:
    """Writes one part of results.json an attack."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """The attacks that are still to be carried out; none on a trial that its search has given up."""
        chosen, results = self.job.run.attacks, self.job.results
        return runner.missing(chosen, results, self.of) if chosen and "pruned" not in results else {}

    @cached_property
    def of(self) -> str:
        """What the attacks' results belong to: the models, the texts, the questions."""
        job, (asked, others) = self.job, self.questions
        oracle = job.oracle.identity() if job.run.model.oracle is not None else None
        questions = [[dataclasses.astuple(item) for item in group] for group in (asked, *others.values())]
        what = [job.checkpoint.identity(), job.changes.digest(), oracle, job.text_digests, list(others), questions]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @cached_property
    def questions(self) -> tuple[list[items.Question], dict[str, list[items.Question]]]:
        """What attacks ask: about the forget topics, and about everything else, by task or group."""
        run = self.job.run
        others = [task for task in run.eval.tasks if task not in {*run.data.forget_tasks, "wmdp"}]
        asked = items.needed(run.data.forget_tasks, run.topics, run.eval.limit)
        return asked, {k: v for k, v in items.load(others, run.topics, run.eval.limit).items() if v}

    def preflight(self) -> None:
        if not self.job.run.attacks:
            return
        if self.job.run.model.oracle is not None:
            self.job.refuse_other(self.job.oracle)
        _, _ = self.questions, self.job.texts

    def carry_out(self, tracker: Tracker) -> None:
        if not self.chosen:
            return
        for _, found in runner.carry_out(self._context(), self.chosen, self.of, self.job.journal):
            runner.merge(self.job.results, found)
            self.job.save()

    def _context(self) -> Context:
        job, device = self.job, torch.device(self.job.device)
        asked, others = self.questions
        delta, (forget, retain) = job.changes, job.texts
        span = sorted({int(m[1]) for name in delta.tensors if (m := LAYER.search(name))})
        return Context(
            items=asked,
            others=others,
            forget=[text for corpus in forget for text in corpus.texts],
            retain=list(dict.fromkeys(text for corpus in retain for text in corpus.texts)),
            layer=span[-1] if span else job.checkpoint.depth - 1,
            span=span,
            seed=job.run.seed,
            tokenizer=job.checkpoint.tokenizer(),
            device=device,
            delta=delta,
            load=lambda: job.checkpoint.open(None, job.dtype, device),
            load_oracle=(lambda: job.oracle.open(None, job.dtype, device)) if job.run.model.oracle else None,
        )
