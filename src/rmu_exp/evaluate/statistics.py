"""Statistics over questions answered right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest


def summary(correct: Sequence[int]) -> dict[str, Any]:
    """Accuracy of questions of equal weight.

    Args:
        correct: 1 or 0 for each question.

    Returns:
        ``acc``, its standard error ``stderr`` (sample deviation / √n), the 95 % Wilson interval ``ci95``, ``n``.
    """
    n, k = len(correct), sum(correct)
    acc = k / n
    stderr = (acc * (1 - acc) / (n - 1)) ** 0.5 if n > 1 else 0.0
    return {"acc": acc, "stderr": stderr, "ci95": wilson(k, n), "n": n}


def wilson(right: int, n: int, confidence: float = 0.95) -> list[float]:
    """Wilson's interval of ``right`` out of ``n``."""
    interval = binomtest(right, n).proportion_ci(confidence, method="wilson")
    return [float(interval.low), float(interval.high)]


def mcnemar(before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """Exact McNemar test of the same questions answered twice (two-sided).

    Returns:
        ``lost`` (right before, wrong after), ``gained`` (the reverse) and ``p``.
    """
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    p = binomtest(min(lost, gained), lost + gained).pvalue if lost + gained else 1.0
    return {"lost": lost, "gained": gained, "p": float(p)}


def against_chance(correct: Sequence[int], chance: float) -> float:
    """Two-sided exact binomial p-value that the accuracy is ``chance``."""
    return float(binomtest(sum(correct), len(correct), chance).pvalue)
