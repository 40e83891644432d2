"""RMU at several layers at once: the sum of RMU's loss over a set of layers.

    L = Σ over layers ℓ' of [ mean (h_ℓ' − c·u)² + α · mean (h_ℓ' − g_ℓ')² ]

One u per topic for all layers. Trained are the tensors of every such layer and of those below it that ``layers.span``
names. A wider band of trained layers is what "Distillation robustifies unlearning" (arXiv 2506.06278) gives RMU.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.support.setting import setting
from rmu_exp.unlearn.methods import rmu


@dataclass
class Settings:
    """Multi-layer RMU's settings."""

    offsets: list[int] = setting(filled=True)
    """The steered layers, counted from `layer`: 0 is it, -2 the one two below."""


class Method(rmu.Method):
    """RMU at several layers."""

    @classmethod
    def targets(cls, settings: Settings, layer: int) -> list[int]:
        return sorted({layer + offset for offset in settings.offsets})
