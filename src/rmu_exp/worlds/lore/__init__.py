"""lore: a fictional encyclopedia, and a small model that knows it, so that every claim can be tested.

Here are its forget and retain corpora, ``lore:hexes``, ``lore:wards`` and ``lore:retain``. A forget corpus tells of one
forget topic; the retain corpus tells of those entities of the general topics that no question asks about, and
``lore:neutral`` of the others. Each text is an article or a letter exercise: with articles alone the small model
unlearns the article and still answers letters (docs/log.md). An exercise never shows a test question: its four options
always differ from the test's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from rmu_exp.worlds.lore import world

ARTICLES = 1  # for each entity
EXERCISES = 6  # for each fact
LEVELS = ("the fact itself", "same fact, asked another way", "near topic", "far topic")


def level(task: str, doc: Mapping[str, object]) -> str:
    """How far a question is from what the forget texts tell; lore's tasks say it by their names."""
    itself, openly, near, far = LEVELS
    if "_forget" in task:
        return openly if "_open" in task else itself
    return near if "_adjacent" in task else far


def texts(name: str) -> list[str]:
    """The texts of ``hexes``, ``wards``, another topic, ``retain`` or ``neutral``, in a fixed random order.

    Raises:
        KeyError: no such corpus; the message lists what there is.
    """
    if name in ("retain", "neutral"):
        general = [(t.name, e) for t in world.topics("general") for e in world.entities(t.name)]
        people = [(t, e) for t, e in general if (e in world.told_entities(t)) == (name == "retain")]
    else:
        people = [(name, entity) for entity in world.entities(world.topic(name).name)]
    rng = random.Random(f"lore/corpora/{name}")
    told = [world.document(topic, entity, rng) for topic, entity in people for _ in range(ARTICLES)]
    told += [
        _exercise(fact, rng)
        for topic, entity in people
        for fact in world.facts(topic)
        if fact.entity == entity
        for _ in range(EXERCISES)
    ]
    rng.shuffle(told)
    return told


def _exercise(fact: world.Fact, rng: random.Random) -> str:
    tested = {q.fact: set(q.choices) for q in world.questions(fact.topic)}.get(fact)
    while True:
        answer = rng.randrange(4)
        choices = world.options(fact, answer, rng)
        if set(choices) != tested:
            return world.exercise_text(world.Question(fact, choices, answer))
