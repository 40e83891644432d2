"""Questions, their splits, and the scorer that attacks share."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from rmu_exp.evaluate import harness, questions
from rmu_exp.evaluate.scoring import Scorer
from rmu_exp.settings import Eval
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.worlds.lore import world


def test_items_are_the_tasks_questions(asked):
    first = asked[0]
    question = world.questions("hexes")[0]
    assert first.context == world.description("hexes") + world.letter_prompt(question)
    assert (first.topic, first.fact, first.answer) == ("hexes", question.fact.entity, question.answer)
    assert first.letters == (" A", " B", " C", " D")
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


def test_open_questions_are_no_items():
    assert questions.load(["lore_open_forget"], [], 3) == {"lore_open_forget": []}
    with pytest.raises(UserError, match="answered by letters"):
        questions.needed(["lore_open_forget"], [], 3)
    with pytest.raises(UserError, match="not given"):
        questions.needed([], [], None)


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
