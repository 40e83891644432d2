"""RepSelect (arXiv 2606.17168), single shot: one step up the forget loss, without its dominant directions.

    A:  p ← p − η·∇NLL(forget), plain SGD on LoRA adapters p of the trained matrices: an adversary that knows better
    G = Σ over batches of ∂(−NLL(forget))/∂W, with the adversary in place, which then goes
    U, S, V = the leading singular directions of G (or of the gradient on the retain texts), s = S / min S
    G ← G − (G·V)(I − diag(1/s))·Vᵀ              input side; then Gᵀ with U in V's place, the output side
    W ← W − lr·G                                 once

Directions that many texts share are the ones that other texts need too, and that relearning finds first; so they count
less. The steps are split evenly among what is measured: retain gradients if wanted, the adversary, forget gradients.
``steer`` and ``alpha`` are not used. Follows github.com/filyp/RepSelect (repselect_simple.py).
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
from rmu_exp.unlearning.method import Context, Losses
from rmu_exp.unlearning.step import Step, Weights

ADVERSARY = "adversary"
NARROWER = 8  # the model's width by the number of directions, as published: 512 of 4096
NOTHING = 1e-5  # of the largest singular value: what rounding leaves of one that is not there
RANK = 8  # of the adversary; its scale is 1, as peft's defaults give


@dataclass
class Settings:
    """RepSelect's settings."""

    distribution: str = setting(choices=("forget", "retain", "none"))
    """Whose gradient's singular directions are made to count less; none: nobody's."""
    collapse: str = setting(choices=("both", "act", "grad", "none"))
    """On which side of a matrix: of its inputs (act), of its outputs (grad), both, or none."""
    weighting: str = setting(choices=("soft", "quadratic", "hard"))
    """How: divided by s (soft), by s² (quadratic), or taken out (hard)."""
    directions: int | None = setting(least=1)
    """How many singular directions of each matrix; null: an eighth of the model's width."""
    lora: bool = setting()
    """Whether gradients are measured under the adversary."""
    lora_lr: float = setting(above=0)
    """η: learning rate of the adversary."""


class Method(method.Method):
    """RepSelect."""

    logits = True
    at_once = True

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context)
        self.phases, self.adapters = phases(settings), dict[str, Tensor]()

    @classmethod
    def refuse(cls, settings: Settings, layer: int, lowest: int, steps: int) -> None:
        if steps < (least := len(phases(settings))):
            raise UserError(f"train.max_batches: got {steps}, repselect needs {least} or more with these settings")

    def phase(self, number: int) -> str:
        """What the step of this number, from 1, is for."""
        return self.phases[(number - 1) * len(self.phases) // self.context.steps]

    def loss(self, step: Step) -> Losses:
        phase = self.phase(step.number)
        role = RETAIN if phase == RETAIN else FORGET
        if phase != RETAIN and self.settings.lora:
            step.weights = self.attacked(step.weights, trains=phase == ADVERSARY)
        nll = lm_losses.nll(step, step.updated(role, logits=True), role)
        loss = nll if phase == ADVERSARY else -nll
        return {"loss": loss, f"{role}_loss": loss}

    def attacked(self, weights: Weights, trains: bool) -> Weights:
        """Every matrix with the adversary's B·A added; either that is trained, or the matrix is."""
        found: Weights = {}
        for layer, own in weights.items():
            for name, w in own.items():
                a, b = (self.adapter(f"{layer}.{name}.{half}", w) for half in "AB")
                added = (b @ a).to(w.dtype)
                found.setdefault(layer, {})[name] = w.detach() + added if trains else w + added.detach()
        return found

    def adapter(self, name: str, w: Tensor) -> Tensor:
        """Half of an adapter of a matrix (…, out, in), made as peft makes it: A uniform on ±1/√in, B zero."""
        if name not in self.adapters:
            *more, outs, ins = w.shape
            half = torch.zeros(*more, outs, RANK)
            if name.endswith("A"):
                generator = torch.Generator().manual_seed(self.context.seed + len(self.adapters))
                half = (2 * torch.rand(*more, RANK, ins, generator=generator) - 1) / ins**0.5
            self.adapters[name] = half.to(w.device)
        elif self.adapters[name].device != w.device:  # as a snapshot gives them back
            self.adapters[name] = self.adapters[name].detach().to(w.device)
        return self.adapters[name].requires_grad_()

    def optimizer(self, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return OneStep(masters, lr, self)

    def state(self) -> dict[str, Tensor]:
        return dict(self.adapters)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.adapters = {name: value.to(self.context.device) for name, value in state.items()}


def phases(settings: Settings) -> list[str]:
    """What is measured, in turn."""
    first = [RETAIN] if settings.distribution == RETAIN and settings.collapse != "none" else []
    return [*first, *([ADVERSARY] if settings.lora else []), FORGET]


class OneStep(torch.optim.Optimizer):
    """Trains the adversary, adds up gradients, and takes one step after the last batch."""

    def __init__(self, masters: list[Tensor], lr: float, method: Method) -> None:
        super().__init__(masters, {"lr": lr})
        self.masters, self.lr, self.method = masters, lr, method  # its own rate: a schedule would end near 0
        for w in masters:
            self.state[w] = {"step": torch.tensor(0.0)}
            self.state[w] |= {role: torch.zeros_like(w) for role in method.phases if role != ADVERSARY}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        settings, context = self.method.settings, self.method.context
        for w in self.masters:
            self.state[w]["step"] += 1
        number = int(self.state[self.masters[0]]["step"])
        phase = self.method.phase(number)
        if phase == ADVERSARY:
            for p in self.method.adapters.values():
                assert p.grad is not None
                p.sub_(p.grad, alpha=settings.lora_lr)
                p.grad = None
            return
        for i, w in enumerate(self.masters):
            assert w.grad is not None
            self.state[w][phase] += w.grad
            if number == context.steps:
                g, of = self.state[w][FORGET], self.state[w].get(settings.distribution)
                if of is not None and settings.collapse != "none":
                    count = settings.directions or max(1, context.hidden // NARROWER)
                    g = collapsed(g, *leading(of, count, context.seed + i), settings.collapse, settings.weighting)
                w.sub_(g.to(w.dtype), alpha=self.lr)


def leading(of: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, q), S (q) and V (in, q): the q largest singular directions of a matrix, by torch's randomised method.

    Directions that the matrix does not have are left out: the smallest singular value is the unit of the others.
    """
    devices = [of.device] if of.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(of.float(), q=min(count, *of.shape))
    there = s > NOTHING * s.max()
    return u[:, there], s[there], v[:, there]


def collapsed(g: Tensor, u: Tensor, s: Tensor, v: Tensor, sides: str, weighting: str) -> Tensor:
    """A gradient (out, in) in which singular directions count less, the larger their singular value is."""
    g = g.float()
    if weighting == "hard":
        left = torch.zeros_like(s)
    else:
        left = (s.amin() / s) ** (2 if weighting == "quadratic" else 1) if len(s) else s
    if sides in ("act", "both"):
        g = g - (g @ v) * (1 - left) @ v.mT
    if sides in ("grad", "both"):
        g = g - u @ ((1 - left)[:, None] * (u.mT @ g))
    return g
