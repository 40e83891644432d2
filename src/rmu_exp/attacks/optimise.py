"""Something added to a forward pass, learned by gradients to bring the answers out: soft prompts, perturbed latents.

Axes: B questions, K options, R rows, T positions, V vocabulary, P, D whatever is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import Context
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Put
from rmu_exp.support.progress import each

Logits = Callable[[Tensor], Tensor]
"""Token ids (R, T), padded on the right, to logits; tokens that are put before each row count in positions."""
Losses = list[tuple[float, float]]
"""Step and loss."""


class Budget(Protocol):
    """How far is learned: steps of Adam, questions per step, learning rate."""

    steps: int
    batch_size: int
    lr: float


def learn(
    context: Context,
    shift: Tensor,
    logits: Logits,
    items: Sequence[Question],
    budget: Budget,
    generator: torch.Generator,
    *,
    extra: int = 0,
    radius: float | None = None,
) -> Losses:
    """Adam on the cross-entropy of the right options, on the tensor in place.

    Args:
        shift: what is learned; what ``logits`` computes depends on it.
        extra: tokens that ``logits`` puts before each row.
        radius: after each step ``shift`` is brought back to this Euclidean length if it is longer; None: never.
    """
    shift.requires_grad_(True)
    optimizer = torch.optim.Adam([shift], lr=budget.lr)
    losses = []
    for step in each("steps", range(budget.steps)):
        picked = torch.randperm(len(items), generator=generator)[: budget.batch_size].tolist()
        batch = [items[i] for i in picked]
        scores_BK = scores(context, logits, batch, extra)
        loss = nn.functional.cross_entropy(scores_BK, torch.tensor([i.answer for i in batch], device=scores_BK.device))
        (shift.grad,) = torch.autograd.grad(loss, [shift])
        optimizer.step()
        if radius is not None:
            with torch.no_grad():
                shift.mul_((radius / shift.norm()).clamp(max=1))
        losses.append((float(step + 1), loss.item()))
    shift.requires_grad_(False)
    return losses


def scores(context: Context, logits: Logits, items: Sequence[Question], extra: int = 0) -> Tensor:
    """Log-likelihoods (B, K) of the items' options."""
    layout = context.scorer.layout(items)
    return layout.scores(logits(context.scorer.padded(layout.rows)[0]), extra)


def put(context: Context, logits: Logits, extra: int = 0) -> Put:
    """Puts questions to what ``logits`` computes, in batches; ``extra`` as in :func:`learn`."""

    @torch.no_grad()
    def ask(items: Sequence[Question]) -> list[list[float]]:
        found: list[list[float]] = [[]] * len(items)

        def some(batch: list[int]) -> None:
            rows = scores(context, logits, [items[i] for i in batch], extra).tolist()
            for i, row in zip(batch, rows, strict=True):
                found[i] = row[: len(items[i].options)]

        rows = [context.scorer.layout([item]).rows for item in items]
        context.scorer.in_batches(some, [len(of) * (max(map(len, of)) + extra) for of in rows], "questions")
        return found

    return ask
