"""UNDO (arXiv 2506.06278), a second phase over any result: shrink an unlearned model, then distil it into that.

    θ = (1 − α)·θ_u + α·β·N,   then   L = KL(π_u ‖ π) on the retain texts

θ_u are the trained tensors of an unlearned model and π_u is that model, N is Xavier noise on matrices and nothing on
vectors. What it says on general text is learnt again, what it only hid is not. On WMDP the authors' code has β = 0: a
pure shrink. Embeddings and head, which the code shrinks too, stay. ``steer`` and ``alpha`` are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rmu_exp.data.batches import RETAIN
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import TrainedTensor, assemble
from rmu_exp.record import rundir
from rmu_exp.support.errors import UserError
from rmu_exp.support.randomness import named_generator
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """UNDO's settings."""

    teacher: str = setting()
    """The folder of the run whose unlearned model is shrunk and is the teacher."""
    shrink: float = setting(least=0, most=1)
    """α: how much of each tensor is taken away."""
    noise: float = setting(least=0, most=1)
    """β: how much Xavier noise comes in its place."""


class Method(method.Method):
    """UNDO."""

    logits = True
    at_once = True  # it begins far from the base and comes back
    mean_over = method.SUCCESSORS

    @classmethod
    def refuse_tensors(cls, settings: Settings, base: Checkpoint, trained: Sequence[TrainedTensor]) -> None:
        if not settings.teacher:
            raise UserError("method.teacher: not given; add method.teacher=FOLDER of an unlearning run")
        delta = Delta.load(Path(settings.teacher) / rundir.DELTA)
        delta.refuse_other_base(base, "method.teacher")
        if lacking := sorted(set(delta.tensors) - {t.name for t in trained}):
            raise UserError(f"method.teacher: it changed {lacking[0]}, which is not trained here; use layers=all")

    @classmethod
    def made_from(cls, settings: Settings) -> str:
        return Delta.load(Path(settings.teacher) / rundir.DELTA).digest()

    def start(self, trained: Sequence[TrainedTensor], masters: Sequence[Tensor]) -> None:
        folder = self.settings.teacher
        changed = Delta.load(Path(folder) / rundir.DELTA).tensors if folder else {}  # nothing: the base itself
        self.trained = trained
        self.teacher = [changed.get(t.name, w).detach().to(w, copy=True) for t, w in zip(trained, masters, strict=True)]
        with torch.no_grad():
            for t, w, own in zip(trained, masters, self.teacher, strict=True):
                generator = named_generator(self.context.seed, f"undo/{t.name}")
                w.copy_(shrunk(own, self.settings.shrink, self.settings.noise, generator))

    def loss(self, step: Step) -> Losses:
        with torch.no_grad():
            weights = assemble(step.split.model, self.trained, self.teacher)
            teacher = replace(step, weights=weights).updated(RETAIN, logits=True)
        student = step.updated(RETAIN, logits=True)
        kl = lm_losses.kl(lm_losses.counted(step, teacher, RETAIN), lm_losses.counted(step, student, RETAIN))
        return {"loss": kl, "forget_loss": 0 * kl, "retain_loss": kl}


def shrunk(w: Tensor, shrink: float, noise: float, generator: torch.Generator) -> Tensor:
    """(1 − α)·w + α·β·N, N uniform within √(6 / (rows + columns)) for a matrix and 0 for a vector."""
    left = (1 - shrink) * w
    if w.dim() != 2 or not noise:
        return left
    drawn = torch.nn.init.xavier_uniform_(torch.empty(w.shape), generator=generator)
    return left + shrink * noise * drawn.to(w)
