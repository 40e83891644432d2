"""RMU under a latent adversary (latent adversarial training, arXiv 2407.15549).

    inner:  δ = argmin over ‖δ_t‖ ≤ ε of  −log p(forget text | activations of layer ℓ−below + δ)
    outer:  RMU's loss at ℓ, with δ in place on the forget tokens

An adversary shifts the residual stream below ℓ so that the model says what it should forget; RMU has to hold under the
shift, for ``updates`` steps on the same batch. The adversary reads logits, so the full model is loaded; it takes AdamW
steps, projected to the ball after each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses
from rmu_exp.unlearning.methods import rmu
from rmu_exp.unlearning.step import Activations, Step


@dataclass(kw_only=True)
class Settings(rmu.Family):
    """RMU-LAT's settings."""

    radius: float = setting(above=0)
    """ε: the greatest length of a token's shift."""
    inner_steps: int = setting(least=1)
    """Steps of the adversary for each step of the model."""
    inner_lr: float = setting(above=0)
    """The adversary's learning rate."""
    updates: int = setting(1, least=1)
    """Steps of the model on each batch, under one shift; they count in train.max_batches."""
    below: int = setting(least=0)
    """How many layers below `layer` the shift is added; no lower than what the lowest trained layer reads."""


class Method(rmu.Steering):
    """RMU under a latent adversary."""

    logits = True
    mean_over = None
    shifts: list[Tensor] | None = None
    found_at = 0

    @classmethod
    def repeats(cls, settings: Settings) -> int:
        return settings.updates

    @classmethod
    def refuse(cls, settings: Settings, layer: int, lowest: int, steps: int) -> None:
        if layer - settings.below < lowest - 1:
            raise UserError(
                f"method.below: got {settings.below}, allowed is 0 to {layer - lowest + 1} "
                f"(layer is {layer}, the lowest trained layer {lowest})"
            )

    def updated(self, step: Step) -> Activations:
        first = step.number - (step.number - 1) % self.settings.updates  # of the batch's steps
        if self.shifts is None or self.found_at != first:
            self.shifts, self.found_at = [x.detach() for x in self.adversary(step)], first
        return step.updated(shifts={self.context.layer - self.settings.below: self.shifts})

    def state(self) -> dict[str, Tensor]:
        kept = {f"shift.{i}": shift for i, shift in enumerate(self.shifts or [])}
        return super().state() | kept | {"found_at": torch.tensor(self.found_at)}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        found = [name for name in state if name.startswith("shift.")]
        self.shifts = [state[f"shift.{i}"].to(self.context.device) for i in range(len(found))] or None
        self.found_at = int(state["found_at"])

    def adversary(self, step: Step) -> list[Tensor]:
        """The shift of each of the packed rows, (R, T, D): nothing but on forget tokens."""
        at, wanted = self.context.layer - self.settings.below, step.following(FORGET)
        masks = []
        for packed, _ in step.trunks:
            mask = torch.zeros(packed.ids_RT.numel(), 1, device=step.split.device)
            if FORGET in packed.tokens:
                mask[packed.tokens[FORGET]] = 1
            masks.append(mask.view(*packed.ids_RT.shape, 1))
        shifts = [torch.zeros(*m.shape[:2], self.context.hidden, device=m.device, requires_grad=True) for m in masks]
        adam = torch.optim.AdamW(shifts, lr=self.settings.inner_lr)
        for _ in range(self.settings.inner_steps):
            seen = step.updated(logits=True, shifts={at: [s * m for s, m in zip(shifts, masks, strict=True)]})
            loss = lm_losses.token_nll(seen, FORGET, wanted).mean()
            for shift, grad in zip(shifts, torch.autograd.grad(loss, shifts), strict=True):
                shift.grad = grad
            adam.step()
            with torch.no_grad():
                for shift in shifts:
                    shift.copy_(projected(shift, self.settings.radius))
        return [s * m for s, m in zip(shifts, masks, strict=True)]


def projected(x_RTD: Tensor, radius: float) -> Tensor:
    """Each token's shift, shortened to the ball."""
    return x_RTD * (radius / torch.linalg.vector_norm(x_RTD, dim=-1, keepdim=True).clamp(min=radius))
