"""SimNPO (arXiv 2410.07163): NPO without a reference model, its reward the mean log-likelihood of a token.

    L = −(2/β) · E log σ(−(β/|y|) · log π(y) − γ) + α · NLL(retain)       or  + α · KL(frozen ‖ updated)

Texts are weighed by how likely the model still finds them, whatever their length. ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses, summed
from rmu_exp.unlearning.methods.npo import npo_loss
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """SimNPO's settings."""

    beta: float = setting(above=0)
    """β, the inverse temperature."""
    gamma: float = setting()
    """γ, the margin of the reward."""
    retain: str = setting(choices=("nll", "kl"))
    """The retain loss: nll, or kl to the frozen model."""


class Method(method.Method):
    """SimNPO."""

    logits = True
    mean_over = method.TEXTS

    def loss(self, step: Step) -> Losses:
        seen = step.updated(logits=True)
        own, lengths = lm_losses.text_nll(seen, FORGET, step.following(FORGET))
        forget = npo_loss(-own / lengths, self.settings.beta, self.settings.gamma)
        retain = lm_losses.retain_loss(self.settings.retain, step, seen, RETAIN)
        return summed(forget, retain, self.context.alpha[step.topic])
