"""Negative preference optimisation (arXiv 2404.05868): forget texts as the losing answers of preference tuning.

    L = −(2/β) · E log σ(−β · log π(y)/π_ref(y)) + α · NLL(retain)        or  + α · KL(frozen ‖ updated)

over forget texts y, π_ref the frozen model. As β → 0 its gradient is that of gradient ascent; for any other β it fades
where a text has already become unlikely. The paper's log π(y) is a sum over the text's tokens; the WMDP code of
Unlearn-Smooth and Unlearn-Simple has their mean, to which its β belongs. ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """NPO's settings."""

    beta: float = setting(above=0)
    """β, the inverse temperature: the smaller, the nearer to gradient ascent."""
    retain: str = setting(choices=("nll", "kl"))
    """The retain loss: nll, or kl to the frozen model."""
    reward: str = setting("sum", choices=("sum", "mean"))
    """What log π(y) is: the sum over the text's tokens, as in the paper, or their mean."""


class Method(method.Method):
    """NPO."""

    logits = True
    mean_over = method.TEXTS

    def loss(self, step: Step) -> Losses:
        seen, wanted = step.updated(logits=True), step.following(FORGET)
        frozen = step.frozen(FORGET, *([RETAIN] if self.settings.retain == "kl" else []), logits=True)
        own, lengths = lm_losses.text_nll(seen, FORGET, wanted)
        reference, _ = lm_losses.text_nll(frozen, FORGET, wanted)
        reward = (reference - own) / (lengths if self.settings.reward == "mean" else 1)
        retain = lm_losses.retain_loss(self.settings.retain, step, seen, RETAIN)
        return summed(npo_loss(reward, self.settings.beta), retain, self.context.alpha[step.topic])


def npo_loss(reward: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """−(2/β) · mean log σ(−β · r − γ), r of each text: a scalar."""
    return -(2 / beta) * logsigmoid(-beta * reward - margin).mean()
