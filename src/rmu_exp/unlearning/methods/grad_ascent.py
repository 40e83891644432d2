"""Gradient ascent: the language-model loss of the forget texts is raised; nothing is retained.

    L = −NLL(forget)

It has no end of its own: what stops it is the number of steps. ``alpha`` and ``steer`` are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.data.batches import FORGET
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """Gradient ascent has no settings of its own."""


class Method(method.Method):
    """Gradient ascent."""

    logits = True
    mean_over = method.SUCCESSORS

    def loss(self, step: Step) -> Losses:
        forget = -lm_losses.nll(step, step.updated(logits=True), FORGET)
        return {"loss": forget, "forget_loss": forget}
