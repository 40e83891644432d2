"""SCRUB (arXiv 2302.09880): a student that obeys its teacher on retain texts and disobeys it on forget texts.

    L = α · KL(frozen ‖ updated) + γ · NLL  on the retain texts   −   KL(frozen ‖ updated)  on the forget texts

The forget term is there for the first part of the steps only (300 of 600 in the paper). ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """SCRUB's settings."""

    task: float = setting(least=0)
    """γ: weight of the language-model loss on the retain texts."""
    ascent_share: float = setting(least=0, most=1)
    """The share of the steps, from the first, that have the forget term."""


class Method(method.Method):
    """SCRUB."""

    logits = True

    def loss(self, step: Step) -> Losses:
        student, _ = step.updated(logits=True), step.frozen(logits=True)  # the teacher, of both kinds of texts at once
        asked = step.number <= self.settings.ascent_share * self.context.steps
        forget = -lm_losses.retain_loss("kl", step, student, FORGET) * float(asked)
        retain = lm_losses.retain_loss("kl", step, student, RETAIN)
        task = lm_losses.nll(step, student, RETAIN)
        loss = forget + self.context.alpha[step.topic] * retain + self.settings.task * task
        return {"loss": loss, "forget_loss": forget, "retain_loss": retain, "task_loss": task}
