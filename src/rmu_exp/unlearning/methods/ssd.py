"""Selective synaptic dampening (arXiv 2308.07707): weights that matter more to forget than to retain texts are shrunk.

    I(θ) = mean over batches of (∂ log-perplexity / ∂θ)²
    where I_forget > a · I_retain:   θ ← min(λ · I_retain / I_forget, 1) · θ

Nothing is trained: the first half of the steps measures the forget texts' importances, the second half the retain
texts', and after the last step the weights are dampened. ``steer``, ``alpha`` and the learning rate are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """SSD's settings."""

    threshold: float = setting(above=0)
    """a: how many times its retain importance a weight's forget importance must be."""
    dampening: float = setting(above=0)
    """λ: how much is left of such a weight, in units of the ratio of its importances."""


class Method(method.Method):
    """SSD."""

    logits = True
    at_once = True

    @classmethod
    def refuse(cls, settings: Settings, layer: int, lowest: int, steps: int) -> None:
        if steps < 2:
            raise UserError(
                f"train.max_batches: got {steps}, ssd needs 2 or more: half for forget, half for retain texts"
            )

    def loss(self, step: Step) -> Losses:
        role = FORGET if 2 * step.number <= self.context.steps else RETAIN
        loss = lm_losses.nll(step, step.updated(logits=True), role)
        return {"loss": loss, f"{role}_loss": loss}

    def optimizer(self, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return Dampening(masters, self.settings, self.context.steps)


class Dampening(torch.optim.Optimizer):
    """Adds up squared gradients, and dampens the weights after the last step."""

    def __init__(self, masters: list[Tensor], settings: Settings, steps: int) -> None:
        super().__init__(masters, {"lr": 0.0})
        self.masters, self.settings, self.steps = masters, settings, steps
        for w in masters:
            self.state[w] = {"step": torch.tensor(0.0), FORGET: torch.zeros_like(w), RETAIN: torch.zeros_like(w)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        half = self.steps // 2
        for w in self.masters:
            assert w.grad is not None
            kept = self.state[w]
            kept["step"] += 1
            role, batches = (FORGET, half) if kept["step"] <= half else (RETAIN, self.steps - half)
            kept[role].addcmul_(w.grad, w.grad, value=1 / batches)
            if kept["step"] == self.steps:
                w.copy_(dampened(w, kept[FORGET], kept[RETAIN], self.settings.threshold, self.settings.dampening))


def dampened(w: Tensor, forget: Tensor, retain: Tensor, threshold: float, dampening: float) -> Tensor:
    """The weights after dampening, from their importances."""
    factor = (dampening * retain / forget).clamp(max=1)
    return torch.where(forget > threshold * retain, factor * w, w)
