"""Maximum entropy: on forget texts the next token is made anybody's guess.

    L = mean CE(uniform, π) − log V over forget tokens + α · KL(frozen ‖ updated) on the retain texts

One of the baselines of TAR (arXiv 2408.00761) and of arXiv 2506.06278. ``steer`` is not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import log_softmax

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.unlearn import lm_losses, method
from rmu_exp.unlearn.method import Losses, summed
from rmu_exp.unlearn.step import Step


@dataclass
class Settings:
    """Maximum entropy has no settings of its own."""


class Method(method.Method):
    """Maximum entropy."""

    logits = True
    mean_over = method.SUCCESSORS

    def loss(self, step: Step) -> Losses:
        seen = step.updated(logits=True)
        retain = lm_losses.retain_loss("kl", step, seen, RETAIN)
        return summed(from_uniform(lm_losses.counted(step, seen, FORGET)), retain, self.context.alpha[step.topic])


def from_uniform(logits_NV: Tensor) -> Tensor:
    """Mean CE(uniform, π) − log V = KL(uniform‖π): a scalar."""
    return -log_softmax(logits_NV, -1).mean() - math.log(logits_NV.shape[-1])
