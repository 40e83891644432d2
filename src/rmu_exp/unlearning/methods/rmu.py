"""Representation Misdirection for Unlearning: the losses of arXiv 2403.03218, Section 4.

    L_forget = mean over forget tokens of (h - c·u)²        Eq. 1; u a random unit vector per topic
    L_retain = mean over retain tokens of (h - g)²          Eq. 2
    L        = L_forget + α · L_retain                      Eq. 3

h and g are the updated and the frozen model's activations at layer ℓ. The means run over tokens and hidden units, as in
the published code (the paper's text has the squared norm per token: the same up to the factor of the hidden size).

Its relatives differ in one place each, and each is a setting: where forget activations go (``target``; add and ablate
are RAd and RAb of arXiv 2601.21702), the layers that the losses are summed over (``offsets``), noise on what retain
activations are held to (``noise``; RNA, arXiv 2501.19202), and where u comes from (``direction``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.model.split import SplitModel
from rmu_exp.support.errors import UserError
from rmu_exp.support.randomness import named_generator
from rmu_exp.support.setting import setting, show
from rmu_exp.unlearning import directions, method
from rmu_exp.unlearning.method import Context, Losses, summed
from rmu_exp.unlearning.step import Activations, Step


@dataclass
class Family:
    """What RMU and its relatives share."""

    target: str = setting("constant", choices=("constant", "add", "ablate"))
    """Where forget activations go: constant, c·u; add, g + c·u; ablate, g − c·(g·u)·u, where c is a factor."""
    offsets: list[int] = setting([0], filled=True)
    """The steered layers, counted from `layer`: 0 is it, -2 the one two below."""
    noise: float = setting(0.0, least=0)
    """ν: the variance of the noise on each hidden unit of the frozen retain activations."""


@dataclass(kw_only=True)
class Settings(Family):
    """RMU's settings."""

    direction: str = setting("random", choices=("random", "refusal", "truth"))
    """Where u comes from: random, or the model's own contrast of refusals and answers, of true and false statements."""
    faithful: bool = setting()
    """The published loop to the letter: file order, left padding that counts in the loss, no fp32 masters."""

    def check(self) -> None:
        """The published loop has none of the relatives' settings."""
        for key, published in (vars(Family()) | {"direction": "random"}).items():
            if self.faithful and (given := getattr(self, key)) != published:
                raise UserError(
                    f"method.{key}: got {show(given)}, but method.faithful=true is RMU with {show(published)}"
                )


class Steering(method.Method):
    """What RMU and its relatives have in common."""

    mean_over: Mapping[str, str] | None = method.TOKENS
    control_KD: Tensor

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.control_KD = control_of(context)
        if settings.noise:
            self.mean_over = None  # the noise is drawn for a whole batch

    @classmethod
    def targets(cls, settings: Any, layer: int) -> list[int]:
        return sorted({layer + offset for offset in settings.offsets})

    def loss(self, step: Step) -> Losses:
        h, layers = self.updated(step).h, self.targets(self.settings, self.context.layer)
        forget = torch.stack([forget_loss(h[i][FORGET], self.forget_target(step, i)) for i in layers]).sum()
        g = step.frozen(RETAIN).h
        retain = torch.stack([retain_loss(h[i][RETAIN], self.retain_target(step, g[i][RETAIN])) for i in layers]).sum()
        return summed(forget, retain, self.context.alpha[step.topic])

    def updated(self, step: Step) -> Activations:
        """What the loss is about."""
        return step.updated()

    def control(self, step: Step) -> Tensor:
        """c·u, (D) or (N, D)."""
        return self.control_KD[step.topic]

    def forget_target(self, step: Step, layer: int | None = None) -> Tensor:
        """Where forget activations go at a layer, (D) or (N, D)."""
        control = self.control(step)
        if self.settings.target == "constant":
            return control
        g_ND = step.frozen().h[self.context.layer if layer is None else layer][FORGET]
        return g_ND + control if self.settings.target == "add" else ablated(g_ND, control)

    def retain_target(self, step: Step, g_ND: Tensor) -> Tensor:
        """Where retain activations stay: at the frozen model's, with the noise δ ~ N(0, ν·I), drawn for each step."""
        if not self.settings.noise:
            return g_ND
        generator = named_generator(self.context.seed, f"rna/{step.number}")
        return g_ND + self.settings.noise**0.5 * torch.randn(g_ND.shape, generator=generator).to(g_ND)


class Method(Steering):
    """RMU."""

    def begin(self, split: SplitModel) -> None:
        if self.settings.direction != "random":
            u_D = directions.contrast(split, self.settings.direction, self.context.layer, self.context.tokenizer)
            self.control_KD = torch.tensor(self.context.steer, device=u_D.device)[:, None] * u_D


def control_of(context: Context) -> Tensor:
    """A run's forget targets c·u, (topics, hidden): row k has length ``steer[k]``.

    ``uniform`` draws u's entries on [0, 1) as published, so that all are positive; ``normal`` gives a direction uniform
    on the sphere. The published loop draws on the model's device in its dtype.
    """
    draws = context.faithful and context.device.type != "meta"  # on which nothing is drawn
    generator = torch.Generator(context.device if draws else "cpu").manual_seed(context.seed)
    draw = torch.rand if context.distribution == "uniform" else torch.randn
    rows = []
    for c in context.steer:
        u_D = draw(context.hidden, generator=generator, dtype=context.dtype, device=generator.device)
        rows.append(u_D / torch.norm(u_D) * c)
    return torch.stack(rows).to(context.device)


def ablated(g_ND: Tensor, control: Tensor) -> Tensor:
    """g − c·(g·u)·u, (N, D), from c·u, (D) or (N, D): c = 1 takes the direction out, 2 turns it round."""
    u = control / torch.linalg.vector_norm(control, dim=-1, keepdim=True).clamp(min=1e-12)
    return g_ND - (g_ND * u).sum(-1, keepdim=True) * control


def forget_loss(h_ND: Tensor, target_D: Tensor) -> Tensor:
    """Eq. 1: a scalar."""
    return mse_loss(h_ND, target_D.expand_as(h_ND))


def retain_loss(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Eq. 2: a scalar, before α."""
    return mse_loss(h_ND, g_ND)
