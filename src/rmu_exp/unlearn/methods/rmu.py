"""Representation Misdirection for Unlearning: the losses of arXiv 2403.03218, Section 4.

With h the activations of the model being updated and g those of the frozen model, both at layer ℓ::

    L_forget = mean over forget tokens of (h - c·u)²        Eq. 1; u a random unit vector per topic
    L_retain = mean over retain tokens of (h - g)²          Eq. 2
    L        = L_forget + α · L_retain                      Eq. 3

The means run over tokens and hidden units, as in the published code, for which c and α were chosen
(the paper's text has the squared norm per token: the same up to the factor of the hidden size).
The model is cut above ℓ; the frozen activations come from the same trunk.
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
from rmu_exp.unlearn.step import Step


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
        layer = self.context.layer
        h = step.updated().h[layer]
        forget = forget_loss(h[FORGET], self.forget_target(step))
        retain = retain_loss(h[RETAIN], self.retain_target(step, step.frozen(RETAIN).h[layer][RETAIN]))
        return summed(forget, retain, self.context.alpha[step.topic])

    def forget_target(self, step: Step) -> Tensor:
        """Where forget activations go, (D) or (N, D): c·u."""
        return self.control_KD[step.topic]

    def retain_target(self, step: Step, g_ND: Tensor) -> Tensor:
        """Where retain activations stay: at the frozen model's."""
        return g_ND


def control_of(context: Context) -> Tensor:
    """A run's forget targets, on its device. The published loop draws them on the model's device in its dtype."""
    generator = torch.Generator(context.device if context.faithful else "cpu").manual_seed(context.seed)
    drawn = control_vectors(list(context.steer), context.hidden, generator, context.dtype, context.distribution)
    return drawn.to(context.device)


def control_vectors(
    steer: list[float], hidden: int, generator: torch.Generator, dtype: torch.dtype, distribution: str = "uniform"
) -> Tensor:
    """The forget targets c·u, one per topic.

    Args:
        steer: c of each topic.
        generator: its device is the result's.
        distribution: ``uniform`` draws u's entries on [0, 1) as published, so that all are positive;
            ``normal`` gives a direction uniform on the sphere.

    Returns:
        (topics, hidden) in ``dtype``; row k has length ``steer[k]``.
    """
    draw = torch.rand if distribution == "uniform" else torch.randn
    rows = []
    for c in steer:
        u = draw(1, 1, hidden, generator=generator, dtype=dtype, device=generator.device)
        rows.append((u / torch.norm(u) * c).flatten())
    return torch.stack(rows)


def forget_loss(h_ND: Tensor, target_D: Tensor) -> Tensor:
    """Eq. 1: a scalar."""
    return mse_loss(h_ND, target_D.expand_as(h_ND))


def retain_loss(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Eq. 2: a scalar, before α."""
    return mse_loss(h_ND, g_ND)
