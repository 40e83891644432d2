"""A row of results.json's ``qa``, made up from counts."""

from __future__ import annotations

from rmu_exp.judge import stats


def row(right: int, n: int, base: int | None = None) -> dict:
    """``right`` of ``n`` questions after unlearning, ``base`` (or all) before."""
    base = n if base is None else base
    return {
        "base": stats.summary([1] * base + [0] * (n - base)),
        "unlearned": stats.summary([1] * right + [0] * (n - right)),
        "chance": 0.25,
    }
