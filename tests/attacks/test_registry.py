"""Choosing attacks: what is refused, and that a new one is a module and a YAML and nothing else."""

from __future__ import annotations

import shutil

import pytest
from composing import CONF, composed

import rmu_exp.attacks
from rmu_exp.attacks import runner
from rmu_exp.attacks.api import Finding, Outcome
from rmu_exp.config import parse, plugins, reference
from rmu_exp.evaluation.scoring import Answered
from rmu_exp.record.results import BeforeAfter, Results, RunInfo
from rmu_exp.support.errors import UserError

EMPTY = Results(run=RunInfo(model="m", topics=["a"], seed=0, method="rmu", layer=1))
MODULE = """
from dataclasses import dataclass
from rmu_exp.attacks.api import Finding, Outcome
from rmu_exp.evaluation.scoring import Answered
from rmu_exp.support.setting import setting

@dataclass
class Settings:
    \"\"\"Counts.\"\"\"
    steps: int = setting(least=1)
    \"\"\"How far it counts.\"\"\"

def run(context, settings):
    before, after, control = (Outcome(scored=Answered(r)) for r in ([0, 0], [1] * settings.steps, [0, 1]))
    return Finding(before, after, {"oracle": control}, {"steps": settings.steps})
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """The configuration with an attack more: ``counting``."""
    folder, modules = tmp_path / "conf", tmp_path / "modules"
    shutil.copytree(CONF, folder)
    (folder / "attacks" / "counting.yaml").write_text("# Counts to a number that you choose.\ncounting:\n  steps: 2\n")
    modules.mkdir()
    (modules / "counting.py").write_text(MODULE)
    monkeypatch.setattr(rmu_exp.attacks, "__path__", [*rmu_exp.attacks.__path__, str(modules)])
    return folder


def test_a_new_attack_is_a_module_and_a_yaml(conf, monkeypatch, context):
    run = composed("attacks=[counting]", "attacks.counting.steps=3", conf=conf)
    assert run.attacks == {"counting": {"steps": 3}}
    page = reference.page(conf, "train", "attacks")
    assert "attacks=counting" in page
    assert "How far it counts." in page
    with pytest.raises(UserError, match=r"attacks.counting.steps: got 0"):
        composed("attacks=[counting]", "attacks.counting.steps=0", conf=conf)
    (results,) = runner.run_attacks(context, {"counting": {"steps": 2}}, EMPTY)
    assert results.attacks["counting"].forget_acc == BeforeAfter(before=0, after=1)
    assert results.attacks["counting"].controls["oracle"].acc == 0.5


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["attacks=[probe]", "attacks.probe.folds=0"], "attacks.probe.folds: got 0"),
        (["attacks=[probe]", "attacks.probe.strengths=[]"], "empty list"),
        (["attacks=[probe]", "+attacks.probe.foldz=1"], "did you mean attacks.probe.folds"),
        (["attacks=[probe]", "attacks.probe.folds=x"], "attacks.probe.folds: got 'x', allowed is a whole number"),
        (["attacks=[relearn]", "attacks.relearn.how=much"], "allowed is full, lora"),
        (["attacks=[quantise]", "attacks.quantise.bits=[4,-1]"], "attacks.quantise.bits: got -1"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_choices_are_one_line(words, named):
    with pytest.raises(UserError, match=named) as caught:
        composed(*words)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("attacks.probe.folds", "attacks.probe.folds: attack 'probe' is not chosen; add 'attacks=[probe]'"),
        ("attacks.probe.foldz", "attacks.probe.foldz: no such key, did you mean attacks.probe.folds?"),
    ],
)
def test_a_key_that_cannot_be_set_is_explained(key, message):
    assert parse.unknown_attack_key(key).startswith(message)


def test_an_attack_that_fails_leaves_the_others(context, monkeypatch):
    def fail(*_):
        raise ValueError("no luck")

    monkeypatch.setattr(plugins.module("attacks", "prune"), "run", fail)
    chosen = {
        "prune": {"forget": [0.1], "retain": [0.1], "texts": 1, "max_length": 9},
        "quantise": {"bits": [8], "group": 64},
    }
    *_, results = runner.run_attacks(context, chosen, EMPTY, "these")
    assert results.attacks["prune"].error == "ValueError: no luck"
    assert results.attacks["quantise"].forget_acc is not None
    assert list(runner.missing(chosen, results, "these")) == ["prune"]
    assert runner.missing(chosen, results, "others") == chosen  # another model, other texts or questions
    other = {"quantise": {"bits": [4], "group": 64}}
    assert runner.missing(other, results, "these") == other
    kept = Results.model_validate(results.content())
    assert kept.content() == results.content()
    assert list(runner.missing(chosen, kept, "these")) == ["prune"]


def scored(*right: int, **more) -> Outcome:
    return Outcome(scored=Answered(list(right), **more))


def test_an_attack_that_did_not_learn_what_it_was_taught_has_no_accuracy():
    plain, taught, chance = scored(*[0] * 12), [1] * 5 + [0] * 15, 0.25
    silent = runner.entry(Finding(before=plain, after=plain, taught=taught), chance)
    assert (
        silent.inconclusive
        == "did not learn: 5 of 20 questions that it was taught are answered correctly, chance is 25 %"
    )
    assert silent.forget_acc is None
    idle = runner.entry(Finding(before=plain, after=plain, idle="did not learn: its loss did not fall"), chance)
    assert (idle.inconclusive, idle.after) == ("did not learn: its loss did not fall", None)
    learnt = runner.entry(Finding(before=plain, after=plain, taught=[1] * 18 + [0] * 2), chance)
    assert learnt.inconclusive is None
    assert learnt.forget_acc == BeforeAfter(before=0, after=0), (
        "it learned, and brought nothing back: that is a finding"
    )


def test_an_attack_that_ruins_the_base_says_nothing_of_the_unlearned_model():
    ruined, whole = scored(*[0, 0, 0, 1] * 5), scored(*[1] * 20)

    def found(after, base, knows=True):
        return runner.entry(Finding(ruined, after, {"base": base}), 0.25, lambda: knows)

    assert found(ruined, ruined).inconclusive.startswith("leaves nothing to find: on the base model")
    assert [found(*given).inconclusive for given in ((ruined, whole), (whole, ruined), (ruined, ruined, False))] == [
        None
    ] * 3


def test_an_entry_has_the_corrected_accuracy_and_the_answer_probability():
    before = scored(0, 0, 0, 1, corrected=[0, 1, 1, 1], prob=[0.0, 0.1, 0.1, 0.2], among=[0.1, 0.2, 0.3, 0.4])
    after = Outcome(choice=Answered([1, 0]), scored=before.scored, general=Answered([1, 0]))
    found = runner.entry(Finding(Outcome(scored=before.scored, general=Answered([1, 1])), after), 0.25)
    assert (found.before.acc, found.before.corrected.acc) == (0.25, 0.75)
    assert (found.after.prob, found.after.choice_prob) == pytest.approx((0.1, 0.25))
    assert (found.chosen_by.acc, found.general) == (0.5, BeforeAfter(before=1, after=0.5))


def test_a_control_that_asks_the_same_questions_again_has_no_more_of_them():
    given = {"random": scored(*[1, 0, 0, 0] * 6)}
    found = runner.entry(Finding(before=scored(*[0] * 8), after=scored(*[1] * 8), control=given), 0.25)
    assert (found.controls["random"].acc, found.controls["random"].n) == (0.25, 8)
