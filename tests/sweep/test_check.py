"""What is refused of a sweep before anything starts, in one line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from rmu_exp.cli import compose
from rmu_exp.support.errors import UserError
from rmu_exp.sweep import session
from rmu_exp.sweep.overrides import sweep_of

CONF = Path(__file__).parent.parent.parent / "conf"
SEARCH = "hydra/sweeper=rmu_optuna"


def check_sweep(*words: str) -> int:
    """What is checked of a sweep before it starts. Returns how many values it has, each counted once."""
    settings = compose.composed(words, CONF, multirun=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = [w for w in words if not OverridesParser.create().parse_override(w).is_sweep_override()]
        hydra = hydra_compose("train", overrides=plain, return_hydra_config=True).hydra
        session.check(hydra, sweep_of(words, hydra))
    return len(settings)


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        check_sweep(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["layer=range(5,3)"], r"layer: range\(5,3\) is empty; .*"),
        (["steer=interval(1,5)"], r"steer: interval\(1,5\) needs a search; add hydra/sweeper=rmu_optuna, .*"),
        ([SEARCH, "steer=interval(5,1)"], r"steer: interval\(5,1\) is empty; .*"),
        ([SEARCH, "steer=tag(log,interval(0,1))"], r"steer: .* starts at 0.*; a logarithmic range .*"),
        ([SEARCH, "steer=interval(-1,5)"], r"steer: got -1, .*"),
        ([SEARCH], r"hydra/sweeper: nothing to search; .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.sampler=x"], r"hydra.sweeper.sampler: got 'x', allowed is tpe, .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.n_trials=0"], r"hydra.sweeper.n_trials: got 0, .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.n_jobs=1.5"], r"hydra.sweeper.n_jobs: got 1.5, allowed is a whole .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.n_trials=null"], r"hydra.sweeper.n_trials: got None, allowed is .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.n_trials=x"], r"hydra.sweeper.n_trials: got 'x', allowed is a whole .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.objectives=[speed]"], r"hydra.sweeper.objectives: got 'speed', .*"),
        ([SEARCH, "layer=3,5", "hydra.sweeper.objectives=[forget,worst]", "hydra.sweeper.prune_on=9"], r".*worst.*"),
        (["layer=3,5", "hydra.sweeper.max_batch_size=0"], r"hydra.sweeper.max_batch_size: got 0, .*"),
        (["layer=3,5", "hydra/launcher=nope"], r"hydra/launcher: got 'nope', allowed is basic, .*"),
        (["layer=3,5", "hydra.launcher.n_job=2"], r".*n_job.*"),
        (["layer=3,99x"], r"layer: got '99x', .*"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_one_line(words, line):
    assert re.fullmatch(line, refused(*words))


@pytest.mark.parametrize(
    ("word", "missing", "extra"),
    [
        ("hydra/launcher=slurm", "hydra_plugins.hydra_submitit_launcher", "slurm"),
        ("hydra/launcher=ray", "ray", "ray"),
        (SEARCH, "optuna", "search"),
    ],
)
def test_an_extra_that_is_not_installed(word, missing, extra, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(session, "find_spec", lambda name: None if name == missing else real(name))
    assert f"pip install 'rmu_exp[{extra}]'" in refused(word, "layer=3,5")


def test_ranges_of_an_experiment_are_checked_too():
    assert check_sweep("experiment=steer_curve") == 7
    assert "steer: range(3,1) is empty" in refused("experiment=steer_curve", "hydra.sweeper.params.steer='range(3,1)'")


def test_a_good_search_passes():
    assert check_sweep(SEARCH, "layer=range(3,9)", "steer=tag(log,interval(0.5,30))") == 7
