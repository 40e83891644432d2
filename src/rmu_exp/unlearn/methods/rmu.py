"""Representation Misdirection for Unlearning: the losses of arXiv 2403.03218, Section 4.

    L_forget = mean over forget tokens of (h - c·u)²        Eq. 1; u a random unit vector per topic
    L_retain = mean over retain tokens of (h - g)²          Eq. 2
    L        = L_forget + α · L_retain                      Eq. 3

h and g are the updated and the frozen model's activations at layer ℓ. The means run over tokens and hidden units, as in
the published code (the paper's text has the squared norm per token: the same up to the factor of the hidden size).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearn import method
from rmu_exp.unlearn.method import Context, Losses, summed
from rmu_exp.unlearn.step import Activations, Step


@dataclass
class Settings:
    """RMU's settings."""

    faithful: bool = setting()
    """The published loop to the letter: file order, left padding that counts in the loss, no fp32 masters."""


class Method(method.Method):
    """RMU."""

    mean_over: ClassVar[Mapping[str, str] | None] = method.TOKENS
    control_KD: Tensor

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.control_KD = control_of(context)

    def loss(self, step: Step) -> Losses:
        h, target_D = self.updated(step).h, self.forget_target(step)
        layers = self.targets(self.settings, self.context.layer)
        forget = torch.stack([forget_loss(h[i][FORGET], target_D) for i in layers]).sum()
        g = step.frozen(RETAIN).h
        retain = torch.stack([retain_loss(h[i][RETAIN], self.retain_target(step, g[i][RETAIN])) for i in layers]).sum()
        return summed(forget, retain, self.context.alpha[step.topic])

    def updated(self, step: Step) -> Activations:
        """What the loss is about."""
        return step.updated()

    def forget_target(self, step: Step) -> Tensor:
        """Where forget activations go, (D) or (N, D): c·u."""
        return self.control_KD[step.topic]

    def retain_target(self, step: Step, g_ND: Tensor) -> Tensor:
        """Where retain activations stay: at the frozen model's."""
        return g_ND


def control_of(context: Context) -> Tensor:
    """A run's forget targets c·u, (topics, hidden): row k has length ``steer[k]``.

    ``uniform`` draws u's entries on [0, 1) as published, so that all are positive; ``normal`` gives a direction uniform
    on the sphere. The published loop draws on the model's device in its dtype.
    """
    generator = torch.Generator(context.device if context.faithful else "cpu").manual_seed(context.seed)
    draw = torch.rand if context.distribution == "uniform" else torch.randn
    rows = []
    for c in context.steer:
        u_D = draw(context.hidden, generator=generator, dtype=context.dtype, device=generator.device)
        rows.append(u_D / torch.norm(u_D) * c)
    return torch.stack(rows).to(context.device)


def forget_loss(h_ND: Tensor, target_D: Tensor) -> Tensor:
    """Eq. 1: a scalar."""
    return mse_loss(h_ND, target_D.expand_as(h_ND))


def retain_loss(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Eq. 2: a scalar, before α."""
    return mse_loss(h_ND, g_ND)
