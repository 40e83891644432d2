"""Maximum entropy: on forget texts the next token is made anybody's guess.

    uniform:  L = mean KL(uniform ‖ π) over forget tokens + α · KL(frozen ‖ updated) on the retain texts
    entropy:  L = mean KL(π ‖ uniform) + …, which is log V minus the mean entropy of π

The first is the MaxEnt of arXiv 2506.06278, the second the entropy loss of TAR (arXiv 2408.00761). ``steer`` is not
used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import log_softmax

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """Maximum entropy's settings."""

    towards: str = setting("uniform", choices=("uniform", "entropy"))
    """What is minimised: uniform, KL(uniform ‖ π); or entropy, KL(π ‖ uniform)."""


class Method(method.Method):
    """Maximum entropy."""

    logits = True
    mean_over = method.SUCCESSORS

    def loss(self, step: Step) -> Losses:
        seen = step.updated(logits=True)
        retain = lm_losses.retain_loss("kl", step, seen, RETAIN)
        measure = from_uniform if self.settings.towards == "uniform" else lacking_entropy
        return summed(measure(lm_losses.counted(step, seen, FORGET)), retain, self.context.alpha[step.topic])


def from_uniform(logits_NV: Tensor) -> Tensor:
    """Mean CE(uniform, π) − log V = KL(uniform‖π): a scalar."""
    return -log_softmax(logits_NV, -1).mean() - math.log(logits_NV.shape[-1])


def lacking_entropy(logits_NV: Tensor) -> Tensor:
    """log V − mean H(π) = KL(π‖uniform): a scalar."""
    log_p = log_softmax(logits_NV, -1)
    return (log_p.exp() * log_p).sum(-1).mean() + math.log(logits_NV.shape[-1])
