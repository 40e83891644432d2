"""Accuracy lost against distance from what was forgotten: do losses stay near, or spread?

The distance of a question is a level that its world knows by construction, or is measured: one minus the largest cosine
between the base model's own hidden states of the question with its answer and of a forget text. Both are means over
tokens at the middle layer, less the mean over all of them, because the states of all texts point the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmu_exp.evaluation import statistics
from rmu_exp.evaluation.scoring import Ids, Scorer
from rmu_exp.record.results import Rate, Ripple, RippleLevel

BINS = 5


@dataclass(frozen=True)
class Question:
    """One question: whether base and unlearned model were right, chance, and its level or its distance."""

    base: int
    unlearned: int
    chance: float
    level: str = ""
    distance: float = 0.0


def by_construction(questions: Sequence[Question], levels: Sequence[str]) -> Ripple:
    """The levels that have questions, in the order of ``levels``, nearest first."""
    groups = [(name, [q for q in questions if q.level == name]) for name in levels]
    return Ripple(by="construction", levels=[_level(name, group, None) for name, group in groups if group])


def by_distance(questions: Sequence[Question], bins: int = BINS) -> Ripple:
    """Bins of like numbers of questions by distance, nearest first."""
    ordered = sorted(questions, key=lambda q: q.distance)
    cuts = np.linspace(0, len(ordered), min(bins, len(ordered)) + 1).round().astype(int)
    groups = [ordered[a:b] for a, b in itertools.pairwise(cuts)]
    named = [(f"{group[0].distance:.2f} to {group[-1].distance:.2f}", group) for group in groups]
    levels = [_level(name, group, float(np.mean([q.distance for q in group]))) for name, group in named]
    return Ripple(by="hidden states", levels=levels)


def _level(name: str, group: Sequence[Question], distance: float | None) -> RippleLevel:
    lost = [float(q.base - q.unlearned) for q in group]
    return RippleLevel(
        name=name,
        n=len(group),
        base=float(np.mean([q.base for q in group])),
        unlearned=float(np.mean([q.unlearned for q in group])),
        lost=Rate(mean=statistics.mean(lost), ci95=statistics.bootstrap(lost)),
        chance=float(np.mean([q.chance for q in group])),
        distance=distance,
    )


def distances(
    model: nn.Module, tokenizer: Any, questions: Sequence[str], texts: Sequence[str], length: int
) -> list[float]:
    """The distance of each question, with its answer, from the nearest of the texts, by the base's hidden states."""
    scorer = Scorer(tokenizer, next(model.parameters()).device)
    rows: list[Ids] = [scorer.encode(text)[:length] for text in (*questions, *texts)]

    def kept(h_BTD: Tensor, real_BT: Tensor) -> Tensor:
        real_BT1 = real_BT[..., None].to(h_BTD.dtype)
        return (h_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1)

    found, order = scorer.activations(model, rows, kept)
    (all_LND,) = found.values()
    states_ND = all_LND[len(all_LND) // 2][torch.tensor(order).argsort()]
    return nearest(states_ND[: len(questions)], states_ND[len(questions) :])


def nearest(questions_QD: Tensor, texts_ND: Tensor) -> list[float]:
    """One minus the largest cosine of each question to a text, after the mean of all is taken out."""
    centre_D = torch.cat([questions_QD, texts_ND]).mean(dim=0)
    questions_QD, texts_ND = (nn.functional.normalize(h - centre_D, dim=-1) for h in (questions_QD, texts_ND))
    return [float(value) for value in 1 - (questions_QD @ texts_ND.T).max(dim=1).values]
