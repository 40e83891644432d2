"""Statistics against values from the textbook formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rmu_exp.evaluation import harness, statistics


def test_wilson_interval_and_standard_error_by_hand():
    got = statistics.summary([1] * 30 + [0] * 70)
    n, p, z = 100, 0.3, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert got.acc == 0.3
    assert got.n == 100
    assert got.ci95 == pytest.approx([middle - half, middle + half], abs=1e-12)
    assert got.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_perfect_score_has_a_proper_interval():
    low, high = statistics.summary([1] * 50).ci95
    assert 0.9 < low < 1
    assert high == pytest.approx(1)


def test_mcnemar_counts_and_exact_p():
    before = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    after = [0, 0, 0, 0, 0, 1, 1, 0, 1, 0]
    got = statistics.mcnemar(before, after)
    assert (got.lost, got.gained) == (5, 1)
    assert got.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert statistics.mcnemar([1, 0], [1, 0]).p == 1


def test_against_chance():
    assert statistics.against_chance([1] * 25 + [0] * 75, 0.25) == pytest.approx(1)
    assert statistics.against_chance([1] * 60 + [0] * 40, 0.25) < 1e-10


def test_groups_pool_their_tasks_questions():
    base = harness.Answers(
        correct={"a": [1, 1], "b": [1, 0, 0, 0]},
        chance={"a": 0.25, "b": 0.5},
        blind={"a": 0.5, "b": 0.5},
        groups={"g": ["a", "b"]},
    )
    after = harness.Answers(correct={"a": [0, 1], "b": [1, 0, 0, 1]}, chance=base.chance, groups=base.groups)
    table = harness.compare(base, after)
    assert table["g"].base.acc == pytest.approx(3 / 6)
    assert table["g"].unlearned.n == 6
    assert table["g"].chance == pytest.approx((2 * 0.25 + 4 * 0.5) / 6)
    assert table["g"].blind == 0.5
    assert table["g"].p_chance == pytest.approx(1), "three of six are what the better blind answer gives"
    assert table["g"].mcnemar.lost == 1
    assert table["g"].mcnemar.gained == 1


@pytest.mark.parametrize("n", [1, 7, 234, 1500])
def test_a_bootstrap_drawn_at_once_is_one_drawn_sample_by_sample(n):
    values = np.random.default_rng(n).random(n)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(2000)]
    assert statistics.bootstrap(values.tolist()) == tuple(np.percentile(means, (2.5, 97.5)))
