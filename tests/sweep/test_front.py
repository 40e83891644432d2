"""The front and its hypervolume against slow, obvious versions; the rule by cases."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_rows import attack, results, row

from rmu_exp.report import objectives
from rmu_exp.sweep import front, plots, trials

GRID = 8
POINTS = st.integers(2, 3).flatmap(
    lambda d: st.lists(st.tuples(*[st.integers(0, GRID).map(lambda i: i / GRID)] * d), min_size=1, max_size=9)
)


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_hypervolume_is_the_share_of_cells_that_a_point_dominates(points):
    cells = itertools.product(*[[(i + 0.5) / GRID for i in range(GRID)]] * len(points[0]))
    below = sum(any(all(x < c for x, c in zip(p, cell, strict=True)) for p in points) for cell in cells)
    volume = front.hypervolume(points, (1.0,) * len(points[0]))
    assert volume == pytest.approx(below / GRID ** len(points[0]))


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_the_front_dominates_all_that_the_points_do(points):
    kept = [points[i] for i in front.front(points)]
    reference = (1.5,) * len(points[0])
    assert front.hypervolume(kept, reference) == pytest.approx(front.hypervolume(points, reference))
    for a, b in itertools.permutations(kept, 2):
        assert not (a != b and all(x <= y for x, y in zip(a, b, strict=True)))
    for p in set(points) - set(kept):
        assert any(all(x <= y for x, y in zip(q, p, strict=True)) for q in kept)


def chosen(tmp_path, names=("forget", "general")):
    listed = trials.read(tmp_path)
    picked = objectives.choose(names, [t.results for t in listed])
    best = front.chosen(listed, picked)
    return best.name if best else None


def test_chosen_forgets_most_of_those_that_keep_the_rest(make_trial, tmp_path):
    make_trial({"steer": 1}, forget=60, general=100)
    make_trial({"steer": 2}, forget=30, general=97)
    make_trial({"steer": 3}, forget=26, general=90)
    assert chosen(tmp_path) == "steer=2"


def test_below_chance_is_no_better_than_chance(make_trial, tmp_path):
    make_trial({"steer": 1}, forget=10, general=98)
    make_trial({"steer": 2}, forget=25, general=99)
    assert chosen(tmp_path) == "steer=2"


def test_when_none_keeps_the_rest_the_one_that_lost_least(make_trial, tmp_path):
    make_trial({"steer": 1}, forget=26, general=50)
    make_trial({"steer": 2}, forget=60, general=80)
    assert chosen(tmp_path) == "steer=2"


def test_the_worst_attack_decides_when_asked_for(make_trial, tmp_path):
    held = {"attacks": {"relearn": attack(0.3, 0.4)}}
    fell = {"attacks": {"a": attack(0.26, 0.3), "b": attack(0.26, 0.9)}}
    make_trial({"steer": 1}, forget=30, general=99, **held)
    make_trial({"steer": 2}, forget=26, general=99, **fell)
    assert chosen(tmp_path) == "steer=2"
    assert chosen(tmp_path, ("forget", "general", "worst")) == "steer=1"
    listed = trials.read(tmp_path)
    (worst,) = objectives.choose(["worst"], [t.results for t in listed])
    assert [worst.of(t.results).value for t in listed] == [0.4, 0.9]


def test_wmdp_pools_bio_and_cyber_and_leaves_chem():
    qa = {"wmdp": {"tasks": ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]} | row(70, 140)}
    qa |= {"wmdp_bio": row(20, 60), "wmdp_cyber": row(10, 40), "wmdp_chem": row(40, 40), "mmlu": row(57, 100)}
    forget, general = objectives.choose(["forget", "general"], [results(qa=qa)])
    assert forget.tasks == ("wmdp_bio", "wmdp_cyber")
    assert forget.of(results(qa=qa)).value == pytest.approx(30 / 100)
    assert general.of(results(qa=qa)).value == pytest.approx(0.57)


def test_the_base_model_has_no_place_where_only_attacks_are_measured():
    """Attacks are made on the unlearned model; the base model's square stood at its accuracy."""
    run = results(qa={"lore_general": {"tasks": []} | row(90, 100)}, attacks={"a": attack(0.3, 0.5)})
    general, worst = objectives.choose(["general", "worst"], [run])
    assert worst.of(run).value == 0.5
    assert worst.of(run, "base") is None
    trial = trials.Trial("t", None, {}, "done", "", run)
    (drawn,) = plots.front([trial], general, worst, [trial], None).axes
    assert "base model" not in [text.get_text() for text in drawn.get_legend().get_texts()]
