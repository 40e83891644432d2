"""Something added to a forward pass, learned by gradients to bring the letters out: soft prompts, perturbed latents.

Axes: B questions, K letters, P, D whatever is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import Context, Correct
from rmu_exp.evaluate.questions import Question
from rmu_exp.evaluate.scoring import likeliest

Letters = Callable[[Sequence[Question]], Tensor]
"""Logits (B, K) of the letters of items."""
Losses = list[tuple[float, float]]
"""Step and loss."""


class Budget(Protocol):
    """How far is learned: steps of Adam, questions per step, learning rate."""

    steps: int
    batch_size: int
    lr: float


def learn(
    shift: Tensor,
    letters: Letters,
    items: Sequence[Question],
    budget: Budget,
    generator: torch.Generator,
    *,
    radius: float | None = None,
) -> Losses:
    """Adam on the cross-entropy of the right letters, on the tensor in place.

    Args:
        shift: what is learned; what ``letters`` computes depends on it.
        radius: after each step ``shift`` is brought back to this Euclidean length if it is longer; None: never.
    """
    shift.requires_grad_(True)
    optimizer = torch.optim.Adam([shift], lr=budget.lr)
    losses = []
    for step in range(budget.steps):
        picked = torch.randperm(len(items), generator=generator)[: budget.batch_size].tolist()
        batch = [items[i] for i in picked]
        logits_BK = letters(batch)
        right_B = torch.tensor([item.answer for item in batch], device=logits_BK.device)
        loss = nn.functional.cross_entropy(logits_BK.float(), right_B)
        (shift.grad,) = torch.autograd.grad(loss, [shift])
        optimizer.step()
        if radius is not None:
            with torch.no_grad():
                shift.mul_((radius / shift.norm()).clamp(max=1))
        losses.append((float(step + 1), loss.item()))
    shift.requires_grad_(False)
    return losses


def at_letters(context: Context, logits_BTV: Tensor, last_B: Tensor, items: Sequence[Question]) -> Tensor:
    """The letters' logits (B, K) at each row's last token."""
    rows_B = torch.arange(len(items), device=logits_BTV.device)
    letters_BK = torch.tensor([context.scorer.letters(item) for item in items], device=logits_BTV.device)
    return logits_BTV[rows_B, last_B].gather(1, letters_BK)


@torch.no_grad()
def answers(context: Context, letters: Letters, items: Sequence[Question], extra: int = 0) -> Correct:
    """1 or 0 for each item.

    Args:
        extra: tokens that stand before each prompt.
    """
    correct = [0] * len(items)

    def ask(batch: list[int]) -> None:
        chosen = likeliest(letters([items[i] for i in batch]))
        for i, letter in zip(batch, chosen, strict=True):
            correct[i] = int(letter == items[i].answer)

    context.scorer.in_batches(ask, [len(context.scorer.encode(item.context)) + extra for item in items])
    return correct
