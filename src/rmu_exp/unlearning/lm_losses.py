"""Losses over following tokens, from logits. Axes: M tokens of a role whose following token counts, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from rmu_exp.data.batches import Batch, texts
from rmu_exp.unlearning.step import Activations, Following, Step


def all_texts(batch: Batch, role: str) -> list[list[int]]:
    """The token ids of each text of a role in a batch."""
    return [text for packed in batch.passes if role in packed.tokens for text in texts(packed, role)]


def token_nll(seen: Activations, role: str, wanted: Following) -> Tensor:
    """−log p of each following token, (M)."""
    return cross_entropy(seen.logits[role][wanted.rows_M], wanted.ids_M, reduction="none")


def nll(step: Step, seen: Activations, role: str) -> Tensor:
    """Mean −log p over the role's following tokens: a scalar."""
    return token_nll(seen, role, step.following(role)).mean()


def text_nll(seen: Activations, role: str, wanted: Following) -> tuple[Tensor, Tensor]:
    """−log p of each text, given its first token, and how many tokens that is: two of shape (texts)."""
    own = token_nll(seen, role, wanted)
    sums = torch.zeros(wanted.texts, dtype=own.dtype, device=own.device).index_add(0, wanted.text_M, own)
    counts = torch.zeros_like(sums, dtype=torch.long).index_add(0, wanted.text_M, torch.ones_like(wanted.text_M))
    return sums, counts.clamp(min=1)


def counted(step: Step, seen: Activations, role: str) -> Tensor:
    """The logits of a role's following tokens that count, (M, V)."""
    return seen.logits[role][step.following(role).rows_M]


def kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """KL(p‖q) of two models' logits, its mean over tokens: a scalar."""
    log_p, log_q = log_softmax(p_MV, -1), log_softmax(q_MV, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def retain_loss(kind: str, step: Step, seen: Activations, role: str) -> Tensor:
    """How far a role's texts have moved: ``nll``, their mean −log p; ``kl``, KL(frozen‖updated)."""
    if kind == "nll":
        return nll(step, seen, role)
    return kl(counted(step, step.frozen(role, logits=True), role), counted(step, seen, role))
