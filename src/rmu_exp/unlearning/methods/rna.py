"""Random noise augmentation (arXiv 2501.19202): RMU with noise on what retain activations are held to.

    L_retain = mean (h − (g + δ))²,   δ ~ N(0, ν·I), drawn anew for every token and step;   L_forget as in RMU

The noise makes the retained behaviour robust to forget tokens among retain ones, which confuse plain RMU. It is
``method=rmu method.noise=ν`` under the paper's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.unlearning.methods import rmu


@dataclass
class Settings(rmu.Family):
    """RNA's settings."""


class Method(rmu.Steering):
    """RMU under noise."""

    mean_over = None
