"""Adaptive RMU (arXiv 2408.06223): the coefficient comes from the frozen model's own norms.

    L_forget = mean (h − β·‖g‖·u)²,   the rest as in RMU

‖g‖ is the mean norm of the frozen forget activations: of a topic's first batch, for all steps, as in the published
code, or of each token, as the paper's equation may be read. ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu
from rmu_exp.unlearning.step import Step


@dataclass(kw_only=True)
class Settings(rmu.Family):
    """Adaptive RMU's settings."""

    scale: float = setting(above=0)
    """β: how many times the frozen norm the forget target is long."""
    norm: str = setting(choices=("topic", "token"))
    """Whose frozen norm: topic, the mean over the topic's first batch; or token, each token's own."""

    def check(self) -> None:
        """Ablation takes a factor, and here c is a length."""
        if self.target == "ablate":
            raise UserError("method.target: got 'ablate', allowed with adaptive_rmu is constant, add")


class Method(rmu.Steering):
    """Adaptive RMU."""

    mean_over = None  # the norm is that of a whole batch

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, replace(context, steer=[1.0] * len(context.topics)))
        self.directions_KD = self.control_KD.clone()

    def control(self, step: Step) -> Tensor:
        each = self.settings.norm == "token"
        if not each and step.number > len(self.context.topics):  # topics take turns
            return self.control_KD[step.topic]
        g_ND = step.frozen().h[self.context.layer][FORGET]
        lengths_N = self.settings.scale * torch.linalg.vector_norm(g_ND, dim=-1)
        if each:
            return lengths_N[:, None] * self.directions_KD[step.topic]
        self.control_KD[step.topic] = lengths_N.mean() * self.directions_KD[step.topic]
        return self.control_KD[step.topic]
