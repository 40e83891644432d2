"""Questions that are asked while training: what should stay must not collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rmu_exp.evaluate import questions
from rmu_exp.evaluate.questions import Question
from rmu_exp.evaluate.scoring import Scorer
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.pipeline.models import Models
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError
from rmu_exp.unlearn.guards import Accuracy
from rmu_exp.unlearn.lora import Adapters


def other_tasks(run: Run | Judge) -> list[str]:
    """The tasks that do not ask about the forget topics."""
    return [task for task in run.eval.tasks if task not in {*run.data.forget_tasks, "wmdp"}]


@dataclass(frozen=True)
class Checking:
    """The first ``train.check_questions`` letter questions that are not about the forget topics."""

    asked: list[Question]
    topics: list[str]

    @classmethod
    def of(cls, run: Run) -> Checking:
        """The questions, of each task or group in turn. Raises UserError when there are none."""
        loaded = questions.load(other_tasks(run), run.topics, run.train.check_questions)
        found = [group for group in loaded.values() if group]
        if not found:
            raise UserError("train.check_every: eval.tasks has no letter questions beside the forget tasks")
        longest = max(map(len, found))
        in_turn = [group[i] for i in range(longest) for group in found if i < len(group)]
        return cls(in_turn[: run.train.check_questions], run.topics)

    def accuracy(self, models: Models, trained: Sequence[TrainedTensor], adapters: Adapters | None) -> Accuracy:
        """How well the full model with these values of the trained tensors answers; None: with its own."""
        scorer, model = Scorer(models.base.tokenizer(), torch.device(models.device)), models.open(None)

        def accuracy(values: Sequence[torch.Tensor] | None) -> float:
            if values is None:
                return sum(scorer.correct(model, self.asked)) / len(self.asked)
            now = [w.detach() for w in values]
            now = adapters.merged(now) if adapters else now
            with Delta.from_trained(trained, now, None, self.topics, models.base).applied(model):
                return sum(scorer.correct(model, self.asked)) / len(self.asked)

        return accuracy
