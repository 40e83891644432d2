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


@pytest.mark.parametrize(
    "accuracies",
    [
        pytest.param({1: (60, 100), 2: (30, 97), 3: (26, 90)}, id="the most is forgotten by those that keep the rest"),
        pytest.param({1: (10, 98), 2: (25, 99)}, id="below chance is no better than chance"),
        pytest.param({1: (26, 50), 2: (60, 80)}, id="if none keeps the rest, the one that lost least"),
    ],
)
def test_the_second_is_chosen(accuracies, make_trial, tmp_path):
    for steer, (forget, general) in accuracies.items():
        make_trial({"steer": steer}, forget, general)
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


def test_the_worst_case_has_an_interval_for_the_greatest_of_all_attacks():
    """Wilson's at 1 - 0.05/k: of k attacks, the one that is by chance too high is the one that is shown."""
    entries = {"a": attack(0.3, 0.4), "b": attack(0.3, 0.5), "c": attack(0.3, 0.2)}
    found = {k: results(attacks=dict(list(entries.items())[:k])) for k in (1, 2, 3)}
    (axis,) = objectives.choose(["worst"], list(found.values()))
    for k, z in ((1, 1.959964), (2, 2.2414027), (3, 2.3939798)):
        p = 0.4 if k == 1 else 0.5
        centre = (p + z**2 / 200) / (1 + z**2 / 100)
        half = z * (p * (1 - p) / 100 + z**2 / 40000) ** 0.5 / (1 + z**2 / 100)
        measured = axis.of(found[k])
        assert (measured.value, measured.low, measured.high) == pytest.approx((p, centre - half, centre + half))


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
    assert "base model" not in [text.get_text() for text in drawn.figure.legends[0].get_texts()]


def test_a_map_of_many_values_where_one_axis_has_none():
    """Trials that were never attacked, asked for the worst attack too: the report came to no end."""
    runs = [results(qa={"lore_general": {"tasks": []} | row(90, 100)}) for _ in range(10)]
    listed = [trials.Trial(f"{i}", None, {"layer": i, "steer": 2 * i}, "done", "", r) for i, r in enumerate(runs)]
    drawn = plots.maps(listed, objectives.choose(["general", "worst"], runs), "layer", "steer")
    assert [len(axes.collections) for axes in drawn.axes[:2]] == [1, 0]
