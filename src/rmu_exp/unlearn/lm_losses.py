"""What losses over next tokens need: which token follows which in packed rows, and how likely a model finds it.

It knows tokens and logits; it knows nothing of models.
Axes: N tokens of a role, M those whose successor counts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from rmu_exp.data.batches import Batch, starts, texts
from rmu_exp.unlearn.step import Activations, Step


@dataclass(frozen=True)
class Next:
    """The tokens of a role whose successor in the same text counts.

    Attributes:
        rows_M: which of the role's tokens.
        ids_M: what follows each.
        text_M: its text, counted from 0.
        texts: how many texts.
    """

    rows_M: Tensor
    ids_M: Tensor
    text_M: Tensor
    texts: int


def following(step: Step, role: str) -> Next:
    """The successors of a role's tokens in a step: in texts that hold the step's marker, those behind it."""
    (run,) = (run for run, _ in step.trunks if role in run.tokens)
    rows: list[int] = []
    at = 0
    for text in texts(run, role):  # a role's tokens stand text by text
        rows += range(at + max(behind(text, step.marker) - 1, 0), at + len(text) - 1)
        at += len(text)
    starts_N, rows_M = starts(run, role), torch.tensor(rows, dtype=torch.long, device=run.ids_RT.device)
    ids_N = run.ids_RT.flatten()[run.tokens[role]]
    return Next(rows_M, ids_N[rows_M + 1], (starts_N.cumsum(0) - 1)[rows_M], int(starts_N.sum()))


def behind(text: Sequence[int], marker: Sequence[int]) -> int:
    """Where the part of a text behind the last marker begins; 0 when it has none."""
    width = len(marker)
    for start in range(len(text) - width, -1, -1) if width else ():
        if list(text[start : start + width]) == list(marker):
            return start + width
    return 0


def all_texts(batch: Batch, role: str) -> list[list[int]]:
    """The token ids of each text of a role in a batch."""
    return [text for run in batch.passes if role in run.tokens for text in texts(run, role)]


def token_nll(seen: Activations, role: str, after: Next) -> Tensor:
    """−log p of each successor, (M)."""
    return cross_entropy(seen.logits[role][after.rows_M], after.ids_M, reduction="none")


def nll(step: Step, seen: Activations, role: str) -> Tensor:
    """Mean −log p over the role's successors: a scalar."""
    return token_nll(seen, role, following(step, role)).mean()


def text_nll(seen: Activations, role: str, after: Next) -> tuple[Tensor, Tensor]:
    """−log p of each text, given its first token, and how many tokens that is: two of shape (texts)."""
    own = token_nll(seen, role, after)
    sums = torch.zeros(after.texts, dtype=own.dtype, device=own.device).index_add(0, after.text_M, own)
    return sums, torch.bincount(after.text_M, minlength=after.texts).clamp(min=1)


def counted(step: Step, seen: Activations, role: str) -> Tensor:
    """The logits of a role's successors that count, (M, V)."""
    return seen.logits[role][following(step, role).rows_M]


def kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """KL(p‖q) of two models' logits, its mean over tokens: a scalar."""
    log_p, log_q = log_softmax(p_MV, -1), log_softmax(q_MV, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def retain_loss(kind: str, step: Step, seen: Activations, role: str) -> Tensor:
    """How far the retain texts have moved: ``nll``, their mean −log p; ``kl``, KL(frozen‖updated)."""
    if kind == "nll":
        return nll(step, seen, role)
    return kl(counted(step, step.frozen(logits=True), role), counted(step, seen, role))
