"""Judging: the questions of lm-eval's tasks and perplexity, before and after, by the same code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rmu_exp import data
from rmu_exp.evaluate import base_answers, harness
from rmu_exp.evaluate.perplexity import perplexity
from rmu_exp.pipeline.job import Job
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker

PERPLEXITY_TOKENS = 4096  # a forward pass; its logits are what takes memory


class EarlyStop(Protocol):
    """A rule by which a search gives a run up on a part of the questions.

    Attributes:
        questions: how many questions per task it is asked on.
    """

    @property
    def questions(self) -> int: ...

    def __call__(self, partly: dict[str, Any], /) -> str | None:
        """Why the run is given up, or None; ``partly`` in the form of results.json."""


class Judging:
    """Writes answers.jsonl, and the parts ``qa`` and ``perplexity`` of results.json.

    Args:
        early_stop: the rule by which a search gives the run up on a part of the questions.
    """

    def __init__(self, job: Job, early_stop: EarlyStop | None = None) -> None:
        self.job, self.early_stop = job, early_stop

    @cached_property
    def held_out(self) -> data.Corpus:
        """The texts that perplexity is measured on."""
        return data.held_out(self.job.run.data, self.job.run.eval)

    @property
    def asks(self) -> bool:
        """Whether questions are still to be asked."""
        return bool(self.job.run.eval.tasks) and not {"qa", "pruned"} & set(self.job.results)

    @property
    def reads(self) -> bool:
        """Whether perplexity is still to be measured."""
        return self.job.run.eval.perplexity is not None and "perplexity" not in self.job.results

    def preflight(self) -> None:
        if self.job.run.eval.tasks:
            harness.task_manager(self.job.run.eval.tasks)
        if self.reads:
            _ = self.held_out

    def carry_out(self, tracker: Tracker) -> None:
        if self.asks and self.job.run.eval.backend not in harness.IN_MEMORY:
            self._ask_outside()
        if not (self.asks or self.reads):
            return
        tokenizer, model = self.job.checkpoint.tokenizer(), self.job.open(None)
        if self.asks:
            self._ask(model, tokenizer)
        if self.reads and "pruned" not in self.job.results:
            self._read(model, tokenizer)

    def _ask(self, model: Any, tokenizer: Any) -> None:
        job = self.job

        def ask(who: str, *about: object) -> harness.Answers:
            return harness.ask(model, tokenizer, job.run.eval, job.journal(f"questions-{who}", *about))

        before = self._base(lambda _folder: ask("base"))
        with job.changes.applied(model):
            if self.early_stop is not None and self._given_up(self.early_stop, before, model, tokenizer):
                return
            after = ask("unlearned", job.changes.digest())
        self._answered(before, after, lambda _folder: ask("base"))

    def _base(self, ask: Callable[[Path], harness.Answers], anew: bool = False) -> harness.Answers:
        job = self.job
        return base_answers.judged(job.checkpoint, job.run.eval, job.dtype, job.device, ask, anew)

    def _read(self, model: Any, tokenizer: Any) -> None:
        size = {"max_length": self.job.checkpoint.context, "max_batch_tokens": PERPLEXITY_TOKENS}
        measured = {"base": perplexity(model, tokenizer, self.held_out.texts, **size)}
        with self.job.changes.applied(model):
            measured["unlearned"] = perplexity(model, tokenizer, self.held_out.texts, **size)
        self.job.results["perplexity"] = {self.held_out.source: measured}
        self.job.save()

    def _ask_outside(self) -> None:
        """Let one of lm-eval's own backends judge the checkpoints on disk."""
        job = self.job

        def outside(folder: Path) -> harness.Answers:
            return harness.ask_backend(folder, job.run.eval, job.run.model)

        self._answered(self._base(outside), outside(job.folder / "model"), outside)

    def _given_up(self, early_stop: EarlyStop, before: harness.Answers, model: Any, tokenizer: Any) -> bool:
        """Whether the first questions of each task already show that the run is beaten."""
        settings = self.job.run.eval
        count = min(early_stop.questions, settings.limit or early_stop.questions)
        after = harness.ask(model, tokenizer, dataclasses.replace(settings, limit=count))
        partly = {"questions": count, "qa": harness.compare(before.first(count), after)}
        because = early_stop({"pruned": partly})
        if because is not None:
            self.job.results["pruned"] = partly | {"because": because}
            self.job.save()
        return because is not None

    def _answered(
        self, before: harness.Answers, after: harness.Answers, ask_base: Callable[[Path], harness.Answers]
    ) -> None:
        if before.hashes != after.hashes:  # kept answers to other questions
            before = self._base(ask_base, anew=True)
        lines = [
            json.dumps({"task": task, "question": i, "target": target, "base": b, "unlearned": u})
            for task in before.targets
            for i, (target, b, u) in enumerate(
                zip(before.targets[task], before.chosen[task], after.chosen[task], strict=True)
            )
        ]
        write_atomic(self.job.folder / "answers.jsonl", "\n".join(lines) + "\n")
        self.job.results["qa"] = harness.compare(before, after)
        self.job.results["provenance"]["question_hashes"] = after.hashes
        self.job.save()
