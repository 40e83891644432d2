"""Representation rerouting, the loss of circuit breakers (arXiv 2406.04313).

    L = r·(1 − t/2T) · mean ReLU(cos(h, g)) over forget tokens  +  α·(t/2T) · mean ‖h − g‖ over retain tokens

t of T steps: forget activations are turned at right angles to what they were, and retain ones are held the more the
further it goes. As in the published code the first mean is over the rerouted layers, the second over the embeddings and
all layers up to the highest of them. LoRA on each of these, unless ``layers`` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import method
from rmu_exp.unlearning.method import Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """Representation rerouting's settings."""

    remove: float = setting(least=0)
    """r: weight of the forget loss at first; it falls to half."""
    offsets: list[int] = setting(filled=True)
    """The rerouted layers, counted from `layer`."""


class Method(method.Method):
    """Representation rerouting."""

    @classmethod
    def targets(cls, settings: Settings, layer: int) -> list[int]:
        return sorted({layer + offset for offset in settings.offsets})

    @classmethod
    def kept(cls, settings: Settings, layer: int, lowest: int) -> list[int]:
        return sorted({*cls.targets(settings, layer), *range(lowest, max(cls.targets(settings, layer)) + 1)})

    def loss(self, step: Step) -> Losses:
        h, g = step.updated().h, step.frozen().h
        layers = self.targets(self.settings, self.context.layer)
        gone = step.number / (2 * self.context.steps)
        turned = torch.stack([rerouted(h[i][FORGET], g[i][FORGET]) for i in layers]).mean()
        # below the lowest trained layer nothing moves: those hidden states count in the mean, with distance 0
        far = [held(h[i][RETAIN], g[i][RETAIN]) for i in h if i <= max(layers)]
        retain = torch.stack(far).sum() / (max(layers) + 2)
        return summed(self.settings.remove * (1 - gone) * turned, retain, self.context.alpha[step.topic] * gone)


def rerouted(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Mean ReLU(cos(h, g)): a scalar, 0 when nothing points where it did."""
    return cosine_similarity(h_ND, g_ND, dim=-1).relu().mean()


def held(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Mean ‖h − g‖: a scalar. Its gradient is 0, not undefined, where the two are equal."""
    return torch.linalg.vector_norm(h_ND - g_ND, dim=-1).mean()
