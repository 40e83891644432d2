"""Gradient difference (arXiv 2203.12817; the GradDiff of TOFU, arXiv 2401.06121).

    L = −NLL(forget) + α · NLL(retain)          or  + α · KL(frozen ‖ updated) on the retain texts

The forget term has no floor, so that in the long run it outweighs any α. ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """Gradient difference's settings."""

    retain: str = setting(choices=("nll", "kl"))
    """The retain loss: nll, or kl to the frozen model."""


class Method(method.Method):
    """Gradient difference."""

    logits = True
    mean_over = method.SUCCESSORS

    def loss(self, step: Step) -> Losses:
        seen = step.updated(logits=True)
        retain = lm_losses.retain_loss(self.settings.retain, step, seen, RETAIN)
        return summed(-lm_losses.nll(step, seen, FORGET), retain, self.context.alpha[step.topic])
