"""RMU at several layers at once: the sum of RMU's loss over a set of layers.

    L = Σ over layers ℓ' of [ mean (h_ℓ' − c·u)² + α · mean (h_ℓ' − g_ℓ')² ]

One u per topic for all layers. Trained are the tensors of every such layer and of those below it that ``layers.span``
names. A wider band of trained layers is what "Distillation robustifies unlearning" (arXiv 2506.06278) gives RMU. It is
``method=rmu method.offsets=[…]`` under another name.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmu_exp.unlearning.methods import rmu


@dataclass
class Settings(rmu.Family):
    """Multi-layer RMU's settings."""


class Method(rmu.Steering):
    """RMU at several layers."""
