"""What is looked at while training: questions that should stay, and text on which a model should stay as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

import torch

from rmu_exp.evaluation import damage, questions
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Ids, Scorer
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.settings import Run
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.guards import Accuracy
from rmu_exp.unlearning.lora import Adapters


def check_questions(run: Run) -> list[Question]:
    """The first ``train.check_questions`` questions that are not about the forget topics, of each task in turn.

    Raises UserError when there are none.
    """
    settings = dataclasses.replace(run.eval, limit=run.train.check_questions)
    found = questions.load(run.other_tasks, run.topics, settings).values()
    in_turn = (question for question in chain.from_iterable(zip_longest(*found)) if question is not None)
    if not (asked := list(islice(in_turn, run.train.check_questions))):
        raise UserError("train.check_every: eval.tasks has no multiple-choice questions beside the forget questions")
    return asked


def neutral_rows(run: Run, models: Models, texts: Texts) -> list[Ids]:
    """The neutral texts on which a budget measures KL, as tokens; damage reads others.

    Raises UserError: there are none, or the model has no head to predict with.
    """
    base, neutral = models.base, texts.neutral
    assert neutral is not None
    if not base.has_head:
        raise UserError(f"train.kl_budget: KL needs logits, but {base.name} has no language-model head")
    return damage.encode_held(base.tokenizer(), neutral.texts, neutral.source, base.context)


def accuracy_of(
    asked: list[Question], models: Models, trained: Sequence[TrainedTensor], adapters: Adapters | None
) -> Accuracy:
    """How well the full model with these values of the trained tensors answers; None: with its own."""
    scorer, model = Scorer(models.base.tokenizer(), torch.device(models.device)), models.open(None)

    def accuracy(values: Sequence[torch.Tensor] | None) -> float:
        if values is None:
            return sum(scorer.correct(model, asked)) / len(asked)
        now = [w.detach() for w in values]
        now = adapters.merged(now) if adapters else now
        with Delta.from_trained(trained, now, None, [], models.base).applied(model):
            return accuracy(None)

    return accuracy
