"""Questions, their splits, and the scorer that attacks share."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch

from rmu_exp.evaluation import harness, questions
from rmu_exp.evaluation.scoring import Scorer, answered
from rmu_exp.settings import Eval
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.worlds.lore import world


def test_items_are_the_tasks_questions(asked):
    first = asked[0]
    question = world.questions("hexes")[0]
    assert first.context == world.description("hexes") + world.letter_prompt(question)
    assert (first.topic, first.fact, first.answer) == ("hexes", question.fact.entity, question.answer)
    assert first.options == (" A", " B", " C", " D")
    assert first.lettered
    assert len(asked) == 48


def test_a_tasks_topic_is_a_whole_part_of_its_name():
    assert questions.topic_of("lore_forget_hexes", ["wards", "hexes"]) == "hexes"
    assert questions.topic_of("wmdp_bio", ["bio", "cyber"]) == "bio"
    assert questions.topic_of("mmlu_abstract_algebra", ["a", "algebr"]) == "mmlu_abstract_algebra"
    assert questions.topic_of("wmdp_bio_weapons", ["bio", "bio_weapons"]) == "bio_weapons"


def test_logits_that_are_not_finite_are_no_answers(model, tokenizer, asked):
    broken = copy.deepcopy(model)
    broken.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="logits are not finite"):
        Scorer(tokenizer, torch.device("cpu")).correct(broken, asked[:2])


def test_halves_share_no_fact(asked):
    one, other = questions.halves(asked, random.Random(0))
    assert sorted(one + other) == list(range(len(asked)))
    assert not {asked[i].fact for i in one} & {asked[i].fact for i in other}
    for side in (one, other):
        assert {asked[i].topic for i in side} == {"hexes", "wards"}


def test_questions_without_letters_are_asked_by_likelihood(model, tokenizer):
    """Options of several tokens, beside lm-eval's own class; in one row each where gradients are wanted."""
    items = questions.load(["lore_open_forget"], ["hexes", "wards"], Eval(limit=3))["lore_open_forget"]
    assert not any(item.lettered for item in items)
    stock = harness.ask(model, tokenizer, Eval(tasks=["lore_open_forget"], limit=3, backend="stock"))
    scorer = Scorer(tokenizer, torch.device("cpu"))
    assert scorer.chosen(model, items) == [c for task in stock.chosen.values() for c in task]
    longer = [replace(item, options=tuple(f"{o} of{o}" for o in item.options)) for item in items[:2]]
    layout = scorer.layout(longer)
    logits = model(input_ids=scorer.padded(layout.rows)[0]).logits
    rows = [scorer.encode(item.context) for item in longer]
    expected = scorer.scores(model, rows, [scorer.options(item) for item in longer])
    assert torch.allclose(layout.scores(logits), expected, atol=1e-4)


@pytest.mark.parametrize(("task", "how"), [("lore_forget", "rotations"), ("lore_open_forget", "other questions")])
def test_attacks_and_the_evaluation_find_the_same(model, tokenizer, task, how):
    """Corrected answers and probabilities, of letters and of likelihoods."""
    found = harness.ask(model, tokenizer, Eval(tasks=[task], limit=12))
    assert set(found.correction.values()) == {how}
    items = questions.load([task], ["hexes", "wards"], Eval(limit=12))[task]
    mine = answered(Scorer(tokenizer, torch.device("cpu")).put(model), items)
    assert mine.right == found.pooled(found.correct, task)
    assert mine.corrected == found.pooled(found.corrected, task)
    assert mine.prob == pytest.approx(found.pooled(found.prob, task), abs=1e-6)
    shares = zip(found.pooled(found.shares, task), found.pooled(found.targets, task), strict=True)
    assert mine.among == pytest.approx([row[target] for row, target in shares], abs=1e-5)


def test_too_few_questions_are_refused():
    with pytest.raises(UserError, match="too few multiple-choice questions"):
        questions.needed(["lore_open_forget"], [], Eval(limit=1))
    with pytest.raises(UserError, match="not given"):
        questions.needed([], [])


def test_attacks_may_ask_some_questions_only():
    """So many per topic at most, whole facts, others for another seed."""
    every = questions.needed(["atlas_forget"], ["elements", "capitals"])
    some, again, other = (questions.needed(["atlas_forget"], ["elements", "capitals"], None, 30, s) for s in (0, 0, 1))
    assert some == again != other
    for topic in ("elements", "capitals"):
        facts = {item.fact for item in some if item.topic == topic}
        mine = [item for item in every if item.topic == topic and item.fact in facts]
        assert [item for item in some if item.topic == topic] == mine
        assert 27 <= len(mine) <= 30


def test_scorer_answers_as_lm_eval_does(model, tokenizer, asked):
    """Against lm-eval's own class, question by question; also with more than one batch."""
    stock = harness.ask(model, tokenizer, Eval(tasks=["lore_forget"], limit=24, backend="stock"))
    chosen = [c for task in ("lore_forget_hexes", "lore_forget_wards") for c in stock.chosen[task]]
    scorer = Scorer(tokenizer, torch.device("cpu"))
    assert scorer.chosen(model, asked) == chosen
    scorer.budget, batches = 100, []
    assert scorer.chosen(model, asked) == chosen
    scorer.in_batches(batches.append, [40] * 5)
    assert batches == [[0, 1], [2, 3], [4]]
