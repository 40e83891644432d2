"""What turns gradients into steps, for the methods that have nothing of their own for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from rmu_exp.support.errors import UserError

ADAMW, PAGED = "adamw", "paged_adamw_8bit"
EIGHT_BITS = ("adamw_8bit", PAGED)
LEAST = (0, 50)  # of bitsandbytes: older ones take no tensors on a CPU


def refuse(name: str, device: str) -> None:
    """Refuse an optimizer whose package is not installed, or that the device has no use for (UserError)."""
    if name == PAGED and not device.startswith("cuda"):
        raise UserError(f"train.optimizer: {name} moves its numbers off a GPU, and this is {device}; use adamw_8bit")
    if name in EIGHT_BITS:
        try:
            there = tuple(map(int, version("bitsandbytes").split(".")[:2]))
        except (PackageNotFoundError, ValueError):
            there = (0, 0)
        if there < LEAST:
            asked = f"bitsandbytes {'.'.join(map(str, LEAST))} or newer"
            raise UserError(f"train.optimizer: {name} is that of {asked}; pip install 'rmu_exp[bitsandbytes]'")


def make(name: str, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """The optimizer of a name; bitsandbytes' keep their moments in 8 bits, and paged ones where the driver has room."""
    if name == ADAMW:
        return PublishedAdamW(masters, lr)
    import bitsandbytes as bnb

    kind = {"adamw_8bit": bnb.optim.AdamW8bit, "paged_adamw_8bit": bnb.optim.PagedAdamW8bit}[name]
    made = kind(masters, lr, betas=PublishedAdamW.BETAS, eps=PublishedAdamW.EPS, weight_decay=0.0)
    assert isinstance(made, torch.optim.Optimizer)
    return made


class PublishedAdamW(torch.optim.Optimizer):
    """The published loop's AdamW, that of earlier versions of transformers, in the parameters' own dtype.

        m = β₁·m + (1 − β₁)·g,   v = β₂·v + (1 − β₂)·g²,   w = w − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)

    No weight decay; ε is added before v's bias correction. torch's AdamW is the same but for rounding, which is a third
    of the update in bfloat16.
    """

    BETAS, EPS = (0.9, 0.999), 1e-6

    def __init__(self, masters: list[Tensor], lr: float) -> None:
        super().__init__(masters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        (first, second), group = self.BETAS, self.param_groups[0]
        for w in group["params"]:
            if w.grad is None:
                continue
            state = self.state[w]
            if not state:
                state.update(step=torch.zeros(()), m=torch.zeros_like(w), v=torch.zeros_like(w))
            state["step"] += 1
            t, m, v = int(state["step"]), state["m"], state["v"]
            m.mul_(first).add_(w.grad, alpha=1 - first)
            v.mul_(second).addcmul_(w.grad, w.grad, value=1 - second)
            size = group["lr"] * (1 - second**t) ** 0.5 / (1 - first**t)
            w.addcdiv_(m, v.sqrt().add_(self.EPS), value=-size)
