"""Random noise augmentation (arXiv 2501.19202): RMU with noise on what retain activations are held to.

    L_retain = mean (h − (g + δ))²,   δ ~ N(0, ν·I), drawn anew for every token and step;   L_forget as in RMU

The noise makes the retained behaviour robust to forget tokens among retain ones, which confuse plain RMU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.support.randomness import named_generator
from rmu_exp.support.setting import setting
from rmu_exp.unlearn.methods import rmu
from rmu_exp.unlearn.step import Step


@dataclass
class Settings:
    """RNA's settings."""

    noise: float = setting(least=0)
    """ν: the variance of the noise on each hidden unit of the frozen retain activations."""


class Method(rmu.Method):
    """RMU under noise."""

    mean_over = None  # the noise is drawn for a whole batch

    def retain_target(self, step: Step, g_ND: Tensor) -> Tensor:
        generator = named_generator(self.context.seed, f"rna/{step.number}")
        noise_ND = torch.randn(g_ND.shape, generator=generator).to(g_ND)
        return g_ND + self.settings.noise**0.5 * noise_ND
