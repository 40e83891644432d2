"""Questions that are asked while training: what should stay must not collapse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from rmu_exp.evaluate import questions
from rmu_exp.evaluate.scoring import Scorer
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.pipeline.job import Job
from rmu_exp.support.errors import UserError
from rmu_exp.unlearn.guards import Accuracy
from rmu_exp.unlearn.lora import Adapters


class Checking:
    """The first ``train.check_questions`` letter questions that are not about what is to be forgotten."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def asked(self) -> list[questions.Question]:
        """The questions, of each task or group in turn.

        Raises:
            UserError: there are none.
        """
        run = self.job.run
        tasks = [task for task in run.eval.tasks if task not in {*run.data.forget_tasks, "wmdp"}]
        found = [v for v in questions.load(tasks, run.topics, run.train.check_questions).values() if v]
        if not found:
            raise UserError("train.check_every: eval.tasks has no letter questions beside the forget tasks")
        return _interleaved(found)[: run.train.check_questions]

    def accuracy(self, trained: Sequence[TrainedTensor], adapters: Adapters | None) -> Accuracy:
        """How well the full model with these values of the trained tensors answers; None: with its own."""
        run, job = self.job.run, self.job
        scorer, model = Scorer(job.checkpoint.tokenizer(), torch.device(job.device)), job.open(None)

        def accuracy(values: Sequence[torch.Tensor] | None) -> float:
            if values is None:
                return sum(scorer.correct(model, self.asked)) / len(self.asked)
            now = [w.detach() for w in values]
            now = adapters.merged(now) if adapters else now
            with Delta.from_trained(trained, now, None, run.topics, job.checkpoint).applied(model):
                return sum(scorer.correct(model, self.asked)) / len(self.asked)

        return accuracy


def _interleaved(groups: Sequence[Sequence[questions.Question]]) -> list[questions.Question]:
    """One of each group in turn."""
    longest = max(map(len, groups))
    return [group[i] for i in range(longest) for group in groups if i < len(group)]
