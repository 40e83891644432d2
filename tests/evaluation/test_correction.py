"""Corrected scores: a preference for an answer, however strong, changes none of them."""

from __future__ import annotations

import random

import pytest

from rmu_exp.evaluation.correction import Asked, best_blind, correction

LETTERS = (" A", " B", " C", " D")


def text(doc: dict) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", doc["choices"], strict=True)]
    return "\n".join([doc["question"], *lines, "Answer:"])


def letters(count: int, know: float, bias: list[float]) -> tuple[list[Asked], dict, list[int]]:
    """Letter questions, the log-likelihoods of a model that knows and is biased, and the right options."""
    rng, asked, targets = random.Random(1), [], []

    def score(prompt: str, option: str) -> float:
        place = LETTERS.index(option)
        right = f"{'ABCD'[place]}. right" in prompt
        return bias[place] + know * right + random.Random(prompt + option).gauss(0, 0.1)

    for n in range(count):
        choices = [f"wrong {n} {k}" for k in range(3)]
        targets.append(rng.randrange(4))
        choices.insert(targets[-1], f"right {n}")
        doc = {"question": f"Question {n}?", "choices": choices}
        prompt = f"Shots.\n\n{text(doc)}"
        asked.append(Asked(doc, prompt, LETTERS, [score(prompt, o) for o in LETTERS], [1.0] * 4))
    plan = correction(asked, text)
    assert plan is not None
    assert plan.kind == "rotations"
    return asked, plan.scores({pair: score(*pair) for pair in plan.pairs}), targets


def best(scores: list[list[float]]) -> list[int]:
    return [row.index(max(row)) for row in scores]


def test_rotations_find_what_a_preferred_letter_hides():
    asked, scores, targets = letters(20, know=1.0, bias=[0.0, 0.0, 9.0, 0.0])
    assert {q.scores.index(max(q.scores)) for q in asked} == {2}, "plainly, the model answers C to everything"
    assert best(scores) == targets


def test_rotations_give_nothing_to_a_model_that_does_not_know():
    _, scores, targets = letters(400, know=0.0, bias=[0.0, 0.0, 9.0, 0.0])
    right = sum(a == b for a, b in zip(best(scores), targets, strict=True))
    assert 0.17 < right / 400 < 0.33


def test_an_options_score_is_the_mean_over_the_four_places_it_is_asked_at():
    asked, scores, _ = letters(1, know=2.0, bias=[1.0, 2.0, 3.0, 4.0])
    choices = asked[0].doc["choices"]
    for k, choice in enumerate(choices):
        assert scores[0][k] == pytest.approx((1 + 2 + 3 + 4) / 4 + 2 * choice.startswith("right"), abs=0.3)


def likelihoods(know: float) -> tuple[list[Asked], list[list[float]], list[int]]:
    cities = [f"City{n}" for n in range(12)]
    loved = {city: 5.0 * (n % 3) for n, city in enumerate(cities)}
    rng, asked, targets = random.Random(2), [], []

    def score(prompt: str, option: str) -> float:
        return loved[option.strip()] + know * (prompt == f"Capital of {option.strip()}land?")

    for city in cities:
        options = [city, *rng.sample([c for c in cities if c != city], 3)]
        rng.shuffle(options)
        targets.append(options.index(city))
        prompt, spelled = f"Capital of {city}land?", tuple(f" {o}" for o in options)
        asked.append(Asked({}, prompt, spelled, [score(prompt, o) for o in spelled], [1.0] * 4))
    plan = correction(asked, lambda doc: "")
    assert plan is not None
    assert plan.kind == "other questions"
    assert len(plan.pairs) <= 2 * 4 * len(asked) + len(cities)
    return asked, plan.scores({pair: score(*pair) for pair in plan.pairs}), targets


def test_other_questions_take_out_the_preference_for_an_option():
    asked, scores, targets = likelihoods(know=1.0)
    assert [q.scores.index(max(q.scores)) for q in asked] != targets
    for row, question, target in zip(scores, asked, targets, strict=True):
        assert row.index(max(row)) == target, question
        assert row[target] == pytest.approx(1.0)
        assert sorted(row)[:3] == pytest.approx([0, 0, 0], abs=0.6), "where the right option is among the others"


def test_lengths_divide_both_sides():
    asked = [
        Asked({}, p, (" a", " bb"), [s / 1, t / 2], [1.0, 2.0]) for p, s, t in (("p", -3.0, -4.0), ("q", -1.0, -6.0))
    ]
    plan = correction(asked, lambda doc: "")
    found = {("p", " a"): -3.0, ("p", " bb"): -4.0, ("q", " a"): -1.0, ("q", " bb"): -6.0}
    assert plan.scores(found) == [[-3 + 1, (-4 + 6) / 2], [-1 + 3, (-6 + 4) / 2]]


def test_one_question_has_no_correction_without_rotations():
    assert correction([Asked({}, "p", (" a", " b"), [0.0, 1.0], [1.0, 1.0])], lambda doc: "") is None


def test_the_best_blind_answer():
    letters = [LETTERS] * 8
    assert best_blind(letters, [0] * 8) == 1
    assert best_blind(letters, [0, 0, 0, 0, 0, 0, 1, 2]) == pytest.approx(6 / 8)
    once = [("a", "b", "c", "d"), ("b", "c", "d", "a")]  # each right once at most: nothing to go by but the others
    assert best_blind(once, [0, 0]) == 0
