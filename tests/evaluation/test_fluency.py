"""Rates over outputs, against values worked out by hand."""

from __future__ import annotations

import pytest

from rmu_exp.evaluation import fluency
from rmu_exp.evaluation.generate import Written


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [([], 0), ([1], 0), ([1, 2, 3], 0), ([1, 2, 3, 1, 2], 2), ([7, 7, 7, 7], 3), ([1, 2, 3, 9, 1, 2, 3, 9, 2, 3], 4)],
)
def test_the_longest_repeat(ids, wanted):
    grams = {n: [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for n in range(1, len(ids) + 1)}
    obvious = max((n for n, found in grams.items() if len(set(found)) < len(found)), default=0)
    assert fluency.longest_repeat(ids) == obvious == wanted


def test_distinct_ngrams():
    assert fluency.distinct([1, 1, 1, 1], 1) == 1 / 4
    assert fluency.distinct([1, 2, 1, 2], 2) == 2 / 3
    assert fluency.distinct([1], 2) == 1.0


@pytest.mark.parametrize(
    ("text", "right", "wanted"),
    [
        (" Hg. It is", ["Hg"], True),
        (" the Netherlands,", ["Netherlands"], True),
        ("Hgx", ["Hg"], False),
        ("It is Hg", ["Hg"], False),
        ("U.S.A. of course", ["United States", "U S A"], True),
        ("", ["Hg"], False),
    ],
)
def test_what_begins_with_a_right_answer(text, right, wanted):
    assert fluency.matches(text, right) is wanted


def test_refusals():
    assert fluency.refuses("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but\nI cannot")
    assert fluency.refuses("Well, as an AI language model")
    assert not fluency.refuses("It is known for its nickel.")


def test_rates():
    texts = (([1, 2], " Hg."), ([0], ""), ([5, 5, 5], "I cannot say"), ([9], "x"))
    written = [Written(ids, text, 0.0) for ids, text in texts]
    found = fluency.rates(written, [1.0, 2.0, 3.0, 6.0], [["Hg"], ["Hg"], [], ["y", "X"]])
    assert (found.n, found.empty.mean, found.refusal.mean, found.nll) == (4, 1 / 4, 1 / 4, 3.0)
    assert found.match is not None
    assert found.match.mean == pytest.approx(2 / 3)
    assert found.match.ci95 == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson's, two of three
    assert found.repeat == 2 / 4
    assert found.distinct == {"1": (1 + 1 + 1 / 3 + 1) / 4, "2": (1 + 1 + 1 / 2 + 1) / 4, "3": 1.0}
    assert fluency.rates(written, [1.0] * 4, [[]] * 4).match is None
