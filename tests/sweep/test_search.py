"""A search by Optuna: real ones of a tiny model, and what a start makes of an earlier one's leavings."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

optuna = pytest.importorskip("optuna")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402

from rmu_exp.sweep.overrides import trial_name, trial_settings  # noqa: E402
from rmu_exp.sweep.search import AGAIN, WORKER, Search, rounded  # noqa: E402

RANGES = ["layer=range(1,4)", "steer=tag(log,interval(0.5,30))", "alpha=choice(5,10)", "seed=int(interval(0,9))"]


@pytest.fixture
def search(make_trial, tmp_path):
    """Makes a search whose trials take no time: accuracies are a formula of the settings; and a list of the trials."""

    def make(*words: str, launch=None, **more) -> tuple[Search, list[str]]:
        launched = []

        def pretend(jobs: list[list[str]], number: int) -> None:
            for job in jobs:
                launched.append(trial_name(job))
                settings = trial_settings(job)
                make_trial(settings, round(25 + 70 / (1 + settings["steer"])), round(99 - settings["steer"]))

        given = {"n_trials": 8, "n_jobs": 2, "sampler": "tpe", "seed": 0, "study": "s", "storage": None}
        given |= {"objectives": ["forget", "general"], "forget": [], "general": []}
        swept = OverridesParser.create().parse_overrides(list(words))
        return Search(tmp_path, swept, launch or pretend, given | more), launched

    return make


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_values_come_from_their_ranges(search, sampler):
    one, launched = search(*RANGES, sampler=sampler)
    one.run()
    assert len(launched) == len(set(launched)) == 8
    for name in launched:
        settings = dict(word.split("=") for word in name.split(","))
        assert settings["layer"] in {"1", "2", "3"}
        assert settings["alpha"] in {"5", "10"}
        assert re.fullmatch(r"\d", settings["seed"])
        assert 0.5 <= float(settings["steer"]) <= 30
        assert len(settings["steer"].replace(".", "").lstrip("0")) <= 4


def test_optuna_knows_each_trials_objectives(search, tmp_path):
    one, _ = search("steer=interval(1,40)")
    one.run()
    for trial in one.study.trials:
        qa = json.loads((tmp_path / trial.user_attrs["trial"] / "results.json").read_text())["qa"]
        assert trial.values == [qa[g]["unlearned"]["acc"] for g in ("lore_forget", "lore_general")]
    assert [d.name for d in one.study.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_goes_on_where_it_stopped_and_draws_other_numbers(search):
    starts = []
    for n_trials in (4, 8, 8):
        one, launched = search("steer=interval(1,40)", n_trials=n_trials)
        one.run()
        starts.append(launched)
    assert [len(launched) for launched in starts] == [4, 4, 0]
    assert not set(starts[0]) & set(starts[1])


def test_what_was_cut_off_is_asked_again_with_the_same_values(search):
    def breaks(*_) -> None:
        raise ConnectionError("the scheduler went away")

    cut, _ = search("steer=interval(1,40)", launch=breaks, n_trials=3)
    with pytest.raises(ConnectionError):
        cut.run()
    lost = [t.params for t in cut.study.trials]
    assert len(lost) == 2
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for trial in cut.study.trials:  # as if it had been a process that is no longer there
        host = trial.user_attrs[WORKER].split(":")[0]
        cut.study._storage.set_trial_user_attr(trial._trial_id, WORKER, f"{host}:{gone.stdout.strip()}")
    after, launched = search("steer=interval(1,40)", n_trials=3)
    after.run()
    done = [t for t in after.study.trials if t.state.name == "COMPLETE"]
    assert len(launched) == len(done) == 3
    assert [t.params for t in done if AGAIN in t.user_attrs] == lost


def test_numbers_of_four_digits_stay_inside():
    assert rounded(3.14159, 1, 10) == 3.142
    assert rounded(9.99999, 1, 9.99995) == 9.99995
    assert rounded(0.00012345, 0, 1) == 0.0001234


def test_two_processes_share_a_search_and_give_up_what_is_beaten(start, make_trial, tmp_path):
    """Real trials beside one made up that beats them all; the two together run what was asked for, each trial once."""
    make_trial({"layer": 0, "steer": 0}, forget=0, general=100)
    more = ["hydra/sweeper=rmu_optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.prune_on=3", "layer=range(1,4)"]
    started = [start("-m", *more, "steer=interval(1,20)", f"output={tmp_path}") for _ in range(2)]
    told = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    ran = re.findall(r"^trial (\S+)$", "\n".join(told), re.M)
    assert len(ran) == len(set(ran)) == 3
    study = optuna.load_study(study_name="rmu_exp", storage=f"sqlite:///{tmp_path}/study.db")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    for name in ran:
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert "qa" not in results
        assert results["pruned"]["because"] == "on 3 questions per task clearly beaten by layer=0,steer=0"
        assert results["pruned"]["qa"]["lore_forget"]["unlearned"]["n"] == 6  # two tasks
    assert "4 trials: 1 done, 3 given up; chosen: layer=0,steer=0" in (tmp_path / "report.md").read_text()
