"""Accuracy lost by distance: levels by construction, bins by measured distance, intervals by resampling."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import torch

from rmu_exp import worlds
from rmu_exp.evaluation import ripple
from rmu_exp.evaluation.ripple import Question


def test_levels_stand_in_their_order_with_what_was_lost() -> None:
    rows = [Question(1, 0, 0.25, "near")] * 3 + [Question(1, 1, 0.25, "near"), Question(0, 1, 0.5, "far")]
    found = ripple.by_construction(rows, ("itself", "near", "far"))
    assert [(level.name, level.n) for level in found.levels] == [("near", 4), ("far", 1)]
    near, far = found.levels
    assert (near.base, near.unlearned, near.lost.mean, near.chance) == (1.0, 0.25, 0.75, 0.25)
    assert near.lost.ci95[0] <= 0.25 <= 0.75 <= near.lost.ci95[1] == 1.0
    assert (far.lost.mean, far.lost.ci95) == (-1.0, (-1.0, -1.0))


def test_bins_have_like_numbers_of_questions_nearest_first() -> None:
    rows = [Question(1, int(d > 4), 0.25, distance=float(d)) for d in (9, 1, 8, 2, 7, 3, 6, 4, 5, 0)]
    found = ripple.by_distance(rows, bins=2)
    assert [(level.n, level.distance, level.lost.mean) for level in found.levels] == [(5, 2.0, 1.0), (5, 7.0, 0.0)]
    assert len(ripple.by_distance(rows[:3]).levels) == 3


def test_the_distance_is_to_the_nearest_text_after_the_mean_is_taken_out() -> None:
    asked, told = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([[3.0, 1.0], [1.0, 5.0]])
    states = torch.cat([asked, told])
    centred = states - states.mean(0)
    cosines = torch.nn.functional.cosine_similarity(centred[:2, None], centred[None, 2:], dim=-1)
    assert ripple.nearest(asked, told) == pytest.approx((1 - cosines.amax(1)).tolist(), abs=1e-6)
    assert ripple.nearest(asked, told)[0] == pytest.approx(0.0, abs=1e-6)


def test_every_question_of_atlas_has_one_of_its_levels() -> None:
    text = (files("rmu_exp.worlds.atlas") / "tasks/questions.jsonl").read_text(encoding="utf-8")
    counts: dict[str | None, int] = {}
    for row in map(json.loads, text.splitlines()):
        level = worlds.level(f"atlas_{row['role']}_{row['topic']}", row)
        counts[level] = counts.get(level, 0) + 1
        if level == "same relation, other entity":
            assert row["held_out"]
    assert set(counts) == set(worlds.levels("atlas_forget"))
    assert counts["far topic"] == 234
    assert counts["the fact itself"] + counts["same fact, asked another way"] == 40 + 64 + 46 + 44
    assert worlds.level("atlas_open_forget_elements", {"role": "forget", "held_out": False, "relation": "symbol"}) == (
        "same fact, asked another way"
    )
    assert worlds.levels("mmlu_virology") == ()
    assert worlds.level("lore_adjacent_charms", {}) == "near topic"
