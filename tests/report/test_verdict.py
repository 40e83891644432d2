"""The verdict's word follows from stated rules, and nothing that failed is called a success."""

from __future__ import annotations

import math

import pytest

from rmu_exp.record.results import (
    Accuracy,
    Both,
    Corrected,
    Damage,
    Perplexity,
    PerplexityRow,
    QaRow,
    Rate,
    Results,
    RunInfo,
    Training,
)
from rmu_exp.report.verdict import verdict


def asked(acc: float, corrected: float | None = None) -> Accuracy:
    unbiased = None if corrected is None else Corrected(acc=corrected, ci95=(0, 1))
    return Accuracy(acc=acc, stderr=0.01, ci95=(0, 1), n=100, corrected=unbiased)


def row(base: float, unlearned: float, after: float | None = None, tasks: list[str] | None = None) -> QaRow:
    """Plain accuracies; corrected ones of 0.95 before and ``after`` after."""
    before = None if after is None else 0.95
    return QaRow(base=asked(base, before), unlearned=asked(unlearned, after), chance=0.25, tasks=tasks)


def results(reached: float | None = 0.8, ratio: float | None = None, **rows: QaRow) -> Results:
    took = {"steps": 1, "seconds": 1, "seconds_per_step": 1, "peak_memory_bytes": 1}
    texts = {}
    if ratio is not None:
        texts = {
            "w.txt": PerplexityRow(
                base=Perplexity(perplexity=10, tokens=9), unlearned=Perplexity(perplexity=10 * ratio, tokens=9)
            )
        }
    qa = dict(rows)
    for role in ("forget", "general", "adjacent"):
        if f"atlas_{role}_a" in rows:
            qa[f"atlas_{role}"] = rows[f"atlas_{role}_a"].model_copy(update={"tasks": [f"atlas_{role}_a"]})
    return Results(
        run=RunInfo(model="m", topics=["a"], method="rmu", layer=7, seed=0),
        train=Training(**took, reached={} if reached is None else {"a": reached}),
        qa=qa,
        perplexity=texts,
    )


KEEPS = row(0.8, 0.79, 0.94)


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("forgot", {"atlas_forget_a": row(0.8, 0.30, 0.4), "atlas_general_a": KEEPS}),
        ("forgot", {"atlas_forget_a": row(0.8, 0.15, 0.2), "atlas_general_a": KEEPS}),
        ("partly", {"atlas_forget_a": row(0.8, 0.30, 0.72), "atlas_general_a": KEEPS}),  # the letter's bias alone
        ("partly", {"atlas_forget_a": row(0.8, 0.50, 0.4), "atlas_general_a": KEEPS}),
        ("nothing happened", {"atlas_forget_a": row(0.8, 0.79, 0.95), "atlas_general_a": KEEPS}),
        ("broken", {"atlas_forget_a": row(0.8, 0.25, 0.25), "atlas_general_a": row(0.8, 0.4, 0.9)}),
        ("broken", {"atlas_forget_a": row(0.8, 0.25, 0.25), "atlas_general_a": KEEPS, "ratio": 3.5}),
        ("forgot", {"atlas_forget_a": row(0.8, 0.25, 0.25), "atlas_general_a": KEEPS, "ratio": 1.2}),
        ("forgot", {"atlas_forget_a": row(0.8, 0.3), "atlas_general_a": KEEPS}),  # no correction was asked for
        ("not measured", {"atlas_forget_a": row(0.3, 0.3, 0.3), "atlas_general_a": KEEPS}),  # the base does not know it
        ("not measured", {}),
        ("nothing happened", {"reached": 0.03}),
    ],
)
def test_the_word(word, given):
    assert verdict(results(**given)).word == word


def test_the_sentences_say_what_was_measured_and_what_was_not():
    found = verdict(results(atlas_forget_a=row(0.8, 0.30, 0.4), atlas_general_a=KEEPS)).sentences
    assert found[0] == "Forget activations at layer 7 went 80 % for a of the way to their target."
    assert "9 % (corrected for answer bias 21 %) of atlas_forget_a (80.0 % → 30.0 %, chance 25.0 %)" in found[1]
    assert "98 % (corrected for answer bias 99 %) of atlas_general" in found[2]
    assert "was not measured" in found[3]
    back = results()
    back.train.kl_reached, back.train.kl_step = True, float(back.train.steps)
    assert verdict(back).sentences[0] == found[0], "the last look was inside the budget"
    back.train.kl_step -= 0.5
    assert (
        verdict(back)
        .sentences[0]
        .endswith("of the way to their target before training was taken back to its KL budget.")
    )
    found = verdict(results(reached=None, ratio=1.5)).sentences
    assert "is not known" in found[0]
    assert found[3] == "Perplexity went from 10.0 to 15.0 on w.txt."
    judged = results(atlas_forget_a=row(0.8, 0.30, 0.4)).model_copy(update={"train": None})
    assert "atlas_forget_a" in verdict(judged).sentences[0], "how far a judged model's activations went nobody asked"
    nothing = verdict(judged.model_copy(update={"qa": {}}))
    assert (nothing.word, nothing.sentences) == ("not measured", ["No questions were asked, and no text was read."])


@pytest.mark.parametrize(
    ("kl", "word"),
    [(0.05, "hardly changed"), (0.2, "changed"), (0.9, "damaged"), (1.5, "in ruins"), (math.nan, "in ruins")],
)
def test_damage_is_judged_by_kl_on_neutral_text(kl, word):
    rate = Rate(mean=kl, ci95=(kl, kl), tokens=9)
    same = Rate(mean=0.75, ci95=(0.7, 0.8), tokens=9)
    texts = {"neutral": ["n.txt"], "retain": ["r.txt"]}
    near = Rate(mean=0.0, ci95=(0, 0), tokens=9)
    measured = Damage(
        kl={"retain": near, "neutral": rate},
        agreement=dict.fromkeys(texts, same),
        sources=texts,
        perplexity={"n.txt": Both(base=10, unlearned=20), "r.txt": Both(base=9, unlearned=90)},
    )
    found = verdict(results(atlas_forget_a=row(0.8, 0.2, 0.2)).model_copy(update={"damage": measured}))
    assert found.sentences[3] == (
        f"Ordinary text is {word}: KL to the base is {kl:.3f} nats per token on n.txt, and 75.0 % of its likeliest "
        "tokens are the same. Perplexity went from 10.0 to 20.0 on n.txt."
    )
    assert found.word == "forgot"
    measured.perplexity["n.txt"].unlearned = 31
    assert verdict(results(atlas_forget_a=row(0.8, 0.2, 0.2)).model_copy(update={"damage": measured})).word == "broken"


def test_tasks_of_ones_own_stand_for_what_the_settings_say():
    mine = row(0.8, 0.3, 0.3).model_copy(update={"role": "forget"})
    near = row(0.8, 0.3, 0.3).model_copy(update={"role": "adjacent"})
    found = verdict(results(mine=mine, near=near, rest=KEEPS))
    assert found.word == "forgot", "what is adjacent is no general knowledge"
    assert "of mine (" in found.sentences[1]
    assert "of rest (" in found.sentences[2]
    assert "of near (" in found.sentences[2]
