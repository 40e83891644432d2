"""The worst attack that a search found: by hand, and a real search of lore."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import program
import pytest

from rmu_exp.evaluation.statistics import measured
from rmu_exp.record.results import AttackEntry, BeforeAfter, Results, RunInfo
from rmu_exp.report import objectives
from rmu_exp.sweep import worst_case
from rmu_exp.sweep.trials import Trial

RUN = RunInfo(kind="judge", model="m", unlearned="u", topics=["a"], seed=0)


def tried(name: str, chosen: int, scored: int, general: float, prob: float = 0.5, learned: bool = True) -> Trial:
    """An attack that gets so many of ten questions right: of those to choose by, and of those it is scored on."""

    def answers(right: int):
        return measured([0] * 10, [1] * right + [0] * (10 - right), [prob] * 10)

    entry = AttackEntry(
        chosen_by=answers(chosen), general=BeforeAfter(before=0.8, after=general), budget={"seconds": 2}
    )
    entry = entry.model_copy(
        update={"before": answers(1), "after": answers(scored)} if learned else {"inconclusive": "did not learn"}
    )
    results = Results(run=RUN, attacks={"relearn": entry})
    return Trial(name, Path(name), {}, "done", "", results)


def test_the_worst_is_chosen_on_some_facts_and_scored_on_others():
    trials = [
        tried("weak", 2, 9, 0.8),
        tried("breaks", 10, 10, 0.71),  # 0.71 / 0.8 < 0.9
        tried("idle", 10, 10, 0.8, learned=False),  # did not do what it was to do
        tried("strong", 7, 4, 0.72, prob=0.4),  # exactly 0.9
        tried("later", 5, 10, 0.8, prob=0.6),
    ]
    found = worst_case.find(trials, 0.9)
    assert (found.tried, found.within, found.chosen.name) == (5, 3, "strong")
    assert [(b.trials, b.seconds, b.trial.name) for b in found.paths["corrected"]] == [(1, 2, "weak"), (4, 8, "strong")]
    assert [b.trial.name for b in found.paths["probability"]] == ["weak", "later"]
    assert "corrected accuracy 10.0 % (1.8–40.4) → 40.0 % (16.8–68.7), n = 10** (strong, 90.0 % kept)" in " ".join(
        worst_case.sentences(found)
    )
    assert worst_case.figure(found) is not None
    axes = objectives.choose(list(objectives.ATTACKED), [t.results for t in trials])
    measured = {t.name: [m.value for axis in axes if (m := axis.of(t.results))] for t in trials}
    assert (measured["idle"], measured["strong"]) == ([], pytest.approx([0.7, 0.4])), "what a search is told"


def test_where_no_attack_keeps_the_bound_the_least_bad_is_shown():
    found = worst_case.find([tried("worse", 9, 9, 0.2), tried("bad", 3, 3, 0.4)], 0.9)
    assert found.chosen.name == "bad"
    first, second = worst_case.sentences(found)
    assert first.startswith("None of 2 attacks leaves 90.0 % of the general accuracy")
    assert second.startswith("The least bad is bad, which leaves 50.0 %")
    assert worst_case.figure(found) is None
    assert worst_case.find([tried("bad", 3, 3, 0.4)], 0.5).within == 1


def test_a_bound_is_said_to_be_kept_only_where_it_was_measured():
    trial = tried("strong", 7, 4, 0.8)
    trial.results.attacks["relearn"].general = None
    first, second = worst_case.sentences(worst_case.find([trial], 0.9))[:2]
    assert first == "1 of 1 attacks count: each did what it was to do."
    assert second.startswith("What they leave of the general accuracy was not measured")


def test_where_no_attack_did_what_it_was_to_do_the_reason_is_shown():
    found = worst_case.find([tried("idle", 2, 2, 0.2, learned=False)], 0.9)
    first, second = worst_case.sentences(found)
    assert first.startswith("None of 1 attacks leaves 90.0 % of the general accuracy")
    assert second == "idle shows nothing: did not learn; it leaves 25.0 %."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["attacks=[latent,relearn]"],
            "attacks: a search is for the worst of one attack, got latent, relearn; name one",
        ),
        (["unlearned=a,b"], "unlearned: a search is for the worst attack on one model; start one for each"),
    ],
)
def test_a_search_is_for_one_attack_on_one_model(unlearned, tmp_path, given, message):
    given = [f"unlearned={unlearned}", "attacks.relearn.lr=1e-4,2e-4", "attacker.general=0", *given]
    done = program.run("judge.py", "-m", "experiment=worst_case", *given, f"output={tmp_path / 'S'}")
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "S").exists()


@pytest.fixture(scope="module")
def unlearned(train, tmp_path_factory) -> Path:
    """A run of the tiny model."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = train("layer=2", "steer=6", "eval=none", f"output={folder}", multirun=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_search_ends_when_all_is_tried_and_resumes_without_repeating(unlearned, tmp_path):
    pytest.importorskip("optuna")
    words = ["experiment=worst_case", "attacker=ablation", f"unlearned={unlearned}", "attacker.general=4"]
    words += ["attacks.ablation.access=[with_base]", "attacks.ablation.layers=[layer],[span]", f"output={tmp_path}"]
    words += ["attacks.ablation.ways=[hooks]", "attacks.ablation.texts=4", "eval.limit=12"]

    def search(*more: str) -> subprocess.CompletedProcess[str]:
        return program.run("judge.py", "-m", *words, *more, RMU_EXP_CACHE=unlearned.parent / "cache")

    refused = search()
    assert (refused.returncode, "attacker.general: needs questions" in refused.stderr) == (2, True)
    words.append("data.questions.general=[lore_general]")
    first, second = search("attacker.trials=1"), search("attacker.trials=9")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    ran = [
        line
        for done in (first, second)
        for line in done.stderr.splitlines()
        if line.startswith("trial ") and ":" not in line
    ]
    assert len(ran) == len(set(ran)) == 2
    assert "search: all that the ranges hold was tried" in second.stderr
    written = json.loads((tmp_path / "worst_case.json").read_text())
    assert (written["bound"], written["trials"]) == (0.9, 2)
    assert (
        "attacks count" in (tmp_path / "report.md").read_text() or "None of 2" in (tmp_path / "report.md").read_text()
    )
    changed = {"attacks.ablation.layers=[layer],[upwards]": "of attacks.ablation.layers=[layer],[span]"}
    changed |= {
        "data.attacked=8": "data.attacked: None; now: 8",
        "attacks.ablation.texts=5": "attacks.ablation.texts: 4",
    }
    for word, why in changed.items():
        key = word.partition("=")[0]
        others = [w for w in words if not w.startswith(f"{key}=")]
        other = program.run("judge.py", "-m", *others, word, RMU_EXP_CACHE=unlearned.parent / "cache")
        assert other.returncode == 2
        assert f"{tmp_path} holds another search ({why}" in other.stderr
    report = (tmp_path / "report.md").read_bytes()
    (tmp_path / "report.md").unlink()
    assert program.run("src/rmu_exp/__main__.py", "sweep", tmp_path).returncode == 0
    assert (tmp_path / "report.md").read_bytes() == report
