"""Pictures of one run, from metrics written by hand."""

from __future__ import annotations

import pytest
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text

from rmu_exp.record.results import RunInfo
from rmu_exp.report import plots, style

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


def test_letters_that_no_font_has_are_one_line_and_no_warning(tmp_path, caplog, recwarn):
    figure = style.figure_of(3, 2, "forget topic: 生物, кибер")
    figure.subplots().set_yticks([0], ["生"])
    style.write(figure, tmp_path / "a.png")
    assert not [w for w in recwarn if "missing from font" in str(w.message)]
    drawn = [text for text in figure.findobj(Text) if "生" in text.get_text()]
    assert len(drawn) >= 2
    said = [line for line in caplog.messages if "no installed font has" in line]
    font = style._font_with(frozenset(map(ord, "生物")))
    assert all((font in text.get_fontfamily()) if font else said for text in drawn)


def test_a_font_that_has_the_letters_is_found():
    font = style._font_with(frozenset(map(ord, "∮ж")))
    assert set(map(ord, "∮ж")) <= get_font(fontManager.findfont(font)).get_charmap().keys()
