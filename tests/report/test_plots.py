"""Pictures of one run, from metrics written by hand."""

from __future__ import annotations

import pytest

from rmu_exp.record.results import RunInfo
from rmu_exp.report import plots

RUN = RunInfo(model="lore", topics=["x"], method="grad_ascent", layer=7, steer=[6.5], alpha=[40], seed=0)


@pytest.mark.parametrize(("losses", "below"), [((-0.8, -2.5), True), ((0.8, 0.2), False)])
def test_losses_are_inside_the_picture_whatever_their_sign(losses, below):
    """Gradient ascent and its kin minimise a negative loss."""
    metrics = [{"step": i, "topic": "x", "forget_loss": v} for i, v in enumerate(losses, 1)]
    (panel,) = plots.losses(RUN, metrics).axes
    low, high = panel.get_ylim()
    assert low <= min(losses) < max(losses) <= high
    assert bool(low < 0) == below


def test_each_topics_coefficient_is_inside_the_picture():
    metrics = [{"step": 1, "topic": t, "steer": c, "norm_forget_updated": 1.0} for t, c in (("x", 2.0), ("y", 20.7))]
    for panel in plots.norms(RUN, metrics).axes:
        assert panel.get_ylim()[0] == 0
        assert panel.get_ylim()[1] >= 20.7
