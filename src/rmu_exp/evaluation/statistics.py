"""Statistics over questions answered correctly or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from rmu_exp.record.results import Accuracy, Corrected, McNemar, QaRow

AT_ONCE = 1_000_000  # values that a bootstrap draws at a time


def summary(correct: Sequence[int]) -> Accuracy:
    """Accuracy over questions of equal weight: 1 or 0 for each.

    Its standard error is the sample deviation / √n, its 95 % interval Wilson's.
    """
    n, k = len(correct), sum(correct)
    acc = k / n
    stderr = (acc * (1 - acc) / (n - 1)) ** 0.5 if n > 1 else 0.0
    return Accuracy(acc=acc, stderr=stderr, ci95=wilson(k, n), n=n)


def measured(
    correct: Sequence[int], corrected: Sequence[int] = (), prob: Sequence[float] = (), among: Sequence[float] = ()
) -> Accuracy:
    """The accuracy over questions, plain and without answer bias, and the mean probabilities of the right option.

    Args:
        correct, corrected: 1 or 0 for each question.
        prob, among: probability of the right option after the prompt, and among the options.
            What is empty was not measured.
    """
    found = summary(correct)
    if corrected:
        unbiased = summary(corrected)
        found.corrected = Corrected(acc=unbiased.acc, ci95=unbiased.ci95)
    if prob:
        found.prob, found.prob_ci95 = mean(prob), bootstrap(prob)
    if among:
        found.choice_prob, found.choice_prob_ci95 = mean(among), bootstrap(among)
    return found


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean: percentiles of the means of samples drawn with replacement; the same each time."""
    sample, n, rng = np.asarray(values), len(values), np.random.default_rng(0)
    rows = max(1, AT_ONCE // n)
    sizes = [min(rows, draws - at) for at in range(0, draws, rows)]
    means = np.concatenate([sample[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of ``correct`` out of ``n``."""
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(before: Sequence[int], after: Sequence[int]) -> McNemar:
    """Exact McNemar test of the same questions answered twice (two-sided)."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    p = binomtest(min(lost, gained), lost + gained).pvalue if lost + gained else 1.0
    return McNemar(lost=lost, gained=gained, p=float(p))


def against_chance(correct: Sequence[int], chance: float) -> float:
    """Two-sided exact binomial p-value that the accuracy is ``chance``."""
    return float(binomtest(sum(correct), len(correct), chance).pvalue)


def row(base: Sequence[int], unlearned: Sequence[int], chance: float, blind: float | None = None) -> QaRow:
    """A task's or a group's row of results.json, from the results of the same questions before and after."""
    return QaRow(
        base=summary(base),
        unlearned=summary(unlearned),
        mcnemar=mcnemar(base, unlearned),
        p_chance=against_chance(unlearned, max(chance, blind or 0.0)),
        chance=chance,
        blind=blind,
    )
