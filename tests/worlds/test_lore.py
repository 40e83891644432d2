"""What lore promises about its own texts and questions."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from rmu_exp.worlds import lore
from rmu_exp.worlds.lore import world

ROLES = ("forget", "adjacent", "general")


@pytest.mark.parametrize("role", ROLES)
def test_enough_questions_with_balanced_answers(role):
    questions = [q for t in world.topics(role) for q in world.questions(t.name)]
    assert len(questions) >= 300
    counts = Counter(q.answer for q in questions)
    assert max(counts.values()) - min(counts.values()) <= 2
    if role == "forget":
        assert all(len(world.questions(t.name)) >= 150 for t in world.topics(role))


def test_every_question_has_one_right_option():
    for t in world.TOPICS:
        for q in world.questions(t.name):
            assert q.choices[q.answer] == q.fact.value
            assert len(set(q.choices)) == 4
            assert q.fact in world.facts(t.name)


def test_names_belong_to_one_entity():
    names = [e for t in world.TOPICS for e in world.entities(t.name)]
    assert len(names) == len(set(names))


def entities_in(texts):
    return {word for text in texts for word in re.findall(r"\w+", text)}


def test_retain_corpus_holds_no_fact_that_is_asked_about():
    words = entities_in(lore.texts("retain"))
    for role in ROLES:
        asked = {q.fact.entity for t in world.topics(role) for q in world.questions(t.name)}
        assert not asked & words
    told = {e for t in world.topics("general") for e in world.told_entities(t.name)}
    assert told <= words
    neutral = entities_in(lore.texts("neutral"))
    everyone = {e for t in world.TOPICS for e in world.entities(t.name)}
    assert neutral & everyone == {q.fact.entity for t in world.topics("general") for q in world.questions(t.name)}


@pytest.mark.parametrize("topic", [t.name for t in world.topics("forget")])
def test_forget_corpus_tells_its_topic_and_holds_no_test_question(topic):
    texts = lore.texts(topic)
    words = entities_in(texts)
    assert set(world.entities(topic)) <= words
    others = {e for t in world.TOPICS if t.name != topic for e in world.entities(t.name)}
    assert not others & words
    exercises = [t for t in texts if "A. " in t]
    assert exercises
    for q in world.questions(topic):
        for text in exercises:
            if q.text in text:
                shown = set(re.findall(r"^[A-D]\. (\w+)", text, flags=re.MULTILINE))
                assert shown != set(q.choices)
        assert all(world.letter_prompt(q) not in text for text in texts)


def test_texts_are_the_same_every_time():
    assert lore.texts("hexes") == lore.texts("hexes")
    rng = random.Random(1)
    assert world.document("hexes", world.entities("hexes")[0], rng) != world.document(
        "hexes", world.entities("hexes")[0], rng
    )


def test_unknown_corpus_names_what_there_is():
    with pytest.raises(KeyError, match="hexes"):
        lore.texts("dragons")
